"""The tables of `docs/performance.md`, from results as `atp bench` writes them. Plain values in, rows of text out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

WORTH = (1.5, 1.25, 1.1)
"""Ours: the speed-ups whose longest answer is told."""

Result = Mapping[str, Any]
Rows = Iterator[Sequence[str]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table; an empty string without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def times(gain: Result) -> str:
    """Write a speed-up."""
    return f"x{gain['measured']['median']:.2f}"


def seconds(value: float) -> str:
    """Write a time."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def size(count: int | None) -> str:
    """Write bytes."""
    return "-" if count is None else f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def about(result: Result, case: Result) -> list[str]:
    """Model, dtype, batch and answer of a case."""
    return [result["subject"], case["dtype"], str(case["batch"]), str(case["answer"])]


def prompt(side: Result) -> float:
    """Seconds before the first token."""
    return float(sum(side["seconds"][part]["median"] for part in ("vision", "connector", "prefill")))


def each(results: Sequence[Result]) -> Iterator[tuple[Result, Result]]:
    """Yield every case with the result that it is in."""
    return ((result, case) for result in results for case in result["cases"])


SPEED = (
    "model",
    "dtype",
    "batch",
    "answer",
    "side",
    "FLOPs",
    "image and prompt",
    "ideal",
    "realised",
    "end to end",
    "quartiles",
    "",
)


def speed(results: Sequence[Result]) -> Rows:
    """Every pruned side against the unpruned one of its case."""
    for result, case in each(results):
        for number, side in enumerate(case["sides"][1:]):
            first, whole = side["gains"]["vision+prefill"], side["gains"]["end to end"]
            yield [
                *(about(result, case) if not number else [""] * 4),
                side["side"], f"{side['flops_share']:.3f}", times(first), f"x{first['ideal']:.2f}", f"{first['realised']:.2f}",
                f"**{times(whole)}**", f"{whole['measured']['low']:.2f} - {whole['measured']['high']:.2f}", side["verdict"],
            ]  # fmt: skip


SPLIT = (
    "model",
    "dtype",
    "batch",
    "answer",
    "side",
    "tower",
    "connector",
    "prefill",
    "decode",
    "rest",
    "total",
    "tokens/s",
    "peak",
    "KV",
)


def split(results: Sequence[Result]) -> Rows:
    """Where the time of every side goes, and its bytes."""
    for result, case in each(results):
        for number, side in enumerate(case["sides"]):
            parts = ("vision", "connector", "prefill", "decode", "other", "total")
            yield [
                *(about(result, case) if not number else [""] * 4),
                side["side"], *(seconds(side["seconds"][part]["median"]) for part in parts),
                f"{side['tokens_per_second']:.3g}", size(side["peak_bytes"]), size(side["kv_bytes"]),
            ]  # fmt: skip


HOOKS = (
    "model",
    "dtype",
    "batch",
    "side",
    "selecting",
    "hooks",
    "both, of its image and prompt",
    "a decoded token",
    "lost to the ideal",
)


def overhead(results: Sequence[Result]) -> Rows:
    """What pruning itself costs: inside its hooks, and as what is missing from the ideal."""
    for result, case in each(results):
        for number, side in enumerate(case["sides"][1:]):
            own, gain = side["hooks"], side["gains"]["vision+prefill"]
            yield [
                *(about(result, case)[:3] if not number else [""] * 3),
                side["side"], seconds(side["selection_seconds"]), seconds(own["seconds"]), f"{own['share']:.1%}",
                f"{1e6 * own['step_seconds']:.0f} us", f"{1 / gain['realised'] - 1:+.1%}",
            ]  # fmt: skip


def longest(base: Result, side: Result, answer: int, worth: float) -> float:
    """Most answer tokens at which a side is still `worth` times as fast, by the medians of one measured case.

    What every further token costs is the measured mean of a decode step; infinite where even endless answers are.
    """
    saved = base["seconds"]["total"]["median"] - worth * side["seconds"]["total"]["median"]
    steps = answer - 1
    one, two = (own["seconds"]["decode"]["median"] / max(1, steps) for own in (base, side))
    lost = worth * two - one  # per further token
    if lost <= 0:
        return math.inf if saved >= 0 else 0.0
    return max(0.0, answer + saved / lost)


EVEN = ("model", "dtype", "batch", "side", "first token", *(f"x{worth:g} up to" for worth in WORTH))


def break_even(results: Sequence[Result]) -> Rows:
    """How long an answer may be for a speed-up, of every case whose answer is the longest measured."""
    for result in results:
        most = max(case["answer"] for case in result["cases"])
        for case in result["cases"]:
            if case["answer"] != most or most < 3:
                continue
            base = case["sides"][0]
            for side in case["sides"][1:]:
                reach = [longest(base, side, case["answer"], worth) for worth in WORTH]
                told = ["any length" if math.isinf(n) else f"{n:.0f} tokens" if n >= 1 else "never" for n in reach]
                yield [*about(result, case)[:3], side["side"], f"x{prompt(base) / prompt(side):.2f}", *told]


def losses(results: Sequence[Result]) -> list[str]:
    """Sentences on the cases in which pruning did not pay, and on those that a smaller image won."""
    found = []
    for result, case in each(results):
        sides = {side["side"]: side for side in case["sides"][1:]}
        place = f"{result['subject']}, {case['dtype']}, batch {case['batch']}, {case['answer']} answer tokens"
        for name, side in sides.items():
            reached = side["gains"]["end to end"]["measured"]["median"]
            if not name.startswith("resize") and side["verdict"] != "faster":
                found.append(f"- {place}: {name} x{reached:.2f} ({side['verdict']}).")
            twin = sides.get(f"resize {name.removeprefix('atp ')}")
            if name.startswith("atp ") and twin is not None:
                other = twin["gains"]["end to end"]["measured"]["median"]
                if other > reached:
                    found.append(f"- {place}: {twin['side']} x{other:.2f} against x{reached:.2f} of {name}.")
    return found


def missing(results: Sequence[Result]) -> list[str]:
    """Sentences on sides that a model cannot have, and on smaller images that are fewer tiles."""
    found: dict[str, None] = {}
    for result, case in each(results):
        for name, reason in case["left_out"].items():
            found[f"- {result['subject']}, {case['answer']} answer tokens: no {name}: {reason}."] = None
        for name, tiles in case["tiles"].items():
            found[f"- {result['subject']}: {name} is a smaller image, {tiles} tiles instead of {case['images']}."] = None
        for name, (whole, grid) in case.get("grids", {}).items():
            tokens = f"{grid[0]} x {grid[1]} visual tokens instead of {whole[0]} x {whole[1]}"
            found[f"- {result['subject']}: {name} is a smaller image, {tokens}."] = None
        for name, (scale, tokens, whole) in case.get("scales", {}).items():
            size = f"{scale:.0%} of its width and height, {tokens} tokens of image and text instead of {whole}"
            found[f"- {result['subject']}: {name} is a smaller image, {size}."] = None
    return list(found)


GROWTH = ("visual tokens", "unpruned", "side", "time", "speed-up", "ideal", "realised", "")


def growth(results: Sequence[Result]) -> Rows:
    """Time by visual tokens."""
    for _, case in each(results):
        base = case["sides"][0]["seconds"]["total"]["median"]
        for number, side in enumerate(case["sides"][1:]):
            gain = side["gains"]["end to end"]
            first = [str(case["visual"]), seconds(base)] if not number else ["", ""]
            took = seconds(side["seconds"]["total"]["median"])
            yield [*first, side["side"], took, times(gain), f"x{gain['ideal']:.2f}", f"{gain['realised']:.2f}", side["verdict"]]


def first_gain(results: Sequence[Result]) -> str:
    """Say from how many visual tokens on pruning was faster in the measured growth."""
    cases = sorted((case for _, case in each(results)), key=lambda case: case["visual"])
    if not cases:
        return ""
    told = []
    for place, side in enumerate(cases[0]["sides"][1:], 1):
        slow = [case["visual"] for case in cases if case["sides"][place]["verdict"] != "faster"]
        later = [case["visual"] for case in cases if case["visual"] > max(slow, default=0)]
        word = (
            f"faster at every measured size from {later[0]} visual tokens on"
            if later
            else "not surely faster at any measured size"
        )
        told.append(f"- {side['side']}: {word}.")
    return "\n".join(told)


QUANT = (
    "model", "dtype", "batch", "answer", "side", "weights", "image and prompt", "decode", "total", "against unpruned",
    "against the same weights", "peak",
)  # fmt: skip


def quant(results: Sequence[Result]) -> Rows:
    """Quantised and pruned, each alone and both."""
    for result, case in each(results):
        for number, side in enumerate(case["sides"]):
            gain, word = side.get("gains", {}).get("end to end"), str(result["settings"]["quant"])
            small = side["side"].startswith(word)
            alike = next(one for one in case["sides"] if one["side"] == (word if small else "unpruned"))
            own = side["seconds"]["total"]["median"]
            yield [
                *(about(result, case) if not number else [""] * 4),
                side["side"], size(case["quantised_bytes" if small else "weight_bytes"]), seconds(prompt(side)),
                seconds(side["seconds"]["decode"]["median"]), seconds(own), times(gain) if gain else "",
                "" if side is alike else f"x{alike['seconds']['total']['median'] / own:.2f}", size(side["peak_bytes"]),
            ]  # fmt: skip


RIGHT = ("weights", "FLOPs", "accuracy", "minus unpruned", "answers that it changed")


def accuracy(results: Sequence[Result]) -> Rows:
    """What quantising and pruning keep on the shipped model."""
    for result in results:
        for row in result["rows"]:
            low, high = row["against_unpruned"]["low"], row["against_unpruned"]["high"]
            less = "" if row["name"] == "unpruned" else f"{row['against_unpruned']['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
            changed = "" if row["changed"] is None else f"{row['changed']:.1f} %"
            yield [row["name"], f"{row['flops_ratio']:.3f}", f"{row['accuracy']:.2f}", less, changed]


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Sequence[Result]], Rows]]] = {
    "speed": (SPEED, speed), "split": (SPLIT, split), "overhead": (HOOKS, overhead), "even": (EVEN, break_even),
    "growth": (GROWTH, growth), "quant": (QUANT, quant), "accuracy": (RIGHT, accuracy),
}  # fmt: skip
