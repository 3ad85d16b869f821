"""Thresholds for an average budget, found on a calibration set: one step after the other, then the FLOPs of the whole.

A threshold decides the count of every input from its own scores. What a later step sees depends on what earlier steps left,
so the thresholds are found in the order in which tokens meet them, each from scores recorded with the earlier ones in force;
a last search scales all of them until the mean counted FLOPs meet the budget. Knows plans and score tensors; the model is
behind a function that the caller passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atp.budget.allocate import allocate
from atp.budget.amount import check_share
from atp.errors import AtpError, InvalidPlan
from atp.plan import Plan, Site, Step
from atp.tokens import Record

TOLERANCE = 0.005
"""A calibrated plan spends between budget - TOLERANCE and budget on the calibration set, as shares of the unpruned FLOPs."""


@dataclass(frozen=True)
class Observed:
    """What some prompts did under a plan: one, a batch, or the whole calibration set.

    Attributes:
        scores: per site and row (an image of the tower, a prompt of the language model) the scores `[alive]`, or the method's own
            measure (`Record.bars`), of the tokens that were alive before the step.
        started: per site and row, the tokens that the stack started with.
        flops: counted FLOPs of these prompts, selection included.
        unpruned: counted FLOPs of these prompts without pruning.
    """

    scores: Mapping[Site, Sequence[Tensor]]
    started: Mapping[Site, Sequence[int]]
    flops: float
    unpruned: float


Run = Callable[[Plan], Sequence[Observed]]
"""Runs the whole calibration set under a plan; how its prompts are cut into `Observed` does not matter."""


def observed(records: Iterable[Record], flops: float, unpruned: float) -> Observed:
    """Gather what a run's trace recorded.

    Args:
        records: `run.trace.records`; sites that were not scored are left out.
        flops, unpruned: of the same prompts, e.g. `report.flops.total` and `report.flops_unpruned.total`.

    Example:
        >>> with atp.prune(model, plan=plan, record_all_scores=True) as run:
        ...     model.generate(**batch)
        >>> report = run.report()
        >>> observed(run.trace.records, report.flops.total, report.flops_unpruned.total)
    """
    scores: dict[Site, list[Tensor]] = {}
    started: dict[Site, list[int]] = {}
    for record in records:
        if record.bars is None:
            continue
        site = Site(record.stack, record.layer)
        rows = [(row, total) for row, total in zip(record.bars, record.started, strict=True) if total]
        scores.setdefault(site, []).extend(row for row, _ in rows)
        started.setdefault(site, []).extend(total for _, total in rows)
    return Observed(scores, started, flops, unpruned)


def calibrate(run: Run, plan: Plan, budget: float | None = None, *, tolerance: float = TOLERANCE, rounds: int = 12) -> Plan:
    """Turn a fixed plan into an adaptive one that spends the same on average.

    Args:
        run: runs the calibration set; called once a step, and at most `rounds` times more to correct the total.
        plan: fixed plan, e.g. from `solve`; its `keep` are the mean shares to reach. Where steps are absolute, only they get
            thresholds and the others keep their counts.
        budget: mean share of the unpruned FLOPs; None = that of the plan. Where both are None, only the shares count.
        tolerance: the result spends at most `budget` and at least `budget - tolerance`, where the scores permit.
        rounds: runs for the correction.

    Returns:
        The plan with thresholds; `keep` holds the mean shares measured on the set, `budget` the one asked for.

    Raises:
        InvalidPlan: a plan without steps, a run that recorded nothing at a site, or a budget that no scale of the
            thresholds reaches.

    Example:
        >>> adaptive = calibrate(run, solve(shape, 0.6))
    """
    steps = [step for step in plan.steps if step.site.stack != "pixels"]
    if not steps or len(steps) < len(plan.steps):
        raise InvalidPlan(
            f"nothing to calibrate in {plan.method!r}: expected steps in 'vision' or 'language', "
            f"got {[str(step.site) for step in plan.steps]}; pass e.g. plan=solve(shape, 0.6, 'atp')"
        )
    budget = plan.budget if budget is None else budget
    if budget is not None:
        check_share("budget", budget, positive=True)
    found: list[Step] = []
    fits = [step for step in steps if step.absolute] or steps
    for step in steps:
        if step not in fits:
            found.append(step)
            continue
        probe = replace(plan, steps=(*found, replace(step, threshold=None)))
        found.append(_fitted(step, found, *_recorded(run(probe), step.site)))
    adaptive = replace(plan, steps=tuple(found), budget=budget)
    if budget is None:
        return _measured(adaptive, run(adaptive))
    return _corrected(run, adaptive, budget, tolerance, rounds)


def threshold_for(scores: Sequence[Tensor], started: Sequence[int], step: Step) -> tuple[float, float]:
    """Find the threshold at which a step keeps `step.keep` of the tokens on average.

    Args:
        scores: per row, `[alive]` scores of the tokens alive before the step.
        started: per row, the tokens that the stack started with.
        step: site, wanted mean share, floor and ceiling.

    Returns:
        The threshold, and the mean share that it keeps; the nearest that the scores allow where many of them are equal.
    """
    padded, alive, total = _stacked(scores, started)
    mean = torch.where(alive, padded, 0).sum(1) / alive.sum(1).clamp(min=1)
    mean = torch.ones_like(mean) if step.absolute else mean
    ratios = torch.where(alive, padded, 0).amax(1) / mean.clamp(min=torch.finfo(padded.dtype).tiny)
    low, high = 0.0, 1.0 + min(float(ratios.max()), 1e6)

    def share(threshold: float) -> float:
        kept = allocate(padded, alive, replace(step, threshold=threshold), total)
        return float((kept.double() / total).mean())

    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > step.keep else (low, middle)
    return min(((t, share(t)) for t in (high, low)), key=lambda pair: abs(pair[1] - step.keep))


def spent(seen: Sequence[Observed]) -> float:
    """Mean counted FLOPs as a share of the mean unpruned ones."""
    return sum(one.flops for one in seen) / sum(one.unpruned for one in seen)


def _fitted(step: Step, before: Sequence[Step], scores: Sequence[Tensor], started: Sequence[int]) -> Step:
    """The step with its threshold. Its floor is lowered to half the mean share where it would forbid smaller counts."""
    step = replace(step, floor=min(step.floor, step.keep / 2), ceiling=max(step.ceiling, step.keep))
    threshold, share = threshold_for(scores, started, step)
    bound = min((s.keep for s in before if s.site.stack == step.site.stack), default=1.0)
    return replace(step, threshold=threshold, keep=min(share, bound))


def _corrected(run: Run, plan: Plan, budget: float, tolerance: float, rounds: int) -> Plan:
    """Scale all thresholds by a common factor until the mean FLOPs lie in [budget - tolerance, budget]."""
    low, high, factor = 0.0, float("inf"), 1.0  # low spends too much, high little enough
    best: tuple[float, Plan] | None = None
    least = float("inf")
    for _ in range(max(1, rounds)):
        scaled = replace(
            plan, steps=tuple(s if s.threshold is None else replace(s, threshold=s.threshold * factor) for s in plan.steps)
        )
        seen = run(scaled)
        share = spent(seen)
        least = min(least, share)
        if share > budget:
            low = factor
        else:
            high = factor
            if best is None or share > best[0]:
                best = (share, _measured(scaled, seen))
            if share >= budget - tolerance:
                break
        factor = _between(low, high)
    if best is None:
        raise InvalidPlan(
            f"no scale of the thresholds of {plan.method!r} at {', '.join(str(s.site) for s in plan.steps)} brings the mean "
            f"FLOPs down to {budget:g}: the lowest found is {least:.3f}; ask for budget={least + 0.005:.2f}, "
            "lower the steps' floor, or use a fixed plan"
        )
    return best[1]


def _between(low: float, high: float) -> float:
    if high == float("inf"):
        return low * 1.25
    return high / 1.25 if low == 0.0 else (low * high) ** 0.5


def _measured(plan: Plan, seen: Sequence[Observed]) -> Plan:
    """The plan with the mean shares it kept."""
    steps: list[Step] = []
    for step in plan.steps:
        padded, alive, total = _stacked(*_recorded(seen, step.site))
        share = float((allocate(padded, alive, step, total).double() / total).mean())
        bound = min((s.keep for s in steps if s.site.stack == step.site.stack), default=1.0)
        steps.append(replace(step, keep=min(share, bound)))
    return replace(plan, steps=tuple(steps))


def _recorded(seen: Sequence[Observed], site: Site) -> tuple[list[Tensor], list[int]]:
    """Scores and starting counts of all rows at a site."""
    scores = [row for one in seen for row in one.scores.get(site, ())]
    started = [int(n) for one in seen for n in one.started.get(site, ())]
    if not scores or len(scores) != len(started):
        raise InvalidPlan(
            f"the calibration run recorded {len(scores)} score rows and {len(started)} starting counts at {site}, expected one "
            "of each for every image or prompt; `run` must score at every site of the plan it is given, also where nothing "
            "leaves (atp.prune(..., record_all_scores=True)), and return `observed(run.trace.records, ...)`"
        )
    if any(row.dim() != 1 or len(row) == 0 for row in scores):
        raise AtpError(
            f"scores recorded at {site} are one vector [alive] a row, got shapes {[list(r.shape) for r in scores[:3]]}"
        )
    return scores, started


def _stacked(scores: Sequence[Tensor], started: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of different length as `[B, M]` scores, `[B, M]` alive, `[B]` starting counts."""
    padded = torch.nn.utils.rnn.pad_sequence([row.detach().cpu().double() for row in scores], batch_first=True)
    lengths = torch.tensor([len(row) for row in scores])
    alive = torch.arange(padded.shape[1])[None] < lengths[:, None]
    return padded, alive, torch.tensor(list(started))
