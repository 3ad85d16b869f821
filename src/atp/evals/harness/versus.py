"""One method against each other one, setting by setting at the same budget, over the items that both answered. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from atp.evals.harness import gather
from atp.evals.harness.cells import label
from atp.evals.harness.execute import CLEAN
from atp.evals.harness.gather import Gathered
from atp.evals.harness.settings import REFERENCE
from atp.evals.stats import Interval, paired_bootstrap
from atp.evals.tasks.base import REGISTRY as TASKS

SAME = 0.01  # relative difference of counted FLOPs up to which two settings cost the same
LOWER = ("chair_s", "chair_i")
"""Metrics of which less is better."""
VERDICTS = ("win", "tie", "loss")


@dataclass(frozen=True)
class Versus:
    """A method against another at one budget of one task.

    Attributes:
        task, budget, other: where, and against whom.
        metric: that is compared.
        gap: the method minus the other, in points.
        items: that both answered.
        flops, other_flops: shares of the unpruned ones.
    """

    task: str
    budget: float
    other: str
    metric: str
    gap: Interval
    items: int
    flops: float
    other_flops: float

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`: a win or a loss only where the interval leaves 0 out."""
        low, high = (-self.gap.high, -self.gap.low) if self.metric in LOWER else (self.gap.low, self.gap.high)
        return "win" if low > 0 else "loss" if high < 0 else "tie"

    @property
    def equal(self) -> bool:
        """Whether both cost the same, see `SAME`."""
        return abs(self.flops - self.other_flops) <= SAME * self.flops


def versus(found: Gathered, first: str = "atp") -> Iterator[Versus]:
    """Compare a method with every other one wherever both have answers.

    Args:
        found: the records; disturbed items are left out.
        first: the method.
    """
    for task in found.tasks:
        for cell in found.cells(task).values():
            method, budget = cell["method"], cell["budget"]
            if budget is not None and method not in (first, REFERENCE):
                one = _duel(found, task, budget, first, method)
                if one is not None:
                    yield one


def against_fixed(found: Gathered, task: str) -> dict[str, Versus]:
    """Compare counts per input with the same method's fixed counts at the same budget; by the name of the former."""
    duels = {}
    for name, cell in found.cells(task).items():
        plan, budget = cell.get("plan") or {"steps": ()}, cell["budget"]
        if budget is not None and any(step.get("threshold") is not None for step in plan["steps"]):
            duels[name] = _duel(found, task, budget, cell["method"], plan["method"])
    return {name: one for name, one in duels.items() if one is not None}


def _duel(found: Gathered, task: str, budget: float, first: str, method: str) -> Versus | None:
    """Compare two methods at a budget; None where they have no answer to one item."""
    metric = TASKS.get(task.partition(":")[0]).primary
    mine, theirs = (found.of(task, CLEAN, label(name, budget)) for name in (first, method))
    both = gather.shared(mine, theirs, metric)
    if not both:
        return None
    own, other = gather.scores(mine, both, metric), gather.scores(theirs, both, metric)
    gap = paired_bootstrap(own, other, gather.images(mine, both))
    flops, others = (float(gather.cost(entries)["flops_share"]) for entries in (mine, theirs))
    return Versus(task, budget, method, metric, gap, len(both), flops, others)


def tally(found: Iterable[Versus]) -> dict[str, int]:
    """Count the verdicts."""
    verdicts = [one.verdict for one in found]
    return {name: verdicts.count(name) for name in VERDICTS}
