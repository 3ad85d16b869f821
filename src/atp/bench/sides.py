"""What is compared: the unpruned model, every method at every budget, counts per input, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from atp.bench.smaller import Smaller, smaller_image
from atp.bench.subject import Subject
from atp.budget.cost import Workload, visual_after
from atp.budget.rounding import rounded
from atp.calibrations import beside
from atp.engine import prune
from atp.errors import BadInput, InvalidPlan, UnknownMethod, UnsupportedModel
from atp.kernels import obstacle
from atp.plan import Plan, Step

BASE = "unpruned"
ALL, SMALLER = "keep-all", "resize"


@dataclass(frozen=True)
class Side:
    """One of the things that are compared.

    Attributes:
        name: as tables show it.
        plan: None = unpruned.
        quantised: whether it runs on the subject's quantised copy.
        smaller: its image, where that stands for `resize` as the tower takes no other size; None = as all others.
        kernels: what computes attention rows, see `atp.kernels`.
        eager: whether the language model writes its attention out as a map.
    """

    name: str
    plan: Plan | None = None
    quantised: bool = False
    smaller: Smaller | None = None
    kernels: str = "torch"
    eager: bool = False

    @property
    def method(self) -> str | None:
        """Of its plan."""
        return None if self.plan is None else self.plan.method


def sides(subject: Subject, workload: Workload) -> tuple[list[Side], dict[str, str]]:
    """Return the unpruned side and all others; and those that cannot be, with the reason.

    Raises:
        AtpError: that of the first method, where no method is left; kernels that cannot run on the subject's device.
    """
    settings = subject.settings
    why = obstacle(subject.device) if settings.kernels != "torch" else None
    if why is not None:
        raise BadInput(f"--kernels {settings.kernels}: {why}")
    made, left_out = [Side(BASE)], {}
    first: Exception | None = None
    found = 0
    for row, given in beside(list(dict.fromkeys((*settings.methods, *settings.compare))), subject.given):
        method, table = (row, None) if given is None else (given.method, given.table)
        asked = given is not None or row in settings.methods
        for budget in settings.budgets if given is None else given.budgets(settings.budgets):
            stay = None if method == SMALLER else settings.keep_tiles
            how: dict[str, Any] = {"processor": subject.processor, "workload": workload, "tiles": stay, "calibration": table}
            try:
                with prune(subject.model, budget, method, **how) as run:
                    name = f"{row} {budget:g}" + ("" if stay is None else f", tiles {stay:g}")
                    own = list(_of_plan(subject, workload, run.plan, name, asked))
            except UnknownMethod:
                raise
            except (InvalidPlan, UnsupportedModel) as error:
                fewer = smaller_image(subject, workload, budget) if method == SMALLER else None
                if fewer is not None:
                    made.append(Side(f"{SMALLER} {budget:g}", smaller=fewer))
                    continue
                left_out[f"{row} {budget:g}"] = str(error)
                first = first or (error if asked else None)
                continue
            made += own
            found += asked
    if not found and first is not None:
        raise first
    inside = [side for side in made if side.plan is not None and all(s.site.stack != "pixels" for s in side.plan.steps)]
    if settings.keep_all and inside and inside[0].plan is not None:
        inside.append(keep_all(subject, workload, inside[0].plan))
        made.append(inside[-1])
    made += [replace(side, name=f"{side.name}, eager", eager=True) for side in inside if side.method in settings.eager]
    if settings.kernels != "torch":
        made += [replace(side, name=f"{settings.kernels} + {side.name}", kernels=settings.kernels) for side in inside]
    if subject.quantised is not None:
        word = str(settings.quant)
        made += [replace(side, name=word if side.name == BASE else f"{word} + {side.name}", quantised=True) for side in made]
    return made, left_out


def _of_plan(subject: Subject, workload: Workload, plan: Plan, name: str, asked: bool) -> Iterator[Side]:
    """Yield the side of a plan, and one whose counts are rounded."""
    yield Side(name, plan)
    multiple = subject.settings.round_to
    if multiple is not None and asked:
        smaller = rounded(plan, subject.adapter.shape, workload, multiple)
        if smaller != plan:
            yield Side(f"{name} /{multiple}", smaller)


def keep_all(subject: Subject, workload: Workload, plan: Plan) -> Side:
    """Return the sites of a plan, with one token left out at each: all the machinery, and next to nothing saved."""
    shape = subject.adapter.shape
    patches = shape.patches // shape.group
    alive = {"vision": patches, "language": workload.images * shape.visual}
    started, steps = dict(alive), []
    for step in plan.steps:
        stack = step.site.stack
        alive[stack] -= 1
        if stack == "vision":
            arrived = math.floor(workload.images * visual_after(shape, alive[stack] * shape.group))
            alive["language"] = min(alive["language"], arrived)
        steps.append(Step(step.site, max(0, alive[stack]) / started[stack]))
    return Side(f"{plan.method} {ALL}", replace(plan, steps=tuple(steps), budget=None))
