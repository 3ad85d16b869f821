"""Counts rounded down to what matrix units like: rows in multiples of 16 or 32. Knows shapes and counts."""

from __future__ import annotations

from dataclasses import replace

from atp.budget.cost import Workload, lengths_of, whole
from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.plan import Plan, Step


def rounded(plan: Plan, shape: ModelShape, workload: Workload, multiple: int) -> Plan:
    """Lower the counts of fixed steps until the rows that layers run on, class token or text included, are multiples.

    It never spends more than the plan. A count without a multiple below it stays, and so do thresholds, the image's own size,
    and language models whose visual tokens are no rows.

    Args:
        plan: solved for `workload`; other prompts have other rows.
        shape: sizes of the model.
        workload: images and text of a prompt.
        multiple: rows of a tile, e.g. 32 for bfloat16.

    Raises:
        InvalidPlan: a multiple below 1.

    Example:
        >>> rounded(atp.solve(shape, 0.6, workload=work), shape, work, 32)
    """
    if multiple < 1:
        raise InvalidPlan(f"counts are rounded to a multiple of at least 1, got {multiple}; e.g. 32")

    texts = lengths_of(shape, workload, plan).texts(workload)

    def step(given: Step) -> Step:
        if given.adaptive or given.site.stack == "pixels" or (given.site.stack == "language" and shape.cross is not None):
            return given
        tower = given.site.stack == "vision"
        started = shape.patches // shape.group if tower else workload.images * shape.visual
        each, beside = (shape.group, shape.prefix) if tower else (1, int(texts[given.site.layer]))
        count = whole(given.keep, started)
        fits = (n for n in range(count, 0, -1) if (n * each + beside) % multiple == 0)
        return replace(given, keep=next(fits, count) / started)

    return replace(plan, steps=tuple(map(step, plan.steps)))
