"""What a budget means where parts of a picture, tiles or windows, leave before the tower runs. Part of the engine."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from atp.adapters import ADAPTERS, adapter_class
from atp.adapters.base import Adapter
from atp.adapters.tiled import Tiled, Windowed
from atp.budget.amount import Amount, Budget
from atp.budget.cost import Workload, count
from atp.engine.pictures import kept
from atp.engine.planning import BUDGET, decide
from atp.engine.tables import Table
from atp.errors import InvalidPlan, UnreachableBudget
from atp.methods import Method
from atp.plan import Plan, Site

LEAST = 1e-6
"""Ours: stands for a budget that is spent before anything could be spared; no plan reaches it."""


def check_tiles(adapter: Adapter, tiles: float | str | None) -> None:
    """Refuse tiles of models that have none, or whose tiles cannot leave.

    Raises:
        InvalidPlan: naming the model and what to use instead.
    """
    if tiles is not None and not (has_tiles(type(adapter)) or isinstance(adapter, Windowed)):
        kinds = {name: adapter_class(name) for name in sorted(ADAPTERS)}
        tiled = [name for name, kind in kinds.items() if has_tiles(kind)]
        windowed = [name for name, kind in kinds.items() if issubclass(kind, Windowed)]
        kind = "/".join(adapter.model_types) or type(adapter).__name__
        raise InvalidPlan(
            f"tiles={tiles!r}: whole tiles leave from {', '.join(tiled)} models only, windows from {', '.join(windowed)}, "
            f"this is a {kind} model; leave tiles= away and use budget=, which prunes inside every image"
        )


def has_tiles(kind: type[Adapter]) -> bool:
    """Whether a family cuts pictures into tiles that may leave."""
    return issubclass(kind, Tiled) and kind.tiled


@dataclass(frozen=True)
class Share:
    """What a budget means where a share of a picture's tiles or windows stays.

    Attributes:
        asked: the budget for all of them.
        workload, solver: a workload with what stays, and the adapter that plans for it; its images may be smaller.
        whole, less: FLOPs of the model on all of them, and on what stays.
        beside: FLOPs for all of them that `less` lacks, whatever leaves.
        tower, prompt: what stays of the visual tokens that steps in the tower and in the language model count from.
    """

    asked: Budget
    workload: Workload
    solver: Adapter
    whole: float
    less: float
    beside: float
    tower: float
    prompt: float

    @property
    def left(self) -> Budget:
        """The budget of what stays: an amount stays itself, a share becomes one of its FLOPs."""
        if self.asked.unit != "share":
            return self.asked
        return Budget(min(1.0, max(LEAST, (self.asked.value * self.whole - self.beside) / self.less)))

    def of_all(self, plan: Plan) -> Plan:
        """Return a plan that was solved for what stays, with shares of all visual tokens."""
        parts = {"vision": self.tower, "language": self.prompt}
        steps = [replace(step, keep=step.keep * parts[step.site.stack]) for step in plan.steps]
        return replace(plan, steps=tuple(steps), budget=self.asked.value if self.asked.unit == "share" else plan.budget)

    def refused(self, refusal: UnreachableBudget, tiles: float | str | None) -> UnreachableBudget:
        """Return a refusal of the budget of what stays in the words of the caller's."""
        if self.asked.unit != "share":
            return refusal
        lowest = math.ceil(100 * min(1.0, (refusal.lowest * self.less + self.beside) / self.whole)) / 100
        return UnreachableBudget(
            f"budget {self.asked.value:g} cannot be reached with tiles={tiles}: the lowest reachable is {lowest:.2f}; use "
            f"budget={lowest:.2f}, fewer tiles or earlier sites",
            lowest,
        )


def of_tiles(adapter: Adapter, asked: Budget, workload: Workload | None, tiles: float) -> Share:
    """Say what a budget means where a share of the tiles stays, for a picture of the workload's tiles."""
    whole = workload or Workload(images=adapter.tiles)
    images = whole.images if whole.images < 3 else 1 + kept(whole.images - 1, tiles)
    less = replace(whole, images=images)
    full, left = (count(adapter.shape, one).total for one in (whole, less))
    return Share(asked, less, adapter, full, left, 0.0, 1.0, images / whole.images)


def of_windows(adapter: Adapter, asked: Budget, workload: Workload | None, windows: float) -> Share:
    """Say what a budget means where a share of the windows stays whole, for an image of the adapter's grid."""
    work, shape, solver = workload or Workload(images=adapter.tiles), adapter.shape, copy.copy(adapter)
    side, (high, wide), tokens = cast(Windowed, adapter).window, adapter.grid, shape.patches // shape.group
    every = -(-high // side) * -(-wide // side)
    whole = kept(every, windows)
    left = whole * tokens / every + every - whole
    if asked.unit == "ms":  # measured with whole images: what windows save comes on top
        left = float(tokens)
    solver.shape = shape.of_size(round(left) * shape.group)
    full, less = count(shape, work), count(solver.shape, work)
    embedded = 2.0 * (shape.patches - solver.shape.patches) * shape.patch_inputs * shape.vision.hidden
    beside = full.connector - less.connector + work.images * embedded
    ratio = solver.shape.patches / shape.patches
    return Share(asked, work, solver, full.total, less.total, beside, ratio, ratio)


def with_tiles(
    adapter: Adapter,
    budget: Amount | None,
    method: str | None,
    plan: Plan | str | Path | None,
    calibration: Table | str | Path | None,
    workload: Workload | None,
    options: Mapping[str, Any],
    text: float | None,
    tiles: float | str | None,
    sites: Sequence[Site | str] | str | None = None,
) -> tuple[Plan, Method]:
    """Return what `decide` returns, with tiles leaving before the tower runs.

    Raises:
        InvalidPlan: neither a share nor a threshold, or a model whose tiles cannot leave; and as `decide`.
    """
    check_tiles(adapter, Plan("none", tiles=tiles).tiles)
    told = budget is not None or method is not None or plan is not None or calibration is not None or text is not None
    told = told or sites is not None
    if tiles is not None and not told:
        plan = Plan("none")
    share, solver = None, adapter
    if tiles is not None and not isinstance(tiles, str) and plan is None and calibration is None:
        asked = Budget.parse(BUDGET if budget is None else budget)
        share = (of_windows if isinstance(adapter, Windowed) else of_tiles)(adapter, asked, workload, tiles)
        budget, workload, solver = share.left, share.workload, share.solver
    try:
        chosen, built = decide(solver, budget, method, plan, calibration, workload, options, text, sites)
    except UnreachableBudget as refusal:
        raise (refusal if share is None else share.refused(refusal, tiles)) from None
    chosen = chosen if share is None or chosen.budget is None else share.of_all(chosen)
    chosen = chosen if tiles is None else replace(chosen, tiles=tiles)
    check_tiles(adapter, chosen.tiles)
    return chosen, built
