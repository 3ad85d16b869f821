"""A report as one self-contained HTML page: tables and drawings inside, nothing fetched, all text escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from atp.evals.harness.markdown import Table, lead, tables

_STYLE = """
:root{--ink:#1c1e26;--faint:#6e7380;--line:#e3e5ea;--card:#fff;--paper:#f5f6f8}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1340px;margin:0 auto;padding:36px 18px 60px}
h1{font-size:28px;margin:0 0 4px} h2{font-size:21px;margin:34px 0 0} h3{font-size:15px;margin:20px 0 6px}
.faint{color:var(--faint);font-size:13px;margin:6px 0} nav a{margin-right:14px}
.card{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
.card svg{display:block;width:100%;height:auto;max-width:920px;margin:0 auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:6px 8px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap} tr:last-child td{border-bottom:0}
th:first-child,td:first-child{text-align:left} th{color:var(--faint);font-weight:600;white-space:normal;vertical-align:bottom}
td.long{white-space:normal;min-width:220px} .words{text-align:left}
"""
LONG = 40  # characters; longer cells may break
WORDS = ("setting", "split", "object", "verdict", "disturbance")  # columns of words; the others are numbers, to the right


def page(told: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        told: from `report.build`.
        pictures: SVG of each task, empty where there is none.
    """
    title = f"Evaluation of {told['model']}"
    names = [task["name"] for task in told["tasks"]]
    links = "".join(f'<a href="#{_t(name)}">{_t(name)}</a>' for name in names)
    body = "".join(_task(task, pictures.get(task["name"], "")) for task in told["tasks"])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_t(title)}</title><style>{_STYLE}</style></head><body><main><h1>{_t(title)}</h1>"
        f"<p class=faint>{_t(lead(told))}</p><nav>{links}</nav>{body}</main></body></html>\n"
    )


def _task(task: Mapping[str, Any], picture: str) -> str:
    drawing = f'<h3>Score against cost</h3><div class="card">{picture}</div>' if picture else _missing()
    return f'<section id="{_t(task["name"])}"><h2>{_t(task["name"])}</h2>{drawing}{"".join(map(_table, tables(task)))}</section>'


def _missing() -> str:
    return "<p class=faint>No plot: nothing was scored, or matplotlib is missing (pip install 'atp-vlm[report]').</p>"


def _table(table: Table) -> str:
    words = [name in WORDS for name in table.columns]
    head = "".join(
        f"<th{' class=words' if left else ''}>{_t(name)}</th>" for name, left in zip(table.columns, words, strict=True)
    )
    rows = "".join(f"<tr>{''.join(map(_cell, row, words))}</tr>" for row in table.rows)
    note = f"<p class=faint>{_t(table.note)}</p>" if table.note else ""
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h3>{_t(table.title)}</h3><div class="card">{inside}</div>{note}'


def _cell(text: str, words: bool) -> str:
    kinds = " ".join(name for name, has in (("long", len(text) > LONG), ("words", words)) if has)
    return f'<td class="{kinds}">{_t(text)}</td>' if kinds else f"<td>{_t(text)}</td>"


def _t(text: str) -> str:
    return html.escape(str(text), quote=True)
