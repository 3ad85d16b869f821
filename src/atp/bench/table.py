"""A benchmark as lines of text. Knows only the plain values that `execute.bench` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atp.bench.clock import PARTS

LEGEND = (
    "selecting and hooks (gathers, scatters, Python): the host's time before the first token, inside the parts; a step: what "
    "hooks cost each decoded token; realised = speed-up / ideal, what the FLOPs promise"
)
SLACK = 0.5
"""Ours: a load that the cores bear besides the threads that measure."""

TIMES = ("side", *PARTS, "total", "quartiles", "selecting", "hooks", "a step", "tokens/s", "peak", "KV")
GAINS = ("side", "FLOPs", "span", "speed-up", "quartiles", "ideal", "realised", "")


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a benchmark."""
    machine = result["machine"]
    weights = "random weights" if result["settings"]["arch"] else "its own weights"
    yield (
        f"{result['subject']} ({weights}), torch {machine['torch']}, {machine['threads']} threads on {machine['cores']} cores, "
        f"{machine['vectors']}"
    )
    load, cores = machine["load"], machine["cores"]
    if load is not None and load + machine["threads"] > cores + SLACK:
        yield f"note: load {load:.1f} before the start: other processes had the {cores} cores too. Repeat it on an idle machine"
        if machine["threads"] > 1:
            yield "or with --threads 1: threads that wait for each other are many times slower then."
    for case in result["cases"]:
        yield ""
        yield from _case(case)
    if "profile" in result:
        own = result["profile"]
        yield ""
        yield (
            f"profile of one prefill with {own['side']}: {own['file']}; {milliseconds(own['seconds'])} of it, "
            f"{milliseconds(own['own_seconds'])} ({own['own_share']:.1%}) in {own['hooks']} hooks of ours"
        )
    yield ""
    yield LEGEND
    yield f"rule: {result['rule']}"


def _case(case: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{case['device']}, {case['dtype']}, batch {case['batch']}: {case['patches']} patches and {case['visual']} visual + "
        f"{case['text']} text tokens a prompt, {case['answer']} answer tokens; {case['rounds']} rounds, noise {case['noise']:.1%}"
    )
    yield from _aligned([TIMES, *(_times(side) for side in case["sides"])])
    rows = [row for side in case["sides"] if "gains" in side for row in _gains(side)]
    if rows:
        yield ""
        yield from _aligned([GAINS, *rows])
    if case.get("quantised_bytes"):
        yield f"weights: {size(case['weight_bytes'])}, quantised {size(case['quantised_bytes'])}"
    own = [side["side"] for side in case["sides"] if any(step["threshold"] is not None for step in _steps(side))]
    if own:
        yield f"{', '.join(own)}: counts per input; their FLOPs are those of these pictures, a budget is met on average over many"
    for name, tiles in case.get("tiles", {}).items():
        yield f"{name}: a smaller image, {tiles} tiles instead of {case['images']}"
    for name, (whole, grid) in case.get("grids", {}).items():
        yield f"{name}: a smaller image, {grid[0]} x {grid[1]} visual tokens instead of {whole[0]} x {whole[1]}"
    for name, (scale, tokens, whole) in case.get("scales", {}).items():
        yield f"{name}: a smaller image, {scale:.0%} of its width and height: a prompt of {tokens} tokens instead of {whole}"
    for name, reason in case["left_out"].items():
        yield f"{name} left out: {reason}"


def _steps(side: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    steps: Sequence[Mapping[str, Any]] = side.get("plan", {}).get("steps", ())
    return steps


def _times(side: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = side["seconds"]
    total = seconds["total"]
    return (
        side["side"],
        *(milliseconds(seconds[part]["median"]) for part in (*PARTS, "total")),
        f"{milliseconds(total['low'])} - {milliseconds(total['high'])}",
        milliseconds(side["selection_seconds"]),
        milliseconds(side["hooks"]["seconds"]),
        f"{1e6 * side['hooks']['step_seconds']:.0f} us",
        f"{side['tokens_per_second']:.3g}",
        size(side["peak_bytes"]),
        size(side["kv_bytes"]),
    )


def _gains(side: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for number, (span, gain) in enumerate(side["gains"].items()):
        measured, last = gain["measured"], number == len(side["gains"]) - 1
        yield (
            "" if number else side["side"],
            "" if number else f"{side['flops_share']:.1%}",
            span,
            f"x{measured['median']:.2f}",
            f"{measured['low']:.2f} - {measured['high']:.2f}",
            f"x{gain['ideal']:.2f}",
            f"{gain['realised']:.0%}",
            side["verdict"] if last else "",
        )


def milliseconds(seconds: float) -> str:
    """Write a time, e.g. "12.3 ms"."""
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{1000 * seconds:.0f} ms"


def size(count: int | None) -> str:
    """Write bytes, e.g. "1.5 GB"; "-" where they are not known."""
    if count is None:
        return "-"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows with columns of equal width, the first on the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
