"""Counts rounded to rows that matrix units like: exact rows, never dearer, and nothing else of the plan changes."""

from __future__ import annotations

import pytest

from atp.adapters import adapt
from atp.adapters.architectures import skeleton
from atp.budget.cost import Workload, lengths_of
from atp.budget.rounding import rounded
from atp.budget.shape import ModelShape
from atp.budget.solve import plan_cost, solve
from atp.errors import InvalidPlan
from atp.plan import Plan, Site, Step

WORK = Workload(images=1, text=37, answer=3)


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return adapt(skeleton("llava-1.5-7b")).shape  # 576 patches and a class token


@pytest.mark.parametrize("multiple", [16, 32, 64])
def test_rows_are_multiples_and_never_cost_more(shape: ModelShape, multiple: int) -> None:
    plan = solve(shape, 0.6, workload=WORK)
    made = rounded(plan, shape, WORK, multiple)
    before, after = lengths_of(shape, WORK, plan), lengths_of(shape, WORK, made)
    for step in made.steps:
        name, layer = step.site.stack, step.site.layer
        rows, were = getattr(after, name)[layer], getattr(before, name)[layer]
        assert rows % multiple == 0 and were - multiple < rows <= were
    assert any(length % multiple for length in (*before.vision, *before.language))  # there was something to round
    assert plan_cost(shape, WORK, made, {}) <= plan_cost(shape, WORK, plan, {})
    assert rounded(made, shape, WORK, multiple) == made


def test_what_cannot_be_rounded_stays(shape: ModelShape) -> None:
    few = Plan("atp", (Step(Site("vision", 4), 10 / 576),))  # no multiple of 32 below 10 + 1 rows
    adaptive = Plan("atp", (Step(Site("language", 4), 0.4, threshold=1.0),))
    smaller = Plan("resize", (Step(Site("pixels", 0), 100 / 576),))
    for plan in (few, adaptive, smaller):
        assert rounded(plan, shape, WORK, 32) == plan
    with pytest.raises(InvalidPlan, match="at least 1, got 0"):
        rounded(few, shape, WORK, 0)


def test_visual_tokens_that_are_no_rows_are_not_rounded() -> None:
    shape = adapt(skeleton("llama-3.2-11b-vision")).shape
    plan = Plan("atp", (Step(Site("language", 8), 0.4),))
    assert rounded(plan, shape, WORK, 32) == plan


def test_rows_of_text_that_left_do_not_count(shape: ModelShape) -> None:
    """A step where text leaves too runs on fewer rows beside the visual ones."""
    work = Workload(images=1, text=100, answer=1)
    plan = Plan("atp", (Step(Site("language", 4), 0.5, text=0.8),))
    made = rounded(plan, shape, work, 32)
    assert lengths_of(shape, work, made).language[4] % 32 == 0
    assert (lengths_of(shape, work, made).language[4] - 80) / 576 == made.steps[0].keep
