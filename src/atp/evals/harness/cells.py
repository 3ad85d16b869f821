"""The settings that are compared: a method at a budget, with the plan that is in force or the reason why there is none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp.budget.cost import Workload
from atp.calibrations import Given, beside
from atp.engine import prune
from atp.errors import InvalidPlan, UnreachableBudget
from atp.evals.harness.settings import REFERENCE, Settings
from atp.methods import METHODS, spelled
from atp.plan import Plan


@dataclass(frozen=True)
class Cell:
    """One setting.

    Attributes:
        method: registered name, with options as `methods.spelled` reads them; or `atp:adaptive`, see `calibrations.Given.name`;
            or `plan:` and the stem of a plan's file.
        budget: that was asked for; None where a plan's file says none.
        plan: in force; None = not possible.
        refused: why not.
        lowest: budget that can be reached, where the asked one is too low.
    """

    method: str
    budget: float | None
    plan: Plan | None
    refused: str = ""
    lowest: float | None = None

    @property
    def label(self) -> str:
        """Name for tables and messages."""
        return label(self.method, self.budget)

    @property
    def plan_id(self) -> str:
        """Digest of the plan."""
        text = json.dumps(None if self.plan is None else self.plan.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values: dict[str, Any] = {"method": self.method, "budget": self.budget, "plan_id": self.plan_id}
        if self.plan is None:
            return values | {"refused": self.refused, "lowest": self.lowest}
        return values | {"plan": self.plan.to_dict()}


def label(method: str, budget: float | None) -> str:
    """Return a setting's name, e.g. `atp 0.6`."""
    return method if budget is None or method == REFERENCE else f"{method} {budget:g}"


def all_cells(model: Any, processor: Any, settings: Settings, work: Workload, given: Sequence[Given] = ()) -> list[Cell]:
    """Return the unpruned model and every method at every budget, fixed counts and calibrations, then the plans given as files.

    Args:
        model, processor: as `atp.load` gives them.
        settings: names methods, budgets and plans.
        work: that plans are solved for.
        given: the settings' calibrations, read.

    Raises:
        AtpError: an unsupported model, a broken plan's file. A budget out of reach is no error but a cell without a plan.
    """
    cells = [Cell(REFERENCE, 1.0, Plan(REFERENCE))]
    shares = [budget for budget in settings.budgets if budget < 1]
    for row, one in beside([method for method in settings.methods if method != REFERENCE], given):
        name, options = spelled(row) if one is None else (one.method, dict[str, Any](calibration=one.table))
        if one is None and "seed" in {field.name for field in dataclasses.fields(METHODS.get(name))}:
            options.setdefault("seed", settings.seed)
        for budget in shares if one is None else one.budgets(shares):
            try:
                with prune(model, budget=budget, method=name, processor=processor, workload=work, **options) as run:
                    cells.append(Cell(row, budget, run.plan))
            except UnreachableBudget as error:
                cells.append(Cell(row, budget, None, str(error), error.lowest))
            except InvalidPlan as error:
                cells.append(Cell(row, budget, None, str(error)))
    for file in settings.plans:
        plan = Plan.load(file)
        with prune(model, plan=plan, processor=processor):
            cells.append(Cell(f"plan:{Path(file).stem}", plan.budget, plan))
    return cells


def tiles(model: Any) -> int:
    """Return how many images the model's tower sees of a typical picture."""
    with prune(model, plan=Plan(REFERENCE)) as run:
        return int(run.adapter.tiles)
