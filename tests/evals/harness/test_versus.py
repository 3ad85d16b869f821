"""A method against others, on entries written by hand."""

from __future__ import annotations

import pytest

from atp.evals.harness.gather import PARTS, Entry, Gathered
from atp.evals.harness.versus import Versus, tally, versus
from atp.evals.stats import Interval


def entries(scores: str, flops: float) -> dict[str, Entry]:
    """Items 0, 1, ... each of its own image."""
    parts = dict.fromkeys(PARTS, 0.0) | {"prefill": flops}
    batch = {"size": 1, "seconds": 1.0, "flops": parts, "flops_unpruned": {"total": 100.0}, "equivalent_tokens": 1.0}
    return {
        str(n): Entry.of(
            {"answer": "", "scores": {"accuracy": float(value)}, "image": str(n), "nan": 0, "kind": "k", "batch": batch}
        )
        for n, value in enumerate(scores)
    }


def cell(method: str, budget: float | None) -> dict[str, object]:
    return {"method": method, "budget": budget}


@pytest.fixture
def found() -> Gathered:
    cells = {
        "none": cell("none", 1.0),
        "atp 0.5": cell("atp", 0.5),
        "random 0.5": cell("random", 0.5),
        "tome 0.5": cell("tome", 0.5),
        "fastv 0.5": cell("fastv", 0.5) | {"refused": "out of reach", "lowest": 0.68},
        "plan:mine": cell("plan:mine", None),
    }
    told = {
        "none": entries("11111111", 100.0),
        "atp 0.5": entries("11111111", 50.0),
        "random 0.5": entries("0000000", 50.4),  # item 7 was not answered
        "tome 0.5": entries("11111110", 49.0),
        "plan:mine": entries("00000000", 50.0),
    }
    return Gathered({"items": {"vqav2": {}}, "cells": {"vqav2": cells}}, {("vqav2", "none"): told})


def test_every_other_method_at_the_same_budget(found: Gathered) -> None:
    random, tome = versus(found)
    assert (random.other, random.budget, random.items, random.metric) == ("random", 0.5, 7, "accuracy")
    assert random.gap == Interval(100.0, 100.0, 100.0)
    assert (random.verdict, random.equal) == ("win", True)
    assert (tome.gap.mean, tome.gap.low, tome.verdict) == (12.5, 0.0, "tie")
    assert (tome.flops, tome.other_flops, tome.equal) == (0.5, 0.49, False)
    assert tally(versus(found)) == {"win": 1, "tie": 1, "loss": 0}
    assert [one.verdict for one in versus(found, "random")] == ["loss", "loss"]


def test_fewer_hallucinations_win() -> None:
    gap = Interval(-5.0, -8.0, -2.0)
    one = Versus("chair", 0.5, "random", "chair_s", gap, 10, 0.5, 0.5)
    assert one.verdict == "win"
    assert Versus("vqav2", 0.5, "random", "accuracy", gap, 10, 0.5, 0.5).verdict == "loss"
