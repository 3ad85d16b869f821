"""Timings made by hand."""

from __future__ import annotations

from atp.bench.measure import Sample
from atp.budget.cost import Flops
from atp.engine import Report
from atp.plan import Plan

FULL, LESS = Flops(600.0, 10.0, 380.0, 10.0), Flops(300.0, 5.0, 170.0, 10.0, 15.0)


def report() -> Report:
    """A run of a quarter second at half of the FLOPs."""
    return Report("atp", Plan("atp"), LESS, FULL, 1, 1, {}, 20.0, 0.25)


def sample(vision: float, prefill: float, decode: float, pruned: bool = False) -> Sample:
    seconds = {"vision": vision, "connector": 0.0, "prefill": prefill, "decode": decode, "other": 0.0}
    seconds["total"] = vision + prefill + decode
    hooks = {"vision": 0.1, "prefill": 0.2, "decode": 0.04} if pruned else {}
    return Sample(seconds, 0.25 * pruned, hooks, 7, 9, report() if pruned else None, (LESS, FULL) if pruned else None)
