"""The calibrations that ship: what they spend at every budget in their reach, also between two kinds of sites."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import atp
from atp.adapters import adapt
from atp.budget.calibration import Calibration
from atp.budget.cost import lengths_of
from atp.budget.price import Prices
from atp.engine.planning import own_flops, rater_rows
from atp.engine.tables import CALIBRATION
from atp.methods import METHODS


@pytest.mark.parametrize("name", ["atp-mini-llava", "atp-mini-blip2", "atp-mini-flamingo"])
def test_every_budget_is_spent_and_no_site_is_idle(name: str) -> None:
    model, _ = atp.load(name)
    adapter, built = adapt(model), METHODS.get("atp")()
    table = Calibration.load(Path(atp.loading.resolve(name)) / CALIBRATION)
    shape, work = adapter.shape, table.workload
    prices = Prices(shape, work, rater_rows(adapter, built, work), own_flops(adapter, built, work))
    low, high = table.reach
    for percent in range(round(100 * low), round(100 * high) + 1):
        with atp.prune(model, budget=percent / 100) as run:
            plan = run.plan
        where = f"at {percent} %, {[(str(step.site), round(step.keep, 3)) for step in plan.steps]}"
        assert 0.985 < prices.of(plan, "share") / (percent / 100) < 1.011, where
        for step in plan.steps:
            without = replace(plan, steps=tuple(each for each in plan.steps if each is not step))
            assert lengths_of(shape, work, without) != lengths_of(shape, work, plan), f"nothing leaves at {step.site} {where}"
