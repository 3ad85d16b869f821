"""calibrate.py on a simulated model whose later scores depend on what earlier steps left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from atp.budget.allocate import allocate
from atp.budget.calibrate import Observed, calibrate, spent, threshold_for
from atp.budget.cost import Workload, count, lengths_of, selection_flops
from atp.budget.solve import solve
from atp.errors import AtpError, InvalidPlan
from atp.plan import Plan, Site, Step

from .test_solve import MINI

WORK = Workload(text=20)
RATERS = {"vision": 1.0, "language": 12.0}


class World:
    """Inputs with latent saliency; scores at a site are a noisy softmax of it over the survivors."""

    def __init__(self, seed: int, inputs: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sharpness = 0.3 + 2 * torch.rand(inputs, 1, generator=generator)
        self.latent = sharpness * torch.randn(inputs, 196, generator=generator)
        self.noise = 0.5 * torch.randn(2, inputs, 196, generator=generator)
        self.runs: list[Plan] = []

    def __call__(self, plan: Plan) -> list[Observed]:
        self.runs.append(plan)
        return [self._one(plan, row) for row in range(len(self.latent))]

    def values(self, row: int, stack: str, alive: Tensor) -> Tensor:
        """Scores of the tokens that are alive."""
        return (self.latent[row] + self.noise[0 if stack == "vision" else 1, row])[alive].softmax(0)

    def _one(self, plan: Plan, row: int) -> Observed:
        alive = torch.arange(196)
        scores: dict[Site, list[Tensor]] = {}
        shares: dict[Site, float] = {}
        for step in plan.steps:
            values = self.values(row, step.site.stack, alive)
            kept = int(allocate(values[None], torch.ones(1, len(alive), dtype=torch.bool), step, torch.tensor([196])))
            scores[step.site] = [values]
            alive = alive[values.topk(kept).indices.sort().values]
            shares[step.site] = kept / 196
        lengths = lengths_of(MINI, WORK, plan, shares)
        flops = count(MINI, WORK, lengths, selection_flops(MINI, WORK, plan, RATERS, lengths)).total
        return Observed(scores, {site: [196] for site in scores}, flops, count(MINI, WORK).total)


def fixed(budget: float) -> Plan:
    return solve(MINI, budget, "atp", WORK, raters=RATERS)


@pytest.mark.parametrize("budget", [0.35, 0.6, 0.85])
def test_mean_flops_meet_the_budget_here_and_on_new_inputs(budget: float) -> None:
    world = World(0, 100)
    plan = calibrate(world, fixed(budget))
    assert plan.budget == budget
    assert all(step.adaptive for step in plan.steps)
    assert budget - 0.005 <= spent(world(plan)) <= budget
    new = World(1, 100)(plan)
    deviation = torch.tensor([one.flops / one.unpruned for one in new]).std()
    assert abs(spent(new) - budget) < 4 * float(deviation) / 100**0.5 + 0.005
    counts = {len(one.scores[plan.steps[-1].site][0]) for one in world(plan)}
    assert len(counts) > 20  # the count is the input's own


def test_keep_is_what_was_measured_and_earlier_steps_are_in_force() -> None:
    world = World(0, 80)
    start = fixed(0.6)
    plan = calibrate(world, start)
    probes = world.runs[: len(start.steps)]
    assert [len(probe.steps) for probe in probes] == [1, 2, 3, 4]
    assert all(step.adaptive for step in probes[-1].steps[:-1])
    assert not probes[-1].steps[-1].adaptive
    observed = world(plan)
    for step, after in zip(plan.steps, plan.steps[1:], strict=False):
        alive = sum(len(one.scores[after.site][0]) for one in observed) / (196 * len(observed))
        assert step.keep == pytest.approx(alive, abs=1e-9)
        assert after.site.stack != step.site.stack or after.keep <= step.keep


def test_without_budget_only_the_shares_count() -> None:
    world = World(2, 100)
    start = replace(fixed(0.6), budget=None)
    plan = calibrate(world, start)
    for step, wanted in zip(plan.steps, start.steps, strict=True):
        assert step.keep == pytest.approx(wanted.keep, abs=0.01)
    assert len(world.runs) == len(start.steps) + 1


def test_fixed_steps_stay_what_was_run() -> None:
    """Their keep is what they do, not only what is expected of them."""
    start = fixed(0.6)
    steps = [replace(step, absolute=step.site.stack == "vision") for step in start.steps]
    world = World(0, 60)
    plan = calibrate(world, replace(start, steps=tuple(steps)))
    assert [step.adaptive for step in plan.steps] == [True, True, False, False]
    assert [step.keep for step in plan.steps[2:]] == [step.keep for step in start.steps[2:]]
    assert any(len(run.steps) == 4 and spent(world(run)) == spent(world(plan)) for run in world.runs)


class Tied(World):
    """Half of the tokens of all inputs have one absolute score, as those of a plain background."""

    def values(self, row: int, stack: str, alive: Tensor) -> Tensor:
        return torch.where(alive % 2 == 0, 0.4, self.latent[row][alive].sigmoid())


@pytest.mark.parametrize("budget", [0.5, 0.6])
def test_tokens_that_are_alike_do_not_leave_a_budget_unspent(budget: float) -> None:
    """No common factor of the thresholds spends it: all that are alike leave at once."""
    world, start = Tied(0, 20), fixed(budget)
    plan = calibrate(world, replace(start, steps=tuple(replace(step, absolute=True) for step in start.steps)))
    assert 0.99 * budget <= spent(world(plan)) <= budget
    assert len(world.runs) <= 4 + 12 + 6 + 1


@pytest.mark.parametrize("seed", range(3))
def test_a_small_budget_is_met_as_nearly_as_a_large_one(seed: int) -> None:
    world = World(seed, 60)
    assert 0.99 * 0.2 <= spent(world(calibrate(world, fixed(0.2)))) <= 0.2


def test_low_counts_pass_a_floor_that_would_forbid_them() -> None:
    start = Plan("atp", (Step(Site("language", 2), 0.01, floor=0.02),))
    step = calibrate(World(0, 60), start).steps[0]
    assert step.floor == 0.005
    assert step.keep == pytest.approx(0.01, abs=0.002)


def test_unreachable_budget_names_the_lowest() -> None:
    with pytest.raises(InvalidPlan, match=r"no scale of the thresholds of 'atp' at language:4 .* lowest found is 0\.8"):
        calibrate(World(0, 20), Plan("atp", (Step(Site("language", 4), 0.5),)), 0.5)


def test_threshold_for_is_the_quantile() -> None:
    rows = [torch.rand(196, generator=torch.Generator().manual_seed(i)) for i in range(30)]
    threshold, share = threshold_for(rows, [196] * 30, Step(Site("vision", 2), 0.3, floor=0.0))
    ratios = torch.cat([row.double() / row.double().mean() for row in rows])
    assert share == pytest.approx(0.3, abs=1 / 196)
    assert float((ratios >= threshold).float().mean()) == pytest.approx(share, abs=2 / (30 * 196))


def test_threshold_for_equal_scores_takes_the_nearest() -> None:
    rows = [torch.ones(10)] * 4
    assert threshold_for(rows, [10] * 4, Step(Site("vision", 2), 0.9, floor=0.0))[1] == 1.0
    assert threshold_for(rows, [10] * 4, Step(Site("vision", 2), 0.2, floor=0.0))[1] == pytest.approx(0.1)


def test_bad_input() -> None:
    def silent(plan: Plan) -> Sequence[Observed]:
        return [Observed({}, {}, 1.0, 2.0)]

    def square(plan: Plan) -> Sequence[Observed]:
        return [Observed({Site("language", 2): [torch.rand(3, 3)]}, {Site("language", 2): [9]}, 1.0, 2.0)]

    start = Plan("atp", (Step(Site("language", 2), 0.5),))
    with pytest.raises(InvalidPlan, match="recorded 0 score rows and 0 starting counts at language:2"):
        calibrate(silent, start)
    with pytest.raises(AtpError, match=r"one vector \[alive\] a row, got shapes \[\[3, 3\]\]"):
        calibrate(square, start)
    with pytest.raises(InvalidPlan, match=r"nothing to calibrate in 'resize'.* got \['pixels:0'\]"):
        calibrate(silent, Plan("resize", (Step(Site("pixels", 0), 0.5),)))
    with pytest.raises(InvalidPlan, match=r"budget is a share in \(0, 1\], got 1.5"):
        calibrate(silent, start, 1.5)
