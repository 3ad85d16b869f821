"""A certificate on file: a plan, the bound on its accuracy drop, and whose it is. Knows plans and fingerprints, no statistics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atp.budget.calibration import FORMAT as CALIBRATION
from atp.budget.calibration import Calibration, Fingerprint, read_json
from atp.errors import BadInput, InvalidPlan
from atp.plan import Plan, write

FORMAT = "atp-certificate-1"


@dataclass(frozen=True)
class Certificate:
    """With this confidence the plan's mean accuracy drop on such items is at most `max_drop`.

    Attributes:
        plan: that was certified, as it is.
        fingerprint: of the model that answered.
        budget: the grid's value that the plan stands for.
        max_drop, confidence: the bound and its probability, shares.
        observed_drop: mean of the unpruned score minus the pruned one.
        items: independent ones that were asked, one an image.
        task: what was asked.
        dtype: of the weights that answered.
        details: grid with p-values, test, theorem, seed, versions, and what else makes it traceable.
    """

    plan: Plan
    fingerprint: Fingerprint
    budget: float
    max_drop: float
    confidence: float
    observed_drop: float
    items: int
    task: str
    dtype: str = "float32"
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def statement(self) -> str:
        """The claim in a sentence."""
        return (
            f"with {self.confidence:.1%} confidence, {self.plan.method} at {self.budget:g} of the FLOPs loses at most "
            f"{100 * self.max_drop:g} points of accuracy on {self.task} (observed {100 * self.observed_drop:+.2f} on "
            f"{self.items} independent items)"
        )

    def plan_for(self, model: Fingerprint, budget: float | None = None) -> Plan:
        """Return the plan, after checking that the bound was shown for it.

        Args:
            model: fingerprint of the model that shall run.
            budget: asked for beside the certificate; None = none.

        Raises:
            InvalidPlan: another model, or another budget than the certified one.
        """
        differs = self.fingerprint.difference(model)
        if differs:
            raise InvalidPlan(
                f"this certificate was made with another model: {differs}; its bound says nothing about this one. "
                f"Make one for it: atp calibrate --model ... --max-drop {self.max_drop:g} --confidence {self.confidence:g}"
            )
        if budget is not None and abs(budget - self.budget) > 1e-9:
            raise InvalidPlan(
                f"the certificate is for budget {self.budget:g}, got budget={budget!r}; leave budget= away, or leave "
                "calibration= away and do without the bound"
            )
        return self.plan

    def save(self, path: str | Path) -> None:
        """Write JSON.

        Raises:
            BadInput: it cannot be written.
        """
        plain = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        data = {"format": FORMAT, "statement": self.statement, **plain}
        data |= {"plan": self.plan.to_dict(), "fingerprint": dataclasses.asdict(self.fingerprint), "details": dict(self.details)}
        write(path, json.dumps(data, indent=1, allow_nan=False) + "\n", "certificate", "certificate.json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: str | Path) -> Certificate:
        """Read the content of a file.

        Raises:
            BadInput: something is missing.
        """
        try:
            numbers = {name: float(data[name]) for name in ("budget", "max_drop", "confidence", "observed_drop")}
            task, dtype = str(data["task"]), str(data["dtype"])
            plan, mark = Plan.from_dict(data["plan"]), Fingerprint.from_dict(data["fingerprint"])
            return cls(plan, mark, items=int(data["items"]), task=task, dtype=dtype, details=dict(data["details"]), **numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"the certificate {str(path)!r} is damaged ({type(error).__name__}: {error}); run atp calibrate again"
            ) from None


def load_table(path: str | Path) -> Calibration | Certificate:
    """Read what `Calibration.save` or `Certificate.save` wrote.

    Raises:
        BadInput: the file is absent or neither.
    """
    data = read_json(path, "calibration")
    if data.get("format") == FORMAT:
        return Certificate.from_dict(data, path)
    if data.get("format") == CALIBRATION:
        return Calibration.from_dict(data, path)
    raise BadInput(
        f"{str(path)!r} is no calibration: expected format {CALIBRATION!r} or {FORMAT!r}, got {data.get('format')!r}; "
        "write one with atp calibrate"
    )
