"""Resize: the control that shows the model a smaller image. Knows tensors, nothing of models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.methods.base import Method, register
from atp.plan import Site
from atp.tokens import Tokens


@register("resize")
@dataclass(frozen=True)
class Resize(Method):
    """Downsample the image to g' x g' patches before it is cut, with `keep = (g' / g)**2` at the site pixels:0.

    The tower runs on g' x g' patches with interpolated position embeddings; each stands at the place of the full grid
    nearest to its centre, and all other places are dead, so the language model drops them at layer 0 and ids do not change.
    Cost: none beyond the interpolation.
    """

    stacks: ClassVar[tuple[str, ...]] = ("pixels",)

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return pixels:0."""
        return (Site("pixels", 0),)

    def score(self, tokens: Tokens) -> Tensor:
        """Return 1 at the places that stand for a larger patch, else 0."""
        return tokens.alive.to(torch.float32)


def smaller_grid(side: int, keep: float) -> int:
    """Return g' of a grid of `side` x `side` patches: the whole number nearest to side * sqrt(keep), at least 1."""
    return max(1, round(side * math.sqrt(keep)))


def places(side: int, smaller: int) -> list[int]:
    """Return the places in the full grid (row-major) that stand for the cells of the smaller one, in order."""
    line = [int((i + 0.5) * side / smaller) for i in range(smaller)]
    return [row * side + column for row in line for column in line]
