"""Score against counted FLOPs and against milliseconds, one line a method. Needs matplotlib: `pip install 'atp-vlm[report]'`."""

from __future__ import annotations

import importlib
import io
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from atp.evals.harness.settings import REFERENCE

AXES = (("flops_share", "counted FLOPs, share of unpruned"), ("ms", "milliseconds an item"))
Points = dict[str, list[tuple[float, float, float, float]]]


def pareto(task: Mapping[str, Any]) -> str:
    """Draw one task as SVG; an empty string where matplotlib is not installed or nothing was scored.

    Args:
        task: as `report.build` makes it.
    """
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
        matplotlib: Any = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        return ""
    found = [points(task, axis) for axis, _ in AXES]
    if not any(found):
        return ""
    with matplotlib.rc_context({"svg.hashsalt": "atp", "svg.fonttype": "none", "font.size": 9}):
        figure = figures.Figure(figsize=(9.4, 3.6), layout="constrained")
        for place, (_, words), lines in zip(figure.subplots(1, 2), AXES, found, strict=True):
            _draw(place, lines, words, task["metric"])
        figure.suptitle(f"{task['name']}: {task['metric']} with 95 % intervals of the difference to unpruned", fontsize=9)
        made = io.StringIO()
        figure.savefig(made, format="svg", metadata={"Date": None})
    text = made.getvalue()
    return text[text.index("<svg") :]


def points(task: Mapping[str, Any], axis: str) -> Points:
    """Return (x, score, low, high) of every method, by x; bounds are those of the paired difference, around the score."""
    lines: Points = defaultdict(list)
    for row in task["rows"]:
        if row["score"] is None or row[axis] is None:
            continue
        pair = row["against_unpruned"] or {"mean": 0.0, "low": 0.0, "high": 0.0}
        low, high = (row["score"] + pair[bound] - pair["mean"] for bound in ("low", "high"))
        lines[row["name"].split(" ")[0]].append((row[axis], row["score"], low, high))
    return {name: sorted(found) for name, found in lines.items()}


def _draw(place: Any, lines: Points, words: str, metric: str) -> None:
    base = lines.get(REFERENCE, [])
    for name, found in lines.items():
        x, y, low, high = zip(*found, strict=True)
        below, above = ([abs(b - v) for b, v in zip(bounds, y, strict=True)] for bounds in (low, high))
        style = {"fmt": "k*", "markersize": 9} if name == REFERENCE else {"fmt": "o-", "markersize": 4, "linewidth": 1}
        place.errorbar(
            x, y, yerr=(below, above), capsize=2, elinewidth=0.8, label="unpruned" if name == REFERENCE else name, **style
        )
    for _, score, *_ in base:
        place.axhline(score, color="0.7", linewidth=0.8, linestyle=":")
    place.set_xlabel(words)
    place.set_ylabel(metric)
    place.grid(alpha=0.25)
    place.legend(frameon=False, fontsize=8)
