"""A pruned model's FLOPs as torch counts them = what cost.py expects of the plan = what the run reports."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atp.budget.calibrate import calibrate, observed, spent
from atp.budget.cost import Workload, count, lengths_of, rater_count, selection_flops
from atp.budget.solve import RATERS, solve
from atp.engine import prune
from atp.plan import Plan, Site, Step

from .models import MAKES, VOCAB, build, inputs, shape_of

TEXT, ANSWER = 9, 3
FIXED = {"vision:1": 0.75, "vision:2": 0.5, "language:1": 0.375, "language:3": 0.125}


def fixed(method: str, stack: str = "") -> Plan:
    steps = tuple(Step(Site.parse(site), keep) for site, keep in FIXED.items() if site.startswith(stack))
    return Plan(method, steps, {"merge": False} if method == "atp" else {})  # `count` knows no method's own arithmetic


@pytest.mark.parametrize("make", sorted(MAKES))
@pytest.mark.parametrize(
    "plan",
    [fixed("atp"), fixed("random"), fixed("fastv", "language"), fixed("atp", "vision")],
    ids=["both", "random", "fastv", "tower"],
)
def test_pruned_generate(make: str, plan: Plan) -> None:
    shape, model = shape_of(make), build(make)
    work = Workload(1, TEXT, ANSWER)
    names = {"fastv": {"language": ("last",)}}.get(plan.method, RATERS[plan.method])
    raters = {stack: rater_count(kinds, shape, work, stack) for stack, kinds in names.items()}
    lengths = lengths_of(shape, work, plan)
    expected = count(shape, work, lengths, selection_flops(shape, work, plan, raters, lengths))
    batch = inputs(shape, TEXT)
    with prune(model, plan=plan) as run, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.generate(**batch, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False)
    assert counter.get_total_flops() == expected.total
    assert run.report().flops.to_dict() == pytest.approx(expected.to_dict(), rel=1e-12)
    assert run.report().flops_unpruned == count(shape, work)
    if plan.method in ("atp", "fastv"):
        assert expected.selection > 0


@pytest.mark.parametrize("make", sorted(MAKES))
def test_smaller_image(make: str) -> None:
    shape, model = shape_of(make), build(make)
    work = Workload(1, TEXT, ANSWER)
    plan = Plan("resize", (Step(Site("pixels", 0), 9 / 16),))
    with prune(model, plan=plan) as run, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.generate(**inputs(shape, TEXT), max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False)
    expected = count(shape, work, lengths_of(shape, work, plan)).total
    assert counter.get_total_flops() == expected
    assert run.report().flops.total == pytest.approx(expected, rel=1e-12)


def test_solved_budget_is_the_measured_one() -> None:
    make = "clip-llama"
    shape, model = shape_of(make), build(make)
    batch, work = inputs(shape, TEXT), Workload(1, TEXT, ANSWER)
    with prune(model, budget=0.7, workload=work) as run:
        model.generate(**batch, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False)
    assert run.report().ratio == pytest.approx(0.7, abs=0.02)  # 16 patches: a token is a large step
    assert run.report().ratio <= 0.7


def test_calibrate_through_the_engine() -> None:
    make = "clip-llama"
    shape, model = shape_of(make), build(make)
    generator = torch.Generator().manual_seed(3)
    batches = [inputs(shape, TEXT) for _ in range(12)]
    for batch in batches:
        batch["pixel_values"] = 3 * torch.randn(batch["pixel_values"].shape, generator=generator)
        batch["input_ids"][:, shape.visual :] = torch.randint(3, VOCAB - 1, (1, TEXT), generator=generator)

    def run(plan: Plan) -> list:  # type: ignore[type-arg]
        with prune(model, plan=plan, record_all_scores=True) as running, torch.no_grad():
            for batch in batches:
                model(**batch, logits_to_keep=1)
        report = running.report()
        return [observed(running.trace.records, report.flops.total, report.flops_unpruned.total)]

    start = solve(shape, 0.7, "atp", Workload(1, TEXT, 1))
    plan = calibrate(run, start, tolerance=0.02)
    assert all(step.adaptive for step in plan.steps)
    assert 0.68 <= spent(run(plan)) <= 0.7
