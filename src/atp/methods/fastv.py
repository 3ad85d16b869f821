"""FastV: keep the visual tokens the last prompt token looks at. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atp.budget.shape import ModelShape
from atp.methods.base import Method, register
from atp.plan import Site
from atp.tokens import Tokens


@register("fastv")
@dataclass(frozen=True)
class FastV(Method):
    """Rank visual tokens by the attention the last prompt token pays them in the layer before the site.

    Differences from the authors' code: one attention row is recomputed instead of the whole map, so batches, padding and
    fused attention work; each prompt is ranked by its own row; a key is stored once; ids keep their gaps (as theirs do).
    Cost: 2 x keys x heads x head_dim FLOPs a prompt.
    """

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"language": ("last",)}
    stacks: ClassVar[tuple[str, ...]] = ("language",)
    paper: ClassVar[str] = "Chen et al., An Image is Worth 1/2 Tokens After Layer 2, ECCV 2024"
    url: ClassVar[str] = "https://arxiv.org/abs/2403.06764"

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return language:2, the K = 2 of the authors' README tables."""
        return (Site("language", min(2, shape.language.layers - 1)),)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the last token's row."""
        return tokens.rows["last"].mean()
