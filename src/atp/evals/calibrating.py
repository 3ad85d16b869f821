"""Calibrate a method on a model: run items under a plan, hand the scores to `budget.calibrate`, collect plans over budgets."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atp.budget.calibrate import Observed, calibrate
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.shape import ModelShape
from atp.budget.solve import solve
from atp.engine import prune
from atp.evals.items import Item
from atp.evals.runner import MAX_NEW_TOKENS, prepared, workload_of
from atp.methods import METHODS
from atp.plan import Plan, Site


def observe(model: Any, processor: Any, batches: Sequence[tuple[list[int], Any]], plan: Plan) -> list[Observed]:
    """Run all batches under a plan; one `Observed` for the whole set.

    Args:
        model, processor: as `atp.load` gives them.
        batches: from `runner.prepared`.
        plan: in force, thresholds or not.
    """
    scores: dict[Site, list[Tensor]] = defaultdict(list)
    started: dict[Site, list[int]] = defaultdict(list)
    with (
        warnings.catch_warnings(),
        torch.inference_mode(),
        prune(model, plan=plan, processor=processor, record_all_scores=True) as run,
    ):
        warnings.filterwarnings("ignore", "the plan .* removed no token", UserWarning)  # thresholds tried on the way may
        for _, inputs in batches:
            placed = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
            model.generate(**placed, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            for record in run.trace.records:
                if record.bars is not None:
                    site = Site(record.stack, record.layer)
                    scores[site] += record.bars
                    started[site] += record.started
            run.trace.clear()
        report = run.report()
    return [Observed(scores, started, report.flops.total, report.flops_unpruned.total)]


def calibrate_model(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    shape: ModelShape,
    budgets: Sequence[float],
    *,
    method: str = "atp",
    options: Mapping[str, Any] | None = None,
    sites: Sequence[Site] | None = None,
    balance: float = 0.5,
    batch: int = 20,
    note: str = "",
) -> Calibration:
    """Find thresholds whose mean counted FLOPs over `items` meet each budget.

    Args:
        model, processor: as `atp.load` gives them.
        items: calibration questions; never those of a test.
        shape: sizes of the model.
        budgets: shares of the unpruned FLOPs.
        method, options: who scores.
        sites, balance: of the schedule, see `budget.solve`.
        batch: most questions of a forward.
        note: free words for the file.

    Raises:
        InvalidPlan: a budget that these sites cannot reach.
    """
    batches = prepared(processor, items, batch)
    workload = workload_of(model, processor, items)
    built = METHODS.get(method)(**(options or {}))
    measured = [stack for stack in ("vision", "language") if built.measures(stack)]
    plans = []
    for budget in budgets:
        fixed = solve(shape, budget, method, workload, sites, balance=balance, options=options)
        steps = (replace(step, absolute=step.site.stack in measured) for step in fixed.steps)
        fixed = replace(fixed, steps=tuple(steps))
        plans.append(calibrate(lambda plan: observe(model, processor, batches, plan), fixed, budget))
    return Calibration(tuple(plans), fingerprint(model.named_parameters()), workload, len(items), note)
