"""PyramidDrop: drop visual tokens in stages, by what the last prompt token looks at. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atp.budget.shape import ModelShape
from atp.methods.base import Method, register
from atp.plan import Site
from atp.tokens import Tokens


@register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(Method):
    """Keep, at each quarter of the language model's depth, the visual tokens to which the last prompt token attends most.

    Differences from the authors' code: the row is that of the layer before the site (theirs projects queries and keys of the
    layer after it ahead of time); grouped queries, eager attention, padding on either side and several images work (theirs
    raises, or tracks the first image only); positions keep their gaps (theirs are numbered anew at each stage); the plan
    rounds a share (theirs cuts it off: half of 575 tokens are 287, here 288).
    Cost: 2 x keys x heads x head_dim FLOPs a prompt and site.
    """

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"language": ("last",)}
    stacks: ClassVar[tuple[str, ...]] = ("language",)
    paper: ClassVar[str] = "Xing et al., PyramidDrop: Pyramid Visual Redundancy Reduction, CVPR 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2410.17247"

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the quarters of the depth: 8, 16, 24 of the authors' 32 layers."""
        layers = shape.language.layers
        return tuple(Site("language", at) for at in sorted({max(1, layers * part // 4) for part in (1, 2, 3)}) if at < layers)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the last token's row."""
        return tokens.rows["last"].mean()
