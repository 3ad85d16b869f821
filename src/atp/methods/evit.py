"""EViT: keep the patches that the class token looks at, and one token made of all others. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.methods.base import Method, class_attention, register, top
from atp.plan import Site
from atp.tokens import Tokens


@register("evit")
@dataclass(frozen=True)
class EViT(Method):
    """Rank patches by the class token's attention and fuse those that leave into one token, weighted by that attention.

    The weights are the attention itself and sum to less than 1, so the fused token is small; it counts as kept and stands at
    the place of the best token that leaves. At the next site it is a token like any other.

    Differences from the authors' code: what stays keeps its order (theirs is sorted by score); tokens leave between two
    layers, not between attention and MLP; no keep-rate schedule, nothing is trained; one token alone is kept, not fused;
    a tower without class token ranks by the attention that patches receive, and fuses with weights of sum 1 over all patches.
    Cost: 2 x raters x keys x heads x head_dim FLOPs an image and site; 1 rater, or 32 without class token.
    """

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",)}
    stacks: ClassVar[tuple[str, ...]] = ("vision",)
    fuses: ClassVar[bool] = True
    paper: ClassVar[str] = "Liang et al., Not All Patches are What You Need (EViT), ICLR 2022"
    url: ClassVar[str] = "https://arxiv.org/abs/2202.07800"

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the quarters of the depth: blocks 3, 6, 9 of the authors' 12."""
        layers = shape.vision.layers
        return tuple(Site("vision", at) for at in sorted({max(1, layers * part // 4) for part in (1, 2, 3)}) if at < layers)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the class token's row."""
        return class_attention(tokens)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the highest scores; the lowest of them is the place of the fused token."""
        return top(scores, tokens.alive, counts)

    def fuse(self, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, None]:
        """Put the fused token at the lowest kept score."""
        place = fused_place(scores, keep, tokens.alive)
        weight = scores.masked_fill(~tokens.alive | (keep & ~place), 0.0)
        if "class" not in tokens.rows:
            weight = weight / scores.masked_fill(~tokens.alive, 0.0).sum(1, keepdim=True).clamp(min=1e-12)
        fused = (weight.to(hidden.dtype).unsqueeze(-1) * hidden).sum(1, keepdim=True)
        return torch.where(place.unsqueeze(-1), fused, hidden), None


def fused_place(scores: Tensor, keep: Tensor, alive: Tensor) -> Tensor:
    """Mark the lowest kept score of each row `[B, N]`, the later one of equals; none where nothing left or one token stays."""
    fuses = (keep.sum(1) > 1) & (keep.sum(1) < alive.sum(1))
    return keep & ~top(scores, keep, keep.sum(1) - 1) & fuses.unsqueeze(1)
