"""calibration.py: the table of plans, its file and the fingerprint of the model it belongs to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atp.budget.calibration import Calibration, Fingerprint, fingerprint
from atp.budget.cost import Workload
from atp.errors import BadInput, InvalidPlan
from atp.plan import Plan, Site, Step

from .models import build

MARK = Fingerprint("abc", (0.5, -0.25))


def adaptive(budget: float, keep: float, threshold: float | None) -> Plan:
    steps = (Step(Site("vision", 2), keep, threshold), Step(Site("language", 3), keep / 2, threshold, floor=0.01))
    return Plan("atp", steps, {"alpha": 0.7}, budget)


TABLE = Calibration(
    (adaptive(0.8, 0.8, 0.4), adaptive(0.4, 0.2, 1.6), adaptive(0.6, 0.5, 1.0)), MARK, Workload(1, 20, 2), 200, "seed 3"
)


def test_exact_and_between() -> None:
    assert TABLE.reach == (0.4, 0.8)
    assert TABLE.method == "atp"
    assert TABLE.plan_for(0.6) == adaptive(0.6, 0.5, 1.0)
    plan = TABLE.plan_for(0.65)
    assert plan.budget == 0.65
    assert plan.options == {"alpha": 0.7}
    assert [step.keep for step in plan.steps] == pytest.approx([0.575, 0.2875])
    assert [step.threshold for step in plan.steps] == pytest.approx([0.85, 0.85])
    assert plan.steps[1].floor == pytest.approx(0.01)
    assert TABLE.plan_for(1.0).steps == ()


@pytest.mark.parametrize("budget", [0.39, 0.9])
def test_outside_says_the_range(budget: float) -> None:
    with pytest.raises(
        InvalidPlan, match=rf"budget {budget} is outside this calibration, which reaches from 0.4 to 0.8.*leave calibration= away"
    ):
        TABLE.plan_for(budget)


@pytest.mark.parametrize("budget", [0, 1.2, math.nan, "0.6"])
def test_not_a_budget(budget: object) -> None:
    with pytest.raises(InvalidPlan, match=r"budget is a share in \(0, 1\]"):
        TABLE.plan_for(budget)  # type: ignore[arg-type]


def test_fixed_neighbours_may_have_other_sites() -> None:
    """Where one has no step, nothing leaves there: an even path from two sites to four."""
    early = Plan("atp", (Step(Site("vision", 0), 0.4), Step(Site("language", 2), 0.1)), {}, 0.25)
    late = Plan("atp", (Step(Site("vision", 0), 0.8), Step(Site("vision", 1), 0.6), Step(Site("language", 4), 0.2)), {}, 0.45)
    table = Calibration((early, late), MARK)
    steps = {str(step.site): step.keep for step in table.plan_for(0.35).steps}
    assert steps == pytest.approx({"vision:0": 0.6, "vision:1": 0.5, "language:2": 0.55, "language:4": 0.15})
    assert table.plan_for(0.25) == early
    assert table.plan_for(0.45) == late


def test_neighbours_with_other_sites() -> None:
    """Thresholds of other sites have no mean: the lower plan, which stays within the budget."""
    low = adaptive(0.4, 0.2, 1.6)
    for high in (Plan("atp", (Step(Site("vision", 2), 0.5, 1.0),), {"alpha": 0.7}, 0.6), adaptive(0.6, 0.5, None)):
        table = replace(TABLE, plans=(low, high))
        assert table.plan_for(0.5) == low


def test_table_is_of_one_method() -> None:
    with pytest.raises(InvalidPlan, match="at least one plan, each with its budget"):
        Calibration((), MARK)
    with pytest.raises(InvalidPlan, match=r"got two for 0.6"):
        Calibration((adaptive(0.6, 0.5, 1.0), adaptive(0.6, 0.4, 1.0)), MARK)
    with pytest.raises(InvalidPlan, match=r"one method with the same options, got 'atp' .* and 'mine'"):
        Calibration((adaptive(0.6, 0.5, 1.0), replace(adaptive(0.7, 0.5, 1.0), method="mine")), MARK)


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "atp_calibration.json"
    TABLE.save(path)
    assert Calibration.load(path) == TABLE


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    with pytest.raises(BadInput, match=r"cannot read the calibration .*bad.json"):
        Calibration.load(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="cannot read the calibration"):
        Calibration.load(path)
    path.write_text('{"method": "atp", "steps": []}', encoding="utf-8")
    with pytest.raises(BadInput, match="is no calibration: expected format 'atp-calibration-1', got None"):
        Calibration.load(path)
    TABLE.save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    with pytest.raises(BadInput, match=rf"cannot write the calibration '{tmp_path}': Is a directory; choose another file"):
        TABLE.save(tmp_path)
    for key in ("fingerprint", "plans", "workload"):
        path.write_text(json.dumps({k: v for k, v in data.items() if k != key}), encoding="utf-8")
        with pytest.raises(BadInput, match=f"is damaged .*{key}.*calibrate the model again"):
            Calibration.load(path)


def test_fingerprint_knows_the_weights_in_every_dtype() -> None:
    model = build("clip-llama")
    mark = fingerprint(model.named_parameters())
    assert len(mark.sample) == 48
    table = replace(TABLE, fingerprint=mark)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        table.check(fingerprint(build("clip-llama").to(dtype).named_parameters()))
    other = build("siglip-qwen2")
    with pytest.raises(InvalidPlan, match=r"made with another model: this one has other sizes .* Calibrate this model"):
        table.plan_for(0.6, fingerprint(other.named_parameters()))
    with torch.no_grad():
        model.model.language_model.layers[2].mlp.up_proj.weight.mul_(1.2)
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "vision" not in name:
                weight.add_(0.01)
    with pytest.raises(InvalidPlan, match="the same sizes but other weights"):
        table.check(fingerprint(model.named_parameters()))
