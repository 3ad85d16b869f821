"""FasterVLM: keep the patches that the class token looks at. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atp.budget.shape import ModelShape
from atp.methods.base import Method, class_attention, register, tower_end
from atp.plan import Site
from atp.tokens import Tokens


@register("fastervlm")
@dataclass(frozen=True)
class FasterVLM(Method):
    """Rank the patches at the tower's end by the class token's attention, averaged over the heads.

    Differences from the authors' code: one attention row is recomputed instead of 24 maps, so the tower stays on fused
    attention; a tower without class token ranks by the attention that patches receive (theirs has none of these).
    Cost: 2 x raters x keys x heads x head_dim FLOPs an image; 1 rater, or 32 without class token.
    """

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",)}
    stacks: ClassVar[tuple[str, ...]] = ("vision",)
    paper: ClassVar[str] = "Zhang et al., [CLS] Attention is All You Need for Training-Free Visual Token Pruning, 2024"
    url: ClassVar[str] = "https://arxiv.org/abs/2412.01818v1"

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the tower's end."""
        return tower_end(shape)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the class token's row."""
        return class_attention(tokens)
