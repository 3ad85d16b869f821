"""Thresholds for an average budget, found on a calibration set: one step after the other, then the FLOPs of the whole.

A threshold decides the count of every input from its own scores. What a later step sees depends on what earlier steps left,
so the thresholds are found in the order in which tokens meet them, each from scores recorded with the earlier ones in force;
a last search scales all of them until the mean counted FLOPs meet the budget. Knows plans and score tensors; the model is
behind a function that the caller passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atp.budget.allocate import allocate
from atp.budget.amount import check_share
from atp.errors import AtpError, InvalidPlan
from atp.plan import Plan, Site, Step
from atp.trace import Record

TOLERANCE, PART = 0.005, 0.01
"""A calibrated plan spends between budget - TOLERANCE and budget on the calibration set, as shares of the unpruned FLOPs, and no
larger part of a small budget is left over than PART."""
STRETCH, SAME = 0.22, 1e-3
"""First step of the search, in logs of the thresholds' factor, and the least one: nearer factors are the same."""


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


def calibrate(run: Run, plan: Plan, budget: float | None = None, *, tolerance: float | None = None, rounds: int = 12) -> Plan:
    """Turn a fixed plan into an adaptive one that spends the same on average.

    Args:
        run: runs the calibration set; called once a step, and at most `rounds` times more to correct the total.
        plan: fixed plan, e.g. from `solve`; its `keep` are the mean shares to reach. Where steps are absolute, only they get
            thresholds and the others keep their counts.
        budget: mean share of the unpruned FLOPs; None = that of the plan. Where both are None, only the shares count.
        tolerance: the result spends at most `budget` and at least `budget - tolerance`, where the scores permit; None = the
            smaller one of `TOLERANCE` and `PART` of the budget.
        rounds: runs for the correction; half as many more where no common factor meets the budget.

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
    fits = fitted(plan)
    for step in steps:
        wanted = step in fits
        step = replace(step, keep=min([step.keep, *(s.keep for s in found if s.site.stack == step.site.stack)]))
        if not wanted:
            found.append(step)
            continue
        probe = replace(plan, steps=(*found, replace(step, threshold=None)))
        found.append(_fitted(step, found, *_recorded(run(probe), step.site)))
    adaptive = replace(plan, steps=tuple(found), budget=budget)
    if budget is None:
        return _measured(adaptive, run(adaptive))
    return _corrected(run, adaptive, budget, min(TOLERANCE, PART * budget) if tolerance is None else tolerance, rounds)


def fitted(plan: Plan) -> list[Step]:
    """Return the steps that get thresholds: the absolute ones, or where there is none all."""
    return [step for step in plan.steps if step.absolute] or list(plan.steps)


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


@dataclass
class _Search:
    """Tries plans and remembers the best: what spends most of the budget, and not more.

    Attributes:
        run: runs the calibration set.
        budget: not to be passed. tolerance: by which it may be missed. rounds: runs that are left.
        best: share and plan; None = all spent too much. least: spent by any.
    """

    run: Run
    budget: float
    tolerance: float
    rounds: int
    best: tuple[float, Plan] | None = None
    least: float = float("inf")

    def spends(self, plan: Plan) -> float:
        """Run a plan and return the share it spends."""
        seen, self.rounds = self.run(plan), self.rounds - 1
        share = spent(seen)
        self.least = min(self.least, share)
        if share <= self.budget and (self.best is None or share > self.best[0]):
            self.best = (share, _measured(plan, seen))
        return share

    @property
    def done(self) -> bool:
        """Whether the budget is met, or no run is left."""
        return self.rounds <= 0 or (self.best is not None and self.best[0] >= self.budget - self.tolerance)

    def between(self, low: Plan, high: Plan) -> None:
        """Take thresholds of `low`, which spends too much, at the first sites, of `high` behind them; at one also half way."""
        below, above = 0, len(low.steps)  # steps that are of `low`
        while above - below > 1 and not self.done:
            middle = (below + above) // 2
            mixed = replace(high, steps=(*low.steps[:middle], *high.steps[middle:]))
            below, above = (below, middle) if self.spends(mixed) > self.budget else (middle, above)
        step, bottom, top = low.steps[below], low.steps[below].floor, low.steps[below].ceiling
        while step.adaptive and top - bottom > 1e-3 and not self.done:
            ceiling = (bottom + top) / 2  # inputs whose count jumps from much to little at once are held in between
            cut = replace(step, ceiling=ceiling, keep=min(step.keep, ceiling))
            later = high.steps[below + 1 :]
            later = tuple(replace(s, keep=min(s.keep, cut.keep)) if s.site.stack == step.site.stack else s for s in later)
            mixed = replace(high, steps=(*low.steps[:below], cut, *later))
            bottom, top = (bottom, ceiling) if self.spends(mixed) > self.budget else (ceiling, top)


def _corrected(run: Run, plan: Plan, budget: float, tolerance: float, rounds: int) -> Plan:
    """Scale all thresholds by a common factor until the mean FLOPs lie in [budget - tolerance, budget].

    Where many tokens have one score, no factor does: a smaller one spends too much, the next larger one much less. Then some
    sites take the one, the others the other.
    """
    search = _Search(run, budget, tolerance, max(1, rounds))
    low: tuple[float, float] | None = None  # log of a factor, and the share it spends: too much, and little enough
    high: tuple[float, float] | None = None
    power, stretch = 0.0, STRETCH
    while not search.done:
        share = search.spends(_scaled(plan, power))
        low, high = ((power, share), high) if share > budget else (low, (power, share))
        if low and high and high[0] - low[0] < SAME:
            break
        power = _next(low, high, budget - tolerance / 2, stretch, search.rounds % 2 == 0)
        stretch = min(2 * stretch, 4.0)
    if search.best is None:
        raise InvalidPlan(
            f"no scale of the thresholds of {plan.method!r} at {', '.join(str(s.site) for s in plan.steps)} brings the mean "
            f"FLOPs down to {budget:g}: the lowest found is {search.least:.3f}; ask for budget={search.least + 0.005:.2f}, "
            "lower the steps' floor, or use a fixed plan"
        )
    search.rounds += max(1, rounds) // 2
    if low and high and not search.done:
        search.between(_scaled(plan, low[0]), _scaled(plan, high[0]))
    return search.best[1]


def _scaled(plan: Plan, power: float) -> Plan:
    """The plan with all thresholds times e to a power."""
    steps = (s if s.threshold is None else replace(s, threshold=s.threshold * math.exp(power)) for s in plan.steps)
    return replace(plan, steps=tuple(steps))


def _next(low: tuple[float, float] | None, high: tuple[float, float] | None, aim: float, stretch: float, halve: bool) -> float:
    """Where to try next: beyond what is known, or between, nearer to what spends nearer to the aim or in the middle."""
    if low is None or high is None:
        known = low or high
        assert known is not None
        return known[0] + (stretch if high is None else -stretch)
    part = 0.5 if halve else (low[1] - aim) / max(low[1] - high[1], 1e-12)
    return low[0] + min(max(part, 0.15), 0.85) * (high[0] - low[0])


def _measured(plan: Plan, seen: Sequence[Observed]) -> Plan:
    """The plan with the mean shares it kept."""
    steps: list[Step] = []
    for step in plan.steps:
        share = step.keep  # of a fixed step: another one would be another plan
        if step.adaptive:
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
