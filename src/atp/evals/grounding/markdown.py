"""Tables of `table.build` as Markdown. Knows plain values only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NOTHING = "-"
OTHERS = ("dropped", "random", "unpruned")
TITLES = {
    "share": "Share of the kept tokens' area that lies on the asked object, %",
    "recall": "Share of the object's area that is kept, %",
    "pointing": "Pointing game: highest score on the object, %",
    "gqa": "GQA grounding score of the scores of what is kept, %",
}
NOTE = (
    "Chance: what as many patches drawn blindly give on average (drawn: one such draw). Own attention: as many patches chosen by "
    "the unpruned model's own attention, of the class token in the tower and of the last prompt token in the language model. "
    "95 % intervals: paired bootstrap over scenes. Sites whose tokens are queries or latents have no place in the image and are "
    "left out. Dropped: what the method drops stays instead, lowest scores first, at every site; shared: survivors of both. "
    "Merged: as the method runs, where it merges what leaves into what stays; the other columns are without that."
)


def markdown(told: Mapping[str, Any], level: int = 1) -> str:
    """Return the tables of one model at one budget, under a heading of that level."""
    lines = [f"{'#' * level} `{told['model']}`, budget {told['budget']:g}", ""]
    asked = f"{told['questions']} questions about visible objects in {told['images']} scenes"
    lines.append(f"{asked}; all tokens: {told['unpruned']:.2f} % right.")
    for name, title in TITLES.items():
        lines += ["", f"**{title}**", "", *_table(_places(told, name))]
    lines += [
        "",
        "**Deletion: right answers from what is kept, from what is dropped, from random tokens, at equal counts, %**",
        "",
    ]
    lines += [*_table(_deletions(told)), "", NOTE]
    lines += [f"{name} left out: {why}." for name, why in told["left_out"].items()]
    return "\n".join(lines)


def _places(told: Mapping[str, Any], measure: str) -> Iterator[tuple[str, ...]]:
    yield ("method", "site", "kept", "method's", "chance", "drawn", "own attention", "minus chance", "minus own attention")
    for name, row in told["methods"].items():
        for site, found in row["sites"].items():
            if found is None or found["measures"][measure]["method"] is None:
                continue
            values = found["measures"][measure]
            kept = f"{found['kept']:.1f} of {found['of']}"
            shown = [_number(values[by]) for by in ("method", "expected", "drawn", "attention")]
            yield (name, site, kept, *shown, *(_interval(values["minus"][by]) for by in ("expected", "attention")))


def _deletions(told: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    yield ("method", "FLOPs", "merged", "kept", "random", "dropped", *(f"kept minus {other}" for other in OTHERS), "shared")
    for name, row in told["methods"].items():
        found = row["deletion"]
        values = [_number(found[by]) for by in ("merged", "kept", "random", "dropped")]
        against = [_interval(found[f"kept_minus_{other}"]) for other in OTHERS]
        yield (name, f"{row['flops_share']:.3f}", *values, *against, _number(found["shared"]))


def _table(rows: Iterator[tuple[str, ...]]) -> list[str]:
    """Return a table's lines: the first row is its head."""
    made = ["| " + " | ".join(row) + " |" for row in rows]
    return [made[0], "|---" * (made[0].count("|") - 1) + "|", *made[1:]]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def _interval(value: Mapping[str, float] | None) -> str:
    return NOTHING if value is None else f"{value['mean']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]"
