"""Counts per input: run inputs under a plan, hand the scores to `budget.calibrate`, collect plans over budgets."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atp.adapters import adapt
from atp.adapters.base import Adapter
from atp.asking import build_inputs, listed, text_places, workload
from atp.budget.amount import Budget, check_count, check_share, plain
from atp.budget.calibrate import PART, Observed, calibrate, fitted, observed, spent
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.cost import Workload
from atp.budget.shape import ModelShape
from atp.budget.sites import places as named_sites
from atp.budget.solve import default_sites, solve, workable
from atp.engine import prune
from atp.engine.allowed import check_plan
from atp.engine.planning import make_method, prices_of
from atp.engine.tables import CALIBRATION
from atp.errors import BadInput, InvalidPlan
from atp.methods import Method, spelled
from atp.plan import Plan, Site, Step

MAX_NEW_TOKENS, ANSWER, FEWEST = 4, 2, 8
"""Answer: tokens that plans are solved for. Fewest: inputs below which a threshold says more about them than about others."""
Tell = Callable[[float, int, float], None]


def fit_counts(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    budgets: Sequence[float] | float = (0.6, 0.4, 0.25),
    *,
    method: str = "atp",
    options: Mapping[str, Any] | None = None,
    sites: Sequence[Site | str] | str | None = None,
    balance: float = 0.5,
    batch: int | None = None,
    note: str = "",
    step: Tell | None = None,
) -> Calibration:
    """Let every input have counts of its own: find thresholds that spend each budget on average over these inputs.

    No true answers are needed. A patch merges, or a token leaves, where that costs less than the threshold, so plain pictures
    keep less than crowded ones. Some hundred different images are enough; questions of a test must not be among them.

    Args:
        model, processor: see `atp.load`.
        images: RGB, see `load_image`.
        questions: as many.
        budgets: shares of the unpruned FLOPs, below 1; budgets between them are interpolated.
        method, options: who scores; `"atp:alpha=0.7"` is both.
        sites: where, e.g. `"vision:0/vision:3"`; None = where the checkpoint's own calibration has them at each budget, or the
            method. Between budgets with other sites, the lower one's counts are used.
        balance: of the schedule, see `budget.solve`.
        batch: most questions of a forward; None = 8, or 1 where the tower takes no mask.
        note: free words for the file, e.g. what the inputs are.
        step: told the budget, how often all inputs ran for it, and what share they spent the last time.

    Returns:
        What `atp.prune(model, budget=0.4, calibration=...)` takes, and `Calibration.save` writes.

    Warns where these inputs leave more than 1 % of a budget unspent.

    Raises:
        BadInput: fewer than 8 inputs, or unequal numbers of them; no budget below 1.
        UnreachableBudget, InvalidPlan: a budget that these sites cannot reach; a method whose scores are not the input's own.

    Example:
        >>> atp.fit_counts(model, processor, images, questions).save("adaptive_calibration.json")
    """
    shares = _shares(budgets)
    images, questions = listed(images), listed(questions)
    if len(images) != len(questions) or len(images) < FEWEST:
        raise BadInput(
            f"{len(images)} images and {len(questions)} questions, expected one for each and at least {FEWEST}; some hundred are "
            "better: thresholds are shares of what inputs spend on average"
        )
    if batch is not None:
        check_count("batch", batch, 8)
    name, own = spelled(method)
    sites, options = sites or own.pop("sites", None), options or {}
    options = {**own, **options} if own else options
    adapter, built = adapt(model), make_method(name, options)
    looks = any(built.raters(stack) or built.reading(stack) for stack in built.stacks)
    if "visual" not in built.kinds or not looks:
        raise InvalidPlan(
            f"method {method!r} does not look at the image, so counts by its scores would be no input's own; use e.g. "
            "method='atp', or leave calibration= away"
        )
    rows = [build_inputs(processor, [image], [question]) for image, question in zip(images, questions, strict=True)]
    batches = batched(rows, batch or (8 if adapter.vision.maskable else 1))
    work, adapter.shape = mean_prompt(adapter.shape, processor, rows)
    about: Any = {"balance": balance, "options": options}
    places = [own_sites(model, adapter, built, options, share) if sites is None else named_sites(sites) for share in shares]
    fixed = [_fixed(adapter, built, *each, work, **about) for each in zip(shares, places, strict=True)]  # all, before inputs run
    plans = []
    for share, plan in zip(shares, filled(fixed) if len(set(map(tuple, places))) == 1 else fixed, strict=True):
        check_plan(adapter, plan, built)
        plan = replace(plan, steps=tuple(replace(one, absolute=built.measures(one.site.stack)) for one in plan.steps))
        some = tuple(replace(one, threshold=1.0) if one in fitted(plan) else one for one in plan.steps)
        observe(model, processor, batches[:1], replace(plan, steps=some), True)  # what the engine refuses is said at once
        run = _Inputs(model, processor, batches, share, step)
        plans.append(calibrate(run, plan, share))
        run.warn(len(images))
    return Calibration(tuple(plans), fingerprint(adapter.model.named_parameters()), work, len(images), note)


def _fixed(
    adapter: Adapter,
    built: Method,
    share: float,
    places: Sequence[Site],
    work: Workload,
    balance: float,
    options: Mapping[str, Any],
) -> Plan:
    """Return the plan of fixed counts that thresholds start from."""
    prices = prices_of(adapter, built, work, Budget(share), options)
    more: Any = {"raters": prices.raters, "more": prices.more, "balance": balance, "options": options}
    return solve(adapter.shape, share, built.name, work, places, **more)


def _shares(budgets: Sequence[float] | float) -> tuple[float, ...]:
    """Return the budgets, each once.

    Raises:
        BadInput: none, or one that prunes nothing.
        InvalidPlan: one that is no share.
    """
    found = tuple(dict.fromkeys(map(plain, listed(plain(budgets)))))
    for budget in found:
        check_share("budget", budget, positive=True)
    if not found or 1 in found:
        raise BadInput(f"budgets are shares below 1 of the unpruned FLOPs, got {budgets!r}; e.g. budgets=(0.6, 0.4)")
    return found


def mean_prompt(shape: ModelShape, processor: Any, rows: Sequence[dict[str, Tensor]]) -> tuple[Workload, ModelShape]:
    """Describe the mean prompt, and the model with images of the mean size, where sizes differ.

    Args:
        shape: of the model, with images of its own size.
        processor: of the model.
        rows: of `build_inputs`, one prompt each.
    """
    texts = [int(text_places(shape, processor, row).sum()) for row in rows]
    told, text = [workload(shape, processor, row, ANSWER) for row in rows], round(sum(texts) / len(texts))
    images = round(sum(one.images for one in told) / len(told))
    if shape.connects == "keys" or shape.cross is not None:
        return Workload(images=images, text=text, answer=ANSWER), shape
    visual = sum(row["input_ids"].shape[1] - said for row, said in zip(rows, texts, strict=True)) / len(rows)
    images = max(1, round(visual / shape.visual))
    groups = max(1, round(visual / images / shape.visual * shape.patches / shape.group))
    return Workload(images=images, text=text, answer=ANSWER), shape.of_size(groups * shape.group)


def filled(plans: Sequence[Plan]) -> list[Plan]:
    """Give all plans the same sites, so that budgets between theirs can be interpolated; nothing leaves at those added."""
    sites = {step.site for plan in plans for step in plan.steps}
    return [
        replace(plan, steps=(*plan.steps, *(_idle(plan, site) for site in sites if plan.at(site.stack, site.layer) is None)))
        for plan in plans
    ]


def _idle(plan: Plan, site: Site) -> Step:
    """A step that keeps what is there."""
    before = [step.keep for step in plan.steps if step.site.stack == site.stack and step.site.layer < site.layer]
    return Step(site, min(before, default=1.0))


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


def own_sites(
    model: Any, adapter: Adapter, built: Method, options: Mapping[str, Any], share: float | None = None
) -> Sequence[Site]:
    """Return the sites of the calibration beside a checkpoint's weights, where it is of this method, or the method's own.

    Args:
        model: the checkpoint.
        adapter: its parts.
        built: the method.
        options: those that differ from its defaults; the calibration has none.
        share: the sites of this budget, where the calibration reaches it; None = of all its budgets.
    """
    path = Path(str(getattr(model.config, "_name_or_path", "") or ".")) / CALIBRATION
    table = None if options or not path.is_file() else Calibration.load(path)
    plans = table.plans if table is not None and table.method == built.name else ()
    if table is not None and plans and share is not None and table.reach[0] <= share <= table.reach[1]:
        plans = (table.plan_for(share),)
    own = {step.site for plan in plans for step in plan.steps}
    known = own or built.default_sites(adapter.shape) or default_sites(adapter.shape, built.name)
    return workable(adapter.shape, [site for site in known if site.stack in set(adapter.stacks) & set(built.stacks)])


@dataclass
class _Inputs:
    """Runs all batches under a plan, tells so, and remembers the most that whole plans spent of the budget, and not more."""

    model: Any
    processor: Any
    batches: Sequence[tuple[list[int], Any]]
    budget: float
    tell: Tell | None
    runs: int = 0
    reached: float = 0.0

    def __call__(self, plan: Plan) -> list[Observed]:
        found, self.runs = observe(self.model, self.processor, self.batches, plan), self.runs + 1
        share = spent(found)
        if not probes(plan) and share <= self.budget:
            self.reached = max(self.reached, share)
        if self.tell is not None:
            self.tell(self.budget, self.runs, share)
        return found

    def warn(self, inputs: int) -> None:
        """Say so where the inputs leave more than a `PART` of the budget unspent."""
        if self.reached < self.budget * (1 - PART) - 1e-9:
            warnings.warn(
                f"budget {self.budget:g}: the most that thresholds spend of it on these {inputs} inputs is {self.reached:.3f}: "
                "many of their tokens are alike and leave together; fit to more, and more different, images",
                stacklevel=3,
            )


def probes(plan: Plan) -> bool:
    """Whether a plan is run for the scores of a step that has no threshold yet, and not for what it spends."""
    return any(step.threshold is None for step in fitted(plan))


def observe(
    model: Any, processor: Any, batches: Sequence[tuple[list[int], Any]], plan: Plan, score_all: bool = False
) -> list[Observed]:
    """Run all batches under a plan; one `Observed` a batch, and one with the FLOPs of the whole set.

    Args:
        model, processor: as `atp.load` gives them.
        batches: from `batched`.
        plan: in force, thresholds or not.
        score_all: also where nothing leaves, as while `probes`; it costs FLOPs that the plan in use does not.
    """
    seen = []
    with (
        warnings.catch_warnings(),
        torch.inference_mode(),
        prune(model, plan=plan, processor=processor, record_all_scores=score_all or probes(plan)) as run,
    ):
        warnings.filterwarnings("ignore", "the plan .* removed no token", UserWarning)  # thresholds tried on the way may
        for _, inputs in batches:
            placed = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
            model.generate(**placed, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            seen.append(observed(run.trace.records, 0, 0))
            run.trace.clear()
        report = run.report()
    return [*seen, Observed({}, {}, report.flops.total, report.flops_unpruned.total)]
