"""Tables of text.md from what `text.py measure` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pages import NOTHING, table

from atp.evals.stats import Interval, paired_bootstrap

TAIL = 32  # last text tokens that stay unless a form names another number
PROMPTS = {
    "plain": "nothing",
    "examples": "questions with answers about other pictures, in words, each a turn of its own",
    "questions": "other questions, as an instruction before the picture",
    "captions": "captions of other pictures, as a document before the picture",
    "english": "LLaVA's own system prompt, most words of which the tokenizer spells in letters",
    "shots": "pictures with question and answer, each a turn of its own",
}


def form_of(form: str) -> tuple[str, int, int]:
    """Read the kind of a prompt, how many, and how many last tokens stay: examples:8, or shots:2:12."""
    kind, number, tail = [*form.split(":"), "", ""][:3]
    return kind, int(number or 0), int(tail or TAIL)


def right(told: dict[str, Any], name: str) -> Any:
    """Score of every question, `[N]`."""
    pairs = zip(told["rows"][name]["answers"], told["truth"], strict=True)
    return np.array([answer == truth for answer, truth in pairs], float)


def gain(told: dict[str, Any], name: str) -> Interval | None:
    """Return a setting's score minus that of the same budget with visual tokens leaving only; None = it is no such setting."""
    beside = f"{name.split()[0]} visual only"
    if "and text" not in name or beside not in told["rows"]:
        return None
    return paired_bootstrap(right(told, name), right(told, beside), np.array(told["scenes"]))


def verdicts(told: Sequence[dict[str, Any]]) -> str:
    """Count wins and losses of text leaving too."""
    gaps = [gap for one in told for name in one["rows"] if (gap := gain(one, name)) is not None]
    won, lost = sum(gap.low > 0 for gap in gaps), sum(gap.high < 0 for gap in gaps)
    return (
        f"Visual and text against visual only, {len(gaps)} comparisons: {won} wins (interval above 0), "
        f"{len(gaps) - won - lost} ties, {lost} losses."
    )


def section(told: dict[str, Any]) -> list[str]:
    """Table of one prompt's settings."""
    scenes, base, body = np.array(told["scenes"]), right(told, "all tokens"), []
    for name, row in told["rows"].items():
        mine, more = right(told, name), gain(told, name)
        gap = NOTHING if name == "all tokens" else str(paired_bootstrap(mine, base, scenes))
        text = row.get("text")
        kept = f"{text['kept']:.0f} of {text['started']:.0f}" if text else f"all {told['work']['text']}"
        stay = f"{text['protected_gone']} of {text['protected']}" if text else NOTHING
        score = f"{100 * mine.mean():.1f}"
        body.append(
            (name, f"{row['ratio']:.3f}", score, gap, NOTHING if more is None else str(more), f"{row['visual']:.1f}", kept, stay)
        )
    reasons: dict[str, list[str]] = {}
    for name, why in told["refused"].items():
        reasons.setdefault(why, []).append(name)
    refused = [f"Not possible: {', '.join(names)}: {why}." for why, names in reasons.items()]
    head = (
        "setting",
        "FLOPs",
        "right, %",
        "minus all tokens",
        "minus visual only",
        "visual per layer",
        "text kept",
        "protected gone",
    )
    work, (kind, count, tail) = told["work"], form_of(told["prompt"])
    lead = f"{len(base)} questions, {len(set(told['scenes']))} scenes; text tokens: {work['text']}, of which "
    return [
        "",
        f"### {count} x {kind}: {PROMPTS[kind]}{'' if tail == TAIL else f'; the last {tail} tokens stay'}",
        "",
        f"{lead}{work['protected']} protected.",
        *table(head, body),
        *refused,
    ]


def place(told: dict[str, Any]) -> tuple[int, int, int]:
    """Order of a prompt on the page."""
    kind, count, tail = form_of(told["prompt"])
    return list(PROMPTS).index(kind), count, -tail
