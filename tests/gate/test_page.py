"""The verdict on trained modules follows from the interval, and from nothing else but that something was learnt."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

RUNS = Path(__file__).parents[2] / "runs"


@pytest.mark.parametrize(
    ("low", "high", "best", "says"),
    [(0.1, 2.0, 9, "beats"), (-2.0, -0.1, 9, "not worth it"), (-1.0, 1.0, 9, "undecided"), (0.0, 0.0, 0, "not worth it")],
)
def test_the_interval_decides(low: float, high: float, best: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUNS))
    assert runpy.run_path(str(RUNS / "gate.py"))["verdict"](low, high, best) == says
