"""The control where towers take no other size: a smaller image, of fewer tiles or a smaller grid. No pruning at all."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atp.bench.subject import Subject
from atp.budget.cost import Flops, Workload, count
from atp.engine import prune
from atp.errors import BadInput

SCALES = tuple(percent / 100 for percent in range(95, 0, -5))
"""Of both sides of a picture, so that its shape stays."""


@dataclass(frozen=True)
class Smaller:
    """A smaller image than all other sides have.

    Attributes:
        flops: of one prompt with it, and of one with the whole image.
        tiles: it is cut into so many; None = as all others.
        grid: visual tokens of it, drawn at random; None = as all others.
        scale: of both sides of a picture before the processor, and the tokens of a prompt with it and with the whole picture;
            None = as all others.
    """

    flops: tuple[Flops, Flops]
    tiles: int | None = None
    grid: tuple[int, int] | None = None
    scale: tuple[float, int, int] | None = None


def smaller_image(subject: Subject, workload: Workload, budget: float) -> Smaller | None:
    """Return the largest one that the budget permits; None = there is none.

    Args:
        subject: its picture goes through its processor, or its image is drawn at random.
        workload: of the whole image.
        budget: share of its FLOPs.
    """
    if subject.processor is not None:
        return _picture(subject, workload.answer, budget)
    shape = subject.adapter.shape
    whole = count(shape, workload)
    if subject.adapter.any_size:
        for side in range(min(subject.adapter.grid) - 1, 0, -1):
            spent = count(subject.sized((side, side)).shape, workload)
            if spent.total <= budget * whole.total:
                return Smaller((spent, whole), grid=(side, side))
    for tiles in range(workload.images - 1, 0, -1):
        try:
            own = subject.workload(subject.inputs(1, tiles), workload.answer)
        except BadInput:  # a number of tiles that no image has
            continue
        spent = count(shape, own)
        if spent.total <= budget * whole.total:
            return Smaller((spent, whole), tiles)
    return None


def _picture(subject: Subject, answer: int, budget: float) -> Smaller | None:
    """Scale the picture down until what the processor makes of it meets the budget; some make the same of every size."""
    given = subject.inputs(1)
    whole = unpruned(subject, given, answer)
    tried: list[tuple[float, dict[str, Tensor]]] = []
    seen = [_sizes(given)]
    for scale in SCALES:
        inputs = subject.inputs(1, scale=scale)
        if _sizes(inputs) not in seen:
            seen.append(_sizes(inputs))
            tried.append((scale, inputs))
    fits = bisect_left(tried, True, key=lambda one: unpruned(subject, one[1], answer).total <= budget * whole.total)
    if fits == len(tried):
        return None
    scale, inputs = tried[fits]
    spent = unpruned(subject, inputs, answer)
    return Smaller((spent, whole), scale=(scale, inputs["input_ids"].shape[1], given["input_ids"].shape[1]))


def unpruned(subject: Subject, inputs: dict[str, Tensor], answer: int) -> Flops:
    """Count the FLOPs of a batch by letting the model run."""
    model: Any = subject.model
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing leaves
        with prune(model, 1.0, "none", processor=subject.processor) as run:
            model.generate(**inputs, max_new_tokens=answer, min_new_tokens=answer, do_sample=False)
    return run.report().flops


def _sizes(inputs: dict[str, Tensor]) -> Sequence[Any]:
    return [(name, tuple(value.shape)) for name, value in sorted(inputs.items())]
