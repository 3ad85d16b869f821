"""Which rows the table of methods has, and what it says of a method that cannot be measured."""

from __future__ import annotations

import pytest

from atp.budget.cost import Workload
from atp.evals.table import settings
from atp.loading import load


def test_rows_are_those_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = load("atp-mini-llava")
    workload = Workload(images=1, text=11, answer=2)
    rows = settings(model, 0.6, workload, ("fastv", "uniform", "lvpruning", "random"))
    assert [name for name, _, _ in rows] == ["atp", "atp-adaptive", "fastv", "uniform", "random/0", "random/1", "random/2"]
    assert "lvpruning: left out, method 'lvpruning' needs weights=" in capsys.readouterr().err
    found = {name: (pruning, remark) for name, pruning, remark in rows}
    assert found["fastv"][1] == "cannot reach 0.6"
    assert 0.6 < found["fastv"][0]["budget"] < 0.75
    assert found["atp-adaptive"][0]["calibration"].name == "adaptive_calibration.json"
    assert found["random/2"][0]["seed"] == 2
