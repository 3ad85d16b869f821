"""What a plan costs in the unit of a budget; and milliseconds, fitted to measured ones. Knows shapes, counts and numbers only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from atp.budget.cost import Flops, Lengths, Workload, cache_bytes, count, equivalent_tokens, lengths_of, selection_flops
from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.plan import Plan

More = Callable[[Plan, Lengths], float]
"""FLOPs that a method's own arithmetic adds."""


@dataclass(frozen=True)
class Clock:
    """Milliseconds of a prompt on one device: `fixed + per_tower F_tower + per_language F_language`, and `choosing` if pruned.

    Attributes:
        fixed: what does not depend on the tokens.
        per_tower, per_language: per 1e9 FLOPs of tower and connector, and of the prefill.
        choosing: what a pruned run adds for scoring, gathering and hooks.
        misfit: largest share by which a measured time differs from the fitted one.
    """

    fixed: float
    per_tower: float
    per_language: float
    choosing: float
    misfit: float = 0.0

    def milliseconds(self, flops: Flops, pruned: bool) -> float:
        """Time until the first token."""
        spent = self.per_tower * (flops.vision + flops.connector) + self.per_language * flops.prefill
        return self.fixed + spent / 1e9 + self.choosing * pruned


def fit(points: Sequence[tuple[Flops, bool, float]]) -> Clock:
    """Fit a clock by least squares without negative parts.

    Args:
        points: FLOPs of a run until its first token, whether it was pruned, and its milliseconds.

    Raises:
        InvalidPlan: no point.
    """
    if not points:
        raise InvalidPlan("a clock is fitted to at least one measured time, got none")
    rows = np.array([[1.0, (f.vision + f.connector) / 1e9, f.prefill / 1e9, float(pruned)] for f, pruned, _ in points])
    took = np.array([milliseconds for *_, milliseconds in points])
    best, least = np.zeros(4), float("inf")
    for size in range(1, 5):
        for used in itertools.combinations(range(4), size):  # fifteen small problems: all non-negative least squares needs
            found = np.zeros(4)
            found[list(used)] = np.linalg.lstsq(rows[:, used] / took[:, None], np.ones(len(took)), rcond=None)[0]
            error = float((((rows @ found) / took - 1) ** 2).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = found, error
    fixed, tower, language, choosing = best.tolist()
    return Clock(fixed, tower, language, choosing, float(np.abs(rows @ best / took - 1).max()))


@dataclass(frozen=True)
class Prices:
    """Counts a plan in any unit.

    Attributes:
        shape, workload: of the model and its prompts.
        raters: rows computed per site of each stack.
        more: FLOPs of choosing besides those rows.
        value_bytes: of one number in the cache.
        clock: of the device; None = milliseconds are not known.
    """

    shape: ModelShape
    workload: Workload
    raters: Mapping[str, float]
    more: More | None = None
    value_bytes: int = 2
    clock: Clock | None = None

    def flops(self, plan: Plan, workload: Workload | None = None) -> Flops:
        """FLOPs of a plan, selection included."""
        workload = workload or self.workload
        lengths = lengths_of(self.shape, workload, plan)
        choosing = selection_flops(self.shape, workload, plan, self.raters, lengths)
        return count(self.shape, workload, lengths, choosing + (self.more(plan, lengths) if self.more else 0.0))

    def of(self, plan: Plan, unit: str) -> float:
        """Return what a plan costs in a unit of `Budget`.

        Raises:
            InvalidPlan: milliseconds without a clock.
        """
        if unit == "share":
            return self.flops(plan).total / count(self.shape, self.workload).total
        first = replace(self.workload, answer=1)
        if unit == "tokens":
            return equivalent_tokens(lengths_of(self.shape, first, plan), first)
        if unit == "bytes":
            return cache_bytes(self.shape, first, lengths_of(self.shape, first, plan), self.value_bytes)
        if self.clock is None:
            raise InvalidPlan(
                "milliseconds are those of a model on a device; use atp.prune(model, budget='250 ms'), which measures them"
            )
        return self.clock.milliseconds(self.flops(plan, first), bool(plan.steps))
