"""Plans are solved for the task at hand, so that settings are compared at equal counted FLOPs, whatever they answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atp.budget.calibration import Calibration
from atp.budget.cost import Workload
from atp.engine import planning, prune
from atp.errors import InvalidPlan
from atp.evals.harness import gather, header, report
from atp.evals.harness.records import read
from atp.loading import load, resolve
from atp.methods import METHODS
from atp.plan import Plan

QUESTION, CAPTION, LONG = Workload(1, 11, 2), Workload(1, 7, 22), Workload(1, 60, 30)
BUDGETS = (0.6, 0.5, 0.4)


@pytest.fixture(scope="module")
def shipped() -> Any:
    """The shipped model, with a calibration of its own that was solved for questions."""
    return load("atp-mini-llava")[0]


def share(model: Any, plan: Plan, workload: Workload) -> float:
    """What a plan costs with a workload, by the engine's own prices."""
    with prune(model, plan=plan) as run:
        prices = planning.prices_of(run.adapter, METHODS.get(plan.method)(), workload, planning.Budget(0.5), {})
    return prices.of(plan, "share")


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("workload", [QUESTION, CAPTION, LONG], ids=["question", "caption", "long"])
def test_a_calibration_for_questions_is_not_used_for_captions_as_it_is(shipped: Any, budget: float, workload: Workload) -> None:
    with prune(shipped, budget=budget) as run:
        own = run.plan
    with prune(shipped, budget=budget, workload=workload) as run:
        plan = run.plan
    assert plan.budget == budget
    assert share(shipped, plan, workload) == pytest.approx(budget, rel=0.01)
    drifts = abs(share(shipped, own, workload) - budget) > 0.01 * budget
    assert (plan.steps != own.steps) == drifts
    assert drifts == (workload is not QUESTION)


def test_counts_between_calibrated_budgets_keep_the_shape_that_was_tuned(shipped: Any) -> None:
    with prune(shipped, budget=0.6, workload=CAPTION) as run:
        plan = run.plan
    table = Calibration.load(Path(resolve("atp-mini-llava")) / "atp_calibration.json")
    near = [table.plan_for(one) for one in (0.57, 0.6)]
    for step, low, high in zip(plan.steps, near[0].steps, near[1].steps, strict=True):
        assert step.site == low.site and low.keep < step.keep < high.keep


def test_a_given_calibration_of_another_length_is_refused_where_it_cannot_follow(shipped: Any) -> None:
    table = Calibration.load(Path(resolve("atp-mini-llava")) / "atp_calibration.json")
    one = replace(table, plans=tuple(plan for plan in table.plans if plan.budget == 0.6))
    with prune(shipped, budget=0.6, calibration=one, workload=QUESTION) as run:
        assert run.plan == one.plans[0]
    with prune(shipped, budget=0.6, calibration=one) as run:  # no length was named: that of the calibration
        assert run.plan == one.plans[0]
    says = r"budget 0.6 is outside this calibration.*from 0\.6\d* to 0\.6\d* .*with 60 text tokens and answers of 30"
    with pytest.raises(InvalidPlan, match=says), prune(shipped, budget=0.6, calibration=one, workload=LONG):
        pass


def test_captions_of_any_length_are_counted_alike(evaluate: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"model": "atp-mini-llava", "tasks": ("coco",), "corruptions": (), "limit": 3, "longest": 8}
    done = evaluate(tmp_path, **asked, methods=("atp", "tome", "uniform"), budgets=(0.6,))
    found = gather.gather([tmp_path])
    told = report.build(found, {})["tasks"][0]
    assert [row["flops_share"] for row in told["rows"][1:]] == [pytest.approx(0.6, rel=0.01)] * 3
    work = header.load(tmp_path)["solved_for"]["coco"]
    assert work["images"] == 1 and work["answer"] > 8  # longer than what was said
    assert {json.dumps(record["solved_for"]) for record in read(done.file)[0]} == {json.dumps(work)}
