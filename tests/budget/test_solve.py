"""solve.py: budgets met from below, to the token; the lowest reachable budget is named and works."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from atp.budget.cost import Workload, check_sites, lengths_of, rater_count
from atp.budget.shape import ModelShape, StackShape
from atp.budget.solve import RATERS, default_sites, plan_cost, solve
from atp.errors import InvalidPlan
from atp.plan import Plan, Site, Step

from .models import shape_of
from .test_cost import LLAVA_7B

MINI = ModelShape(
    vision=StackShape(6, 192, 6, 6, 32, 768, 2),
    patches=196,
    prefix=1,
    patch_inputs=192,
    connector=((192, 256), (256, 256)),
    visual=196,
    language=StackShape(6, 256, 8, 4, 32, 704, 3),
    vocab=1200,
)
SHAPES = {"7b": LLAVA_7B, "mini": MINI, "full": shape_of("clip-full-mistral"), "siglip": shape_of("siglip-qwen2")}


def cost(shape: ModelShape, plan: Plan, workload: Workload) -> float:
    names = RATERS.get(plan.method, RATERS["atp"])
    return plan_cost(shape, workload, plan, {stack: rater_count(n, shape, workload, stack) for stack, n in names.items()})


@pytest.mark.parametrize("name", ["7b", "mini"])
@pytest.mark.parametrize("method", ["atp", "random", "uniform", "fastv"])
@pytest.mark.parametrize("budget", [0.95, 0.8, 0.6, 0.45, 0.3])
@pytest.mark.parametrize("workload", [Workload(), Workload(2, 100, 20)], ids=["short", "long"])
def test_meets_the_budget_to_the_token(name: str, method: str, budget: float, workload: Workload) -> None:
    shape = SHAPES[name]
    try:
        plan = solve(shape, budget, method, workload)
    except InvalidPlan as error:
        lowest = float(re.search(r"lowest reachable is ([\d.]+)", str(error))[1])  # type: ignore[index]
        assert lowest > budget
        return
    assert plan.method == method
    assert plan.budget == budget
    spent = cost(shape, plan, workload)
    assert budget - 0.005 < spent <= budget
    grown = []
    for index, step in enumerate(plan.steps):
        started = shape.visual if step.site.stack == "language" else shape.patches
        kept = step.keep * started
        assert kept == pytest.approx(round(kept))
        assert kept >= 1
        more = [*plan.steps]
        more[index] = Step(step.site, min(1.0, (round(kept) + 1) / started))
        grown.append(more)
    assert all(not nested(shape, more) or cost(shape, Plan(method, tuple(more)), workload) > budget for more in grown)


def nested(shape: ModelShape, steps: list[Step]) -> bool:
    keeps = [round(step.keep * 576) for step in steps]
    return all(first >= second for first, second in itertools.pairwise(keeps)) and steps[0].keep < 1


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("method", ["atp", "random", "fastv", "resize", "somebody-elses"])
def test_lowest_reachable_is_named_and_works(name: str, method: str) -> None:
    shape = SHAPES[name]
    with pytest.raises(InvalidPlan, match="cannot be reached by method") as caught:
        solve(shape, 0.01, method)
    lowest = float(re.search(r"use budget=([\d.]+)", str(caught.value))[1])  # type: ignore[index]
    assert cost(shape, solve(shape, lowest, method), Workload()) <= lowest
    with pytest.raises(InvalidPlan, match=f"lowest reachable is {lowest:.2f}"):
        solve(shape, lowest - 0.011, method)


@pytest.mark.parametrize("budget", [0, -0.5, 1.01, math.nan, math.inf, "1.5", "0", True, None])
def test_budget_outside(budget: object) -> None:
    with pytest.raises(InvalidPlan, match=r"budget is a share in \(0, 1\], got .*; e.g. budget=0.6"):
        solve(MINI, budget)  # type: ignore[arg-type]


def test_budget_one_keeps_everything() -> None:
    assert solve(MINI, 1).steps == ()
    assert solve(MINI, 1.0, "resize").steps == ()


@pytest.mark.parametrize("balance", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_balance_says_who_saves(balance: float) -> None:
    plan = solve(MINI, 0.8, balance=balance)
    assert cost(MINI, plan, Workload()) <= 0.8
    stacks = {step.site.stack for step in plan.steps}
    assert ("vision" in stacks) == (balance > 0)
    tower = plan.at("vision", 4)
    share = tower.keep if tower else 1.0
    other = solve(MINI, 0.8, balance=min(1.0, balance + 0.1)).at("vision", 4)
    assert other is not None
    assert other.keep < share or balance == 1.0


def test_balance_bad_and_one_sided() -> None:
    with pytest.raises(InvalidPlan, match=r"balance is a share in \[0, 1\], got 1.5"):
        solve(MINI, 0.6, balance=1.5)
    with pytest.raises(InvalidPlan, match=r"or a balance that prunes the tower too, e.g. balance=0.5"):
        solve(MINI, 0.3, balance=0)
    low = [float(re.search(r"is ([\d.]+);", _message(balance))[1]) for balance in (0.2, 0.5, 0.9)]  # type: ignore[index]
    assert low[0] == low[1] == low[2]


def _message(balance: float) -> str:
    with pytest.raises(InvalidPlan) as caught:
        solve(MINI, 0.01, balance=balance)
    return str(caught.value)


def test_strength_is_monotone() -> None:
    plans = [solve(MINI, budget / 100) for budget in range(30, 96, 3)]
    for site in ("vision:2", "vision:4", "language:2", "language:4"):
        parsed = Site.parse(site)
        steps = [plan.at(parsed.stack, parsed.layer) for plan in plans]
        keeps = [step.keep for step in steps if step]
        assert all(a <= b + 2 / 196 for a, b in itertools.pairwise(keeps))  # single tokens fill the rest


def test_default_sites() -> None:
    names = [str(site) for site in default_sites(LLAVA_7B)]
    assert names == ["vision:8", "vision:16", "language:11", "language:21"]
    assert [str(s) for s in default_sites(LLAVA_7B, "fastv")] == ["language:2"]
    assert [str(s) for s in default_sites(LLAVA_7B, "resize")] == ["pixels:0"]
    assert [str(s) for s in default_sites(LLAVA_7B, depths=(0.0, 0.5, 1.0))] == [
        "vision:1",
        "vision:12",
        "language:1",
        "language:16",
    ]


def test_own_sites_in_any_order() -> None:
    sites = (Site("language", 3), Site("vision", 1), Site("language", 3))
    plan = solve(MINI, 0.5, sites=sites)
    assert [str(step.site) for step in plan.steps] == ["vision:1", "language:3"]
    with pytest.raises(InvalidPlan, match="step at vision:6, but the model's vision stack has layers 0 to 5; use 'vision:5'"):
        solve(MINI, 0.5, sites=(Site("vision", 6),))
    with pytest.raises(InvalidPlan, match=r"at the sites none .* lowest reachable is 1.00"):
        solve(MINI, 0.5, sites=())
    check_sites(MINI, sites)


def test_resize_takes_whole_grids() -> None:
    plan = solve(MINI, 0.6, "resize")
    side = math.sqrt(plan.steps[0].keep * 196)
    assert plan.steps[0].site == Site("pixels", 0)
    assert side == pytest.approx(round(side))
    lengths = lengths_of(MINI, Workload(text=32), plan)
    assert lengths.vision[0] == round(side) ** 2 + 1
    assert lengths.language[0] == round(side) ** 2 + 32
    assert cost(MINI, plan, Workload()) <= 0.6
    bigger = Plan("resize", (Step(Site("pixels", 0), (round(side) + 1) ** 2 / 196),))
    assert cost(MINI, bigger, Workload()) > 0.6
    with pytest.raises(InvalidPlan, match=r"pixels:0 stands alone .* got it with vision:2"):
        solve(MINI, 0.6, "resize", sites=(Site("vision", 2), Site("pixels", 0)))


def test_options_and_raters_reach_the_plan() -> None:
    plan = solve(MINI, 0.6, "mine", options={"alpha": 0.7}, raters={"language": 1})
    dear = solve(MINI, 0.6, "mine", raters={"vision": 100, "language": 100})
    assert plan.options == {"alpha": 0.7}
    assert plan.budget == 0.6
    assert sum(s.keep for s in dear.steps) < sum(s.keep for s in plan.steps)
    assert Plan.from_dict(plan.to_dict()) == plan


def test_choosing_that_takes_more_than_it_saves_is_unreachable_in_words() -> None:
    from atp.errors import UnreachableBudget

    with pytest.raises(UnreachableBudget, match=r"lowest reachable is 1\.00; use budget=1\.00") as found:
        solve(MINI, 0.6, "atp", raters={"vision": 1e6, "language": 1e6})
    assert found.value.lowest == 1.0
