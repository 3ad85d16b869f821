"""Write `docs/performance.md` and the tables beside the results from `docs/results/performance/*/`. Generated only.

`python runs/performance.py`; the scripts that measure call it when they are done. It measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from performance_more import MORE, break_even_words
from performance_tables import TABLES, Result, first_gain, losses, missing, table
from performance_words import ABSENT, AFTER, INTRO, SECTIONS

DOCS = Path(__file__).parents[1] / "docs"
OWN = {"accuracy.json": "accuracy", "steps.json": "steps"}  # kinds that the folder's name does not tell
FILES = ("bench.json", "throughput.json", "table.json", *OWN)
ALL = {**TABLES, **MORE}


def read(folder: Path) -> dict[str, list[Result]]:
    """Read all results, by the kind that the name of their folder begins with; unfinished files are left out."""
    found: dict[str, list[Result]] = {}
    for file in sorted((*folder.glob("*/*.json"), *folder.glob("sites-*/*/table.json"))):
        if file.stat().st_size and file.name in FILES:
            kind = OWN.get(file.name, file.relative_to(folder).parts[0].split("-")[0])
            found.setdefault(kind, []).append(json.loads(file.read_text(encoding="utf-8")))
    return found


def machines(results: Mapping[str, Sequence[Result]]) -> str:
    """Say where the numbers come from, each machine once."""
    seen: dict[str, None] = {}
    for result in (one for own in results.values() for one in own if "machine" in one):
        own = result["machine"]
        versions = ", ".join(f"{name} {own[name]}" for name in ("torch", "transformers", "torchao") if name in own)
        devices = ", ".join(sorted({case["device"] for case in result.get("cases", ())})) or "cpu"
        seen[f"{devices}, {own['cores']} cores, {own['threads']} threads, {own['vectors']}, {versions}"] = None
    return f"Measured on: {'; '.join(seen)}." if seen else ""


def page(results: Mapping[str, Sequence[Result]]) -> str:
    """Assemble the document."""
    parts = [INTRO, machines(results)]
    for section in SECTIONS:
        own = [one for kind in (section.kind, *section.beside) for one in results.get(kind, [])]
        parts += [f"## {section.title}", section.text]
        if not own:
            parts.append(ABSENT.format(script=section.script))
            continue
        for name in section.tables:
            head, rows = ALL[name]
            named = name if name in ("accuracy", "steps") else "steps" if name == "compiled" else ""
            parts.append(table(head, list(rows(results.get(named, []) if named else own))))
        if section.title == "Speed":
            parts.append("\n".join(missing(own)))
        parts.append(section.after)
        if section.kind == "growth":
            parts.append(first_gain(own))
        if section.kind == "even":
            parts.append(break_even_words(own))
        if section.losses:
            parts.append("\n".join(losses(own)) or "None of the measured cases.")
    return "\n\n".join(part for part in (*parts, AFTER) if part) + "\n"


def write(docs: Path = DOCS) -> Path:
    """Write the document, and `table.md` beside every result."""
    folder = docs / "results" / "performance"
    for kind, own in read(folder).items():
        groups = {"speed": ("speed", "split"), "overhead": ("overhead", "traces", "speed"), "even": ("grid",)}
        names = {**groups, "steps": ("steps", "compiled")}.get(kind, (kind,))
        text = "\n\n".join(table(ALL[name][0], list(ALL[name][1](own))) for name in names)
        (folder / f"{kind}.md").write_text(text + "\n", encoding="utf-8")
    file = docs / "performance.md"
    file.write_text(page(read(folder)), encoding="utf-8")
    return file


if __name__ == "__main__":
    print(f"written: {write()}")
