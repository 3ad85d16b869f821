"""Grounding of methods on one model: all measures with chance and the model's own attention beside them, and deletion."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp.budget.cost import Workload
from atp.engine import prune
from atp.errors import BadInput, InvalidPlan, UnreachableBudget
from atp.evals.grounding import measures
from atp.evals.grounding.measures import MEASURES, Floats
from atp.evals.grounding.subjects import Subject
from atp.evals.grounding.watching import Batch, Seen, Watched, chance, fixed, own_plans, watch
from atp.evals.harness.answering import Asker
from atp.evals.stats import paired_bootstrap
from atp.plan import Plan, Site

BY = ("method", "drawn", "expected", "attention")
"""Who chose: the method; a random draw; all random draws on average; the unpruned model's own attention, at the same counts."""
Step = Callable[[str], None]


@dataclass
class Bench:
    """A model with the subjects that all methods are measured on.

    Attributes:
        asker: model and processor.
        subjects: what is asked.
        prompts: the same in batches.
        boxes: of each subject, the part of its image that the model sees, in pixels.
        work: that plans are solved for.
        seed: of random choice.
        step: told what is about to run.
    """

    asker: Asker
    subjects: Sequence[Subject]
    prompts: Sequence[Batch]
    boxes: Sequence[measures.Box]
    work: Workload
    seed: int = 0
    step: Step = field(default=lambda words: None)

    def __post_init__(self) -> None:
        self.groups: NDArray[np.int64] = np.array([subject.group for subject in self.subjects])

    def watch(self, words: str, plan: Plan, **options: Any) -> Watched:
        """Ask everything under a plan."""
        self.step(words)
        return watch(self.asker, self.prompts, plan, **options)

    def right(self, watched: Watched) -> Floats:
        """Return 1 where an answer is the truth, `[M]`."""
        return np.array([float(said == s.answer) for said, s in zip(watched.answers, self.subjects, strict=True)])

    def between(self, first: Floats, second: Floats) -> dict[str, float] | None:
        """Return the mean difference in points with its interval, over the subjects that both value; None = there are none."""
        both = np.isfinite(first) & np.isfinite(second)
        return dataclasses.asdict(paired_bootstrap(first[both], second[both], self.groups[both])) if both.any() else None


def build(bench: Bench, budget: float, methods: Sequence[str]) -> dict[str, Any]:
    """Measure methods at one budget; return plain values.

    Raises:
        BadInput: none of them can be measured, with the reasons; or a model without one grid an image.
    """
    plans, left_out = plans_of(bench, budget, methods)
    if not plans:
        raise BadInput(f"no method is left to measure: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    sites = sorted({step.site for plan in plans.values() for step in plan.steps})
    whole = bench.watch("unpruned", Plan("none"))
    own: dict[str, dict[int, Seen]] = {}
    for plan in own_plans(sites):
        own |= bench.watch("own attention", plan, all_scores=True, longest=1).sites
    right = bench.right(whole)
    rows = {name: measure(bench, name, plan, own, right) for name, plan in plans.items()}
    return {"budget": budget, "unpruned": float(100 * right.mean()), "methods": rows, "left_out": left_out}


def plans_of(bench: Bench, budget: float, methods: Sequence[str]) -> tuple[dict[str, Plan], dict[str, str]]:
    """Return the plan of each method, with counts alike for all inputs, and why others have none."""
    plans: dict[str, Plan] = {}
    left_out: dict[str, str] = {}
    for name in methods:
        try:
            plan = solved(bench, budget, name)
        except InvalidPlan as error:
            left_out[name] = str(error)
            continue
        if not plan.steps or any(step.site.stack == "pixels" for step in plan.steps):
            left_out[name] = "it chooses no patches"
        else:
            plans[name] = plan
    return plans, left_out


def solved(bench: Bench, budget: float, name: str) -> Plan:
    """Return a method's plan for a budget, or for the lowest one that it reaches.

    Raises:
        InvalidPlan: it has none on this model.
    """

    def at(share: float) -> Plan:
        with prune(bench.asker.model, budget=share, method=name, workload=bench.work) as run:
            return fixed(run.plan)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no forward with an image", UserWarning)
        try:
            return at(budget)
        except UnreachableBudget as error:
            return at(error.lowest)


def measure(bench: Bench, name: str, plan: Plan, own: Mapping[str, dict[int, Seen]], right: Floats) -> dict[str, Any]:
    """Measure one method.

    Args:
        bench: model and subjects.
        name, plan: of the method.
        own: what the unpruned model's own attention says at each site.
        right: of the unpruned model, `[M]`.
    """
    kept = bench.watch(name, plan)
    told: dict[str, Any] = {"plan": plan.to_dict(), "flops_share": kept.flops_share, "sites": {}}
    for at in plan.steps:
        label = str(at.site)
        seen = kept.sites.get(label, {})
        if not seen or next(iter(seen.values())).grid is None:
            told["sites"][label] = None  # queries or latents, not patches
            continue
        told["sites"][label] = located(bench, seen, own.get(label, {}), at.site)
    told["deletion"] = deletion(bench, name, plan, kept, right)
    return told


def located(bench: Bench, seen: Mapping[int, Seen], own: Mapping[int, Seen], site: Site) -> dict[str, Any]:
    """Sum up where a site's survivors lie: by measure, the mean of each of `BY` in points, and differences with intervals."""
    found = {by: {name: np.full(len(bench.subjects), np.nan) for name in MEASURES} for by in BY}
    for number, subject in enumerate(bench.subjects):
        rng = np.random.default_rng([bench.seed, number, site.layer, site.stack == "language"])
        for by, values in compared(subject, bench.boxes[number], seen[number], own.get(number), rng).items():
            for name, value in values.items():
                found[by][name][number] = value
    counts = np.array([one.kept.sum() for one in seen.values()])
    told: dict[str, Any] = {"kept": float(counts.mean()), "of": len(seen[0].kept), "measures": {}}
    for name in MEASURES:
        own_values = {by: found[by][name] for by in BY}
        known = np.isfinite(own_values["method"])
        means = {
            by: float(100 * v[known].mean()) if known.any() and np.isfinite(v[known]).all() else None
            for by, v in own_values.items()
        }
        against = {by: bench.between(own_values["method"], own_values[by]) for by in BY[1:]}
        told["measures"][name] = {"items": int(known.sum()), **means, "minus": against}
    return told


def compared(
    subject: Subject, box: measures.Box, seen: Seen, own: Seen | None, rng: np.random.Generator
) -> dict[str, measures.Values]:
    """Measure one image at one site, by each of `BY` that there is."""
    assert seen.grid is not None, "only sites with patches are measured"
    covered = measures.cover(subject.mask, seen.grid, box)
    if not covered.any():  # the object lies outside of what the model sees
        return {}
    count, facts = int(seen.kept.sum()), (covered, seen.grid, subject.regions)
    told = {
        "method": measures.measured(*facts, seen.kept, seen.scores, seen.alive),
        "drawn": measures.drawn(*facts, count, rng),
        "expected": measures.expected(*facts, count),
    }
    if own is not None and own.scores is not None:
        told["attention"] = measures.measured(*facts, measures.highest(own.scores, count), own.scores)
    return told


def deletion(bench: Bench, name: str, plan: Plan, kept: Watched, right: Floats) -> dict[str, Any]:
    """Answer from what the method drops instead of what it keeps, and from random tokens, at the same counts in every site.

    What a method merges into its survivors would be in all of them, so here nothing is merged.

    Returns:
        Accuracies in points, `merged` with what the method merges, None where it merges nothing; differences with intervals;
        `shared`, the share of the survivors of the last site that kept and dropped have in common.
    """
    merged = kept if kept.fuses else None
    kept = bench.watch(f"{name}, nothing merged", plan, alone=True) if merged else kept
    inverse = bench.watch(f"{name}, the dropped", plan, inverse=True)
    random = bench.watch(f"{name}, random", chance(plan, bench.seed))
    scores = {"kept": bench.right(kept), "random": bench.right(random), "dropped": bench.right(inverse)}
    last = str(plan.steps[-1].site)
    both = [(kept.sites[last][n].kept, inverse.sites[last][n].kept) for n in range(len(bench.subjects))]
    return {
        **{by: float(100 * values.mean()) for by, values in scores.items()},
        "merged": float(100 * bench.right(merged).mean()) if merged else None,
        "kept_minus_dropped": bench.between(scores["kept"], scores["dropped"]),
        "kept_minus_random": bench.between(scores["kept"], scores["random"]),
        "kept_minus_unpruned": bench.between(scores["kept"], right),
        "shared": float(100 * np.mean([(mine & theirs).sum() / max(1, mine.sum()) for mine, theirs in both])),
    }
