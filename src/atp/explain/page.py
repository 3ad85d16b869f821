"""One self-contained HTML page of a demonstration: a table, and a card with its picture for each question.

Images are embedded; nothing is fetched; all text is escaped. Knows strings, numbers and pictures only.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

_STYLE = """
:root{--ink:#1c1e26;--faint:#6e7380;--line:#e3e5ea;--card:#fff;--paper:#f5f6f8;--good:#137a3e;--bad:#b3261e;--bar:#3a46d6}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:960px;margin:0 auto;padding:36px 18px 60px}
h1{font-size:28px;margin:0 0 4px;letter-spacing:-.01em} h2{font-size:18px;margin:0 0 2px}
p{margin:4px 0} .faint{color:var(--faint);font-size:14px}
.totals{display:flex;flex-wrap:wrap;gap:12px;margin:22px 0}
.total{flex:1 1 150px;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.total b{display:block;font-size:24px;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:8px 12px;text-align:left;border-bottom:1px solid var(--line)} tr:last-child td{border-bottom:0}
th{color:var(--faint);font-weight:600} .n{text-align:right;white-space:nowrap}
.right{color:var(--good)} .wrong{color:var(--bad)} .right::before{content:"\\2713\\00a0"} .wrong::before{content:"\\2717\\00a0"}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px;margin:20px 0}
.card img{display:block;width:100%;height:auto;border-radius:6px;margin-top:12px}
.bar{height:8px;border-radius:4px;background:var(--line);overflow:hidden;margin:8px 0 2px}
.bar i{display:block;height:100%;background:var(--bar)}
a{color:inherit}
"""


@dataclass(frozen=True)
class Card:
    """One question about one image.

    Attributes:
        question: as asked.
        truth: the right answer, None where nobody knows it.
        unpruned, pruned: the two answers.
        flops_ratio: FLOPs with pruning over FLOPs without.
        kept: in words, e.g. "tower 118/196 → language 61/196".
        seconds: (unpruned, pruned).
        picture: the overlay.
    """

    question: str
    truth: str | None
    unpruned: str
    pruned: str
    flops_ratio: float
    kept: str
    seconds: tuple[float, float]
    picture: Image.Image


def same(answer: str, truth: str) -> bool:
    """Whether two short answers agree: case, outer spaces and a final full stop do not count."""
    return answer.strip().rstrip(".").strip().lower() == truth.strip().rstrip(".").strip().lower()


def page(title: str, lead: str, totals: Sequence[tuple[str, str]], cards: Sequence[Card]) -> str:
    """Return the HTML of a page.

    Args:
        title: heading.
        lead: one sentence below it.
        totals: (number, what it is) shown large, both as text.
        cards: one a question, in order.
    """
    numbers = "".join(
        f'<div class="total"><b>{_t(number)}</b><span class="faint">{_t(what)}</span></div>' for number, what in totals
    )
    head = "<tr><th>#</th><th>question</th><th>truth</th><th>unpruned</th><th>pruned</th><th class=n>FLOPs</th><th>kept</th></tr>"
    rows = "".join(_row(number, card) for number, card in enumerate(cards, 1))
    body = "".join(_card(number, card) for number, card in enumerate(cards, 1))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{_t(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>{_t(title)}</h1><p class=faint>{_t(lead)}</p>"
        f'<div class="totals">{numbers}</div><div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
        f"{body}</main></body></html>\n"
    )


def _row(number: int, card: Card) -> str:
    return (
        f'<tr><td><a href="#q{number}">{number}</a></td><td>{_t(card.question)}</td><td>{_t(card.truth or "")}</td>'
        f"<td>{_judged(card.unpruned, card.truth)}</td><td>{_judged(card.pruned, card.truth)}</td>"
        f"<td class=n>{card.flops_ratio:.0%}</td><td>{_t(card.kept)}</td></tr>"
    )


def _card(number: int, card: Card) -> str:
    truth = f" &middot; truth: {_t(card.truth)}" if card.truth is not None else ""
    share = min(100.0, 100 * card.flops_ratio)
    return (
        f'<section class="card" id="q{number}"><h2>{number}. {_t(card.question)}</h2>'
        f"<p>unpruned: {_judged(card.unpruned, card.truth)} &middot; pruned: {_judged(card.pruned, card.truth)}{truth}</p>"
        f'<div class="bar"><i style="width:{share:.1f}%"></i></div>'
        f"<p class=faint>{card.flops_ratio:.1%} of the FLOPs &middot; {_t(card.kept)} &middot; "
        f"{1000 * card.seconds[0]:.0f} ms unpruned, {1000 * card.seconds[1]:.0f} ms pruned</p>"
        f'<img alt="{_t(f"patches kept for: {card.question}")}" src="{_embedded(card.picture)}"></section>'
    )


def _judged(answer: str, truth: str | None) -> str:
    if truth is None:
        return _t(answer)
    return f'<span class="{"right" if same(answer, truth) else "wrong"}">{_t(answer)}</span>'


def _embedded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _t(text: str) -> str:
    return html.escape(str(text), quote=True)
