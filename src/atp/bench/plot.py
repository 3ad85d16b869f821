"""Where the time goes: one bar a side, split by part. Needs matplotlib: `pip install 'atp-vlm[report]'`."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from typing import Any

from atp.bench.clock import PARTS

COLOURS = ("#4269d0", "#9c6bca", "#efb118", "#ff725c", "#c3c7cc")


def bars(result: Mapping[str, Any]) -> str:
    """Draw a benchmark as SVG; an empty string where matplotlib is not installed.

    Args:
        result: as `execute.bench` makes it.
    """
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
        matplotlib: Any = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        return ""
    cases = result["cases"]
    heights = [len(case["sides"]) for case in cases]
    with matplotlib.rc_context({"svg.hashsalt": "atp", "svg.fonttype": "none", "font.size": 9}):
        figure = figures.Figure(figsize=(8.5, 0.8 + sum(0.42 * height + 0.75 for height in heights)), layout="constrained")
        places = figure.subplots(len(cases), 1, squeeze=False, gridspec_kw={"height_ratios": [h + 1 for h in heights]})
        for place, case in zip(places[:, 0], cases, strict=True):
            _draw(place, case)
        places[0, 0].legend(ncols=len(PARTS), frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        places[-1, 0].set_xlabel("seconds, medians; whiskers: quartiles of the total")
        figure.suptitle(f"{result['subject']}: one generation by part", fontsize=10, x=0.01, ha="left")
        made = io.StringIO()
        figure.savefig(made, format="svg", metadata={"Date": None})
    text = made.getvalue()
    return text[text.index("<svg") :]


def _draw(place: Any, case: Mapping[str, Any]) -> None:
    sides = case["sides"][::-1]
    names = [side["side"] for side in sides]
    left = [0.0] * len(sides)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        widths = [max(0.0, side["seconds"][part]["median"]) for side in sides]
        place.barh(names, widths, left=left, color=colour, label=part, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    totals = [side["seconds"]["total"] for side in sides]
    middle = [total["median"] for total in totals]
    below, above = ([abs(total[bound] - total["median"]) for total in totals] for bound in ("low", "high"))
    place.errorbar(middle, names, xerr=(below, above), fmt="none", ecolor="0.2", capsize=2, elinewidth=0.8)
    place.set_title(f"batch {case['batch']}, {case['answer']} answer tokens, {case['device']}", loc="left", fontsize=9)
    place.spines[["top", "right"]].set_visible(False)
