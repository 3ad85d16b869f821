"""A calibrated method on file: plans over budgets, and whose they are. Knows plans and parameters' values, nothing of models."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atp.budget.amount import check_share
from atp.budget.cost import Workload
from atp.errors import BadInput, InvalidPlan
from atp.plan import STACKS, Plan, Site, Step, write

FORMAT = "atp-calibration-1"
_TENSORS, _VALUES = 12, 4  # sampled for a fingerprint


@dataclass(frozen=True)
class Fingerprint:
    """Which weights a calibration was made with.

    Attributes:
        structure: hash of all parameters' shapes, in order.
        sample: a few values. Compared with a tolerance, so the same checkpoint is known in float32, bfloat16 and float16.
    """

    structure: str
    sample: tuple[float, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Read plain values."""
        return cls(str(data["structure"]), tuple(float(value) for value in data["sample"]))

    def matches(self, other: Fingerprint) -> bool:
        """Whether both belong to the same weights, up to the rounding of a dtype."""
        near = (abs(a - b) <= 1e-5 + 0.01 * max(abs(a), abs(b)) for a, b in zip(self.sample, other.sample, strict=False))
        return self.structure == other.structure and len(self.sample) == len(other.sample) and all(near)

    def difference(self, other: Fingerprint) -> str:
        """Say in what another model differs, empty where it does not."""
        if self.matches(other):
            return ""
        if self.structure == other.structure:
            return "this one has the same sizes but other weights"
        return f"this one has other sizes ({other.structure}, expected {self.structure})"


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> Fingerprint:
    """Fingerprint a model in about a millisecond.

    Args:
        parameters: names and tensors, e.g. `model.named_parameters()`.
    """
    tensors = [tensor.detach() for _, tensor in parameters]
    structure = hashlib.sha256(repr([tuple(tensor.shape) for tensor in tensors]).encode()).hexdigest()[:16]
    wide = [t for t in tensors if t.dim() >= 2 and t.is_floating_point() and not t.is_meta] or tensors[:1]
    values: list[float] = []
    for index in range(min(_TENSORS, len(wide))):
        flat = wide[index * len(wide) // min(_TENSORS, len(wide))].reshape(-1)
        places = torch.tensor([len(flat) * (2 * i + 1) // (2 * _VALUES) for i in range(_VALUES)], device=flat.device)
        values += flat[places].float().tolist()
    return Fingerprint(structure, tuple(values))


@dataclass(frozen=True)
class Calibration:
    """Adaptive plans of one method for one model, over budgets.

    Attributes:
        plans: one a budget, of the same method and options, sorted by budget; fixed ones may differ in their sites.
        fingerprint: of the model whose scores set the thresholds.
        workload: what the FLOPs were counted with.
        inputs: how many prompts were used.
        note: free words, e.g. the data's name and seed.
    """

    plans: tuple[Plan, ...]
    fingerprint: Fingerprint
    workload: Workload = dataclasses.field(default_factory=Workload)
    inputs: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if not self.plans or any(plan.budget is None for plan in self.plans):
            raise InvalidPlan("a calibration needs at least one plan, each with its budget; use calibrate(run, plan, budget=0.6)")
        ordered = tuple(sorted(self.plans, key=lambda plan: plan.budget or 0.0))
        for first, second in itertools.pairwise(ordered):
            if first.budget == second.budget:
                raise InvalidPlan(f"a calibration has one plan a budget, got two for {first.budget:g}; leave one out")
            if (first.method, dict(first.options)) != (second.method, dict(second.options)):
                raise InvalidPlan(
                    f"a calibration is of one method with the same options, got {first.method!r} {dict(first.options)} and "
                    f"{second.method!r} {dict(second.options)}; make one calibration each"
                )
        object.__setattr__(self, "plans", ordered)

    @property
    def method(self) -> str:
        """The method of all plans."""
        return self.plans[0].method

    @property
    def reach(self) -> tuple[float, float]:
        """Lowest and highest calibrated budget."""
        return self.plans[0].budget or 0.0, self.plans[-1].budget or 0.0

    def check(self, model: Fingerprint) -> None:
        """Refuse another model's thresholds.

        Raises:
            InvalidPlan: the fingerprints differ.
        """
        differs = self.fingerprint.difference(model)
        if differs:
            raise InvalidPlan(
                f"this calibration was made with another model: {differs}. Calibrate this model "
                "(atp fit-counts --model YOUR/MODEL), or leave calibration= away: "
                f"atp.prune(model, budget={self.reach[1]:g})"
            )

    def plan_for(self, budget: float, model: Fingerprint | None = None) -> Plan:
        """Return the plan of a budget: a calibrated one, or one interpolated between its neighbours.

        Between neighbours with thresholds at other sites it is the lower one, whose own budget is below the one asked for.

        Args:
            budget: share of the unpruned FLOPs.
            model: fingerprint to check against, see `check`.

        Raises:
            InvalidPlan: another model; a budget outside (0, 1] or outside the calibrated ones.
        """
        if model is not None:
            self.check(model)
        check_share("budget", budget, positive=True)
        low, high = self.reach
        if budget == 1:
            return Plan(self.method, (), self.plans[0].options, 1.0)
        if not low - 1e-9 <= budget <= high + 1e-9:
            raise InvalidPlan(
                f"budget {budget!r} is outside this calibration, which reaches from {low:g} to {high:g}; use a budget in that "
                f"range, calibrate for {budget!r}, or leave calibration= away: atp.prune(model, budget={budget!r})"
            )
        low_plan, high_plan = self.beside(budget)
        return low_plan if low_plan is high_plan else _interpolated(low_plan, high_plan, budget)

    def beside(self, budget: float) -> tuple[Plan, Plan]:
        """Return the calibrated plans next to a budget within `reach`; twice the same where it is a calibrated one itself."""
        for plan in self.plans:
            if abs((plan.budget or 0.0) - budget) <= 1e-9:
                return plan, plan
        above = next(i for i, plan in enumerate(self.plans) if (plan.budget or 0.0) > budget)
        return self.plans[above - 1], self.plans[above]

    def save(self, path: str | Path) -> None:
        """Write JSON.

        Raises:
            BadInput: it cannot be written.
        """
        data = {
            "format": FORMAT,
            "fingerprint": dataclasses.asdict(self.fingerprint),
            "workload": dataclasses.asdict(self.workload),
            "inputs": self.inputs,
            "note": self.note,
            "plans": [plan.to_dict() for plan in self.plans],
        }
        write(path, json.dumps(data, indent=1) + "\n", "calibration", "calibration.json")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            BadInput: the file is absent or no calibration.
            InvalidPlan: a plan in it is malformed.
        """
        data = read_json(path, "calibration")
        if data.get("format") != FORMAT:
            raise BadInput(
                f"{str(path)!r} is no calibration: expected format {FORMAT!r}, got {data.get('format')!r}; write it with save()"
            )
        return cls.from_dict(data, path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: str | Path) -> Calibration:
        """Read the content of a file.

        Raises:
            BadInput: something is missing.
        """
        try:
            known = Fingerprint.from_dict(data["fingerprint"])
            plans = tuple(Plan.from_dict(plan) for plan in data["plans"])
            return cls(plans, known, Workload(**data["workload"]), int(data["inputs"]), str(data["note"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"the calibration {str(path)!r} is damaged ({type(error).__name__}: {error}); calibrate the model again"
            ) from None


def read_json(path: str | Path, what: str) -> Mapping[str, Any]:
    """Read an object from a file.

    Raises:
        BadInput: absent, broken, or no object; `what` it should have been is said.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        wrote = "expected what atp fit-counts or atp calibrate wrote"
        raise BadInput(f"cannot read the {what} {str(path)!r}: {error}; {wrote}") from None
    return data if isinstance(data, Mapping) else {"format": type(data).__name__}


def _filled(plan: Plan, sites: Iterable[Site]) -> Plan:
    """The same plan with a step at each of the sites; where it had none, nothing leaves."""
    known, steps, there = {step.site: step for step in plan.steps}, list(plan.steps), dict.fromkeys(STACKS, 1.0)
    for site in sorted(sites, key=lambda site: site.layer):
        there[site.stack] = known[site].keep if site in known else there[site.stack]
        steps += [] if site in known else [Step(site, there[site.stack])]
    return replace(plan, steps=tuple(steps))


def _interpolated(low: Plan, high: Plan, budget: float) -> Plan:
    """Every number of every step, linearly between two neighbouring budgets; fixed plans may differ in their sites.

    Thresholds of other sites have no mean: then it is the lower plan, as its `budget` says.
    """
    sites = [[step.site for step in plan.steps] for plan in (low, high)]
    if sites[0] != sites[1] and not any(step.adaptive or step.text < 1 for plan in (low, high) for step in plan.steps):
        low, high = (_filled(plan, {*sites[0], *sites[1]}) for plan in (low, high))
    elif sites[0] != sites[1] or any(a.adaptive != b.adaptive for a, b in zip(low.steps, high.steps, strict=True)):
        return low
    weight = (budget - (low.budget or 0.0)) / ((high.budget or 0.0) - (low.budget or 0.0))

    def between(a: float, b: float) -> float:
        return a + weight * (b - a)

    steps: list[Step] = []
    for a, b in zip(low.steps, high.steps, strict=True):
        threshold = None if a.threshold is None or b.threshold is None else between(a.threshold, b.threshold)
        floor, ceiling = between(a.floor, b.floor), between(a.ceiling, b.ceiling)
        steps.append(replace(a, keep=between(a.keep, b.keep), threshold=threshold, floor=floor, ceiling=ceiling))
    return replace(low, steps=tuple(steps), budget=budget)
