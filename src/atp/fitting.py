"""Counts per input: run inputs under a plan, hand the scores to `budget.calibrate`, collect plans over budgets."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atp.adapters import adapt
from atp.asking import build_inputs, words
from atp.budget.amount import check_share
from atp.budget.calibrate import Observed, calibrate, spent
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.cost import Workload
from atp.budget.solve import default_sites, solve, workable
from atp.engine import prune
from atp.engine.tables import CALIBRATION
from atp.errors import BadInput
from atp.methods import METHODS
from atp.plan import Plan, Site

MAX_NEW_TOKENS, FEWEST = 4, 8
"""Fewest: inputs below which a threshold says more about them than about others."""
Step = Callable[[float, int, float], None]


def fit_counts(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    budgets: Sequence[float] = (0.6, 0.4, 0.25),
    *,
    method: str = "atp",
    options: Mapping[str, Any] | None = None,
    sites: Sequence[Site] | None = None,
    balance: float = 0.5,
    batch: int | None = None,
    note: str = "",
    step: Step | None = None,
) -> Calibration:
    """Let every input have counts of its own: find thresholds that spend each budget on average over these inputs.

    No true answers are needed. A patch merges, or a token leaves, where that costs less than the threshold, so plain pictures
    keep less than crowded ones. Some hundred different images are enough; questions of a test must not be among them.

    Args:
        model, processor: see `atp.load`.
        images: RGB, see `load_image`.
        questions: as many.
        budgets: shares of the unpruned FLOPs; budgets between them are interpolated.
        method, options: who scores.
        sites: where; None = those of the checkpoint's own calibration, or of the method.
        balance: of the schedule, see `budget.solve`.
        batch: most questions of a forward; None = 8, or 1 where the tower takes no mask.
        note: free words for the file, e.g. what the inputs are.
        step: told the budget, how often all inputs ran for it, and what share they spent the last time.

    Returns:
        What `atp.prune(model, budget=0.4, calibration=...)` takes, and `Calibration.save` writes.

    Raises:
        BadInput: fewer than 8 inputs, or unequal numbers of them.
        UnreachableBudget, InvalidPlan: a budget that these sites cannot reach.

    Example:
        >>> atp.fit_counts(model, processor, images, questions).save("adaptive_calibration.json")
    """
    if len(images) != len(questions) or len(images) < FEWEST:
        raise BadInput(
            f"{len(images)} images and {len(questions)} questions, expected one for each and at least {FEWEST}; some hundred are "
            "better: thresholds are shares of what inputs spend on average"
        )
    if batch is not None and batch < 1:
        raise BadInput(f"batch is at least 1, got {batch}; leave it away for 8, or 1 where the tower takes no mask")
    for budget in budgets:
        check_share("budget", budget, positive=True)
    adapter, built = adapt(model), METHODS.get(method)(**(options or {}))
    if sites is None:
        sites = own_sites(model, method, options) or built.default_sites(adapter.shape) or default_sites(adapter.shape, method)
        sites = workable(adapter.shape, [site for site in sites if site.stack in set(adapter.stacks) & set(built.stacks)])
    rows = [build_inputs(processor, [image], [question]) for image, question in zip(images, questions, strict=True)]
    batches = batched(rows, batch or (8 if adapter.vision.maskable else 1))
    text = round(sum(words(processor, question) for question in questions) / len(questions))
    workload, plans = Workload(images=adapter.tiles, text=text, answer=2), []
    for budget in budgets:
        fixed = solve(adapter.shape, budget, method, workload, sites, balance=balance, options=options)
        steps = (replace(one, absolute=built.measures(one.site.stack)) for one in fixed.steps)
        run = _told(model, processor, batches, budget, step)
        plans.append(calibrate(run, replace(fixed, steps=tuple(steps)), budget))
    return Calibration(tuple(plans), fingerprint(model.named_parameters()), workload, len(images), note)


def batched(rows: Sequence[Mapping[str, Tensor]], batch: int) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Put inputs of equal shapes into batches, so that none is padded.

    Args:
        rows: of `build_inputs`, one prompt each.
        batch: most of a batch.

    Returns:
        (numbers of the rows, model inputs) of each batch.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        alike[tuple((name, tuple(value.shape[1:])) for name, value in sorted(row.items()))].append(number)
    batches = []
    for numbers in alike.values():
        for start in range(0, len(numbers), batch):
            chosen = numbers[start : start + batch]
            batches.append((chosen, {key: torch.cat([rows[n][key] for n in chosen]) for key in rows[chosen[0]]}))
    return batches


def own_sites(model: Any, method: str, options: Mapping[str, Any] | None) -> tuple[Site, ...]:
    """Return the sites of the calibration beside a checkpoint's weights, where it is of this method."""
    path = Path(str(getattr(model.config, "_name_or_path", "") or ".")) / CALIBRATION
    if options or not path.is_file():
        return ()
    table = Calibration.load(path)
    return tuple(step.site for step in table.plans[0].steps) if table.method == method else ()


def _told(
    model: Any, processor: Any, batches: Sequence[tuple[list[int], Any]], budget: float, step: Step | None
) -> Callable[[Plan], list[Observed]]:
    """Return what runs all batches under a plan, and tells so."""
    runs = 0

    def run(plan: Plan) -> list[Observed]:
        nonlocal runs
        found, runs = observe(model, processor, batches, plan), runs + 1
        if step is not None:
            step(budget, runs, spent(found))
        return found

    return run


def observe(model: Any, processor: Any, batches: Sequence[tuple[list[int], Any]], plan: Plan) -> list[Observed]:
    """Run all batches under a plan; one `Observed` for the whole set.

    Args:
        model, processor: as `atp.load` gives them.
        batches: from `batched`.
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
