"""ATP as its paper has it: one score between tower and language model, a fixed count. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.methods.base import Method, Work, checked, class_attention, register
from atp.plan import Site
from atp.tokens import Tokens

SPACES, SIGNS, NORMS = ("embeddings", "joint"), ("plus", "minus"), ("minmax", "zscore")


@register("atp-paper")
@dataclass(frozen=True)
class ATPPaper(Method):
    """Keep the top K of alpha x N(cosine of patch and question) + (1 - alpha) x N(the tower's last class attention).

    Training-free and in one place: what the tower gives is cut once, before the language model.

    Differences from the paper, which leaves alpha, N, the sign and the text's space open: all four are options. Its text
    encoder matches the tower (`space="joint"`); most models carry none, so by default patches and question are compared as
    the language model's embeddings. The projector runs on all patches, for the cosine needs what it makes.
    Cost: 2 x raters x keys x heads x head_dim FLOPs an image (1 rater, 32 without class token), 2 x N x hidden for cosines.

    Attributes:
        alpha: share of the cosine, in [0, 1].
        sign: `plus` as published; `minus` prefers patches unlike the text.
        norm: N, over the live tokens of an input: `minmax` or `zscore` (which cannot decide counts by threshold).
        space: where patches and question are compared, `embeddings` of the language model or `joint` (CLIP).
    """

    alpha: float = 0.5
    sign: str = "plus"
    norm: str = "minmax"
    space: str = "embeddings"

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",)}
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"language": ("text", "joint")}
    stacks: ClassVar[tuple[str, ...]] = ("language",)
    carries: ClassVar[bool] = True
    paper: ClassVar[str] = "Li, Song, Hu, Efficient Vision-Language Reasoning via Adaptive Token Pruning, 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2512.12701"

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)) or not 0.0 <= self.alpha <= 1.0:
            raise InvalidPlan(f"alpha is a share in [0, 1], got {self.alpha!r}; e.g. alpha=0.5")
        checked("sign", self.sign, SIGNS)
        checked("norm", self.norm, NORMS)
        checked("space", self.space, SPACES)

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return language:0, the projected features."""
        return (Site("language", 0),)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the mix; in the tower, where it is carried from, the class token's row.

        Raises:
            InvalidPlan: no class attention came along, or the joint space of a model that has none.
        """
        if tokens.stack == "vision":
            return class_attention(tokens)
        if tokens.carried is None and self.alpha < 1:
            raise InvalidPlan(
                f"method {self.name!r} at {tokens.stack}:{tokens.layer} got no attention of the tower: it ran before the block, "
                "or this model's visual tokens are no patches; give pixel_values inside the block, or use alpha=1"
            )
        score = torch.zeros(tokens.alive.shape, dtype=torch.float32, device=tokens.alive.device)
        if self.alpha > 0:
            cosine = question_cosine(tokens, self.space, f"method {self.name!r}")
            score = score + self.alpha * self.scaled(-cosine if self.sign == "minus" else cosine, tokens.alive)
        if tokens.carried is not None and self.alpha < 1:
            known = tokens.carried.isfinite() & tokens.alive
            intra = self.scaled(tokens.carried.nan_to_num(), known)
            score = score + (1 - self.alpha) * torch.where(known, intra, self.middle)
        return score.masked_fill(~tokens.alive, 0.0)

    @property
    def middle(self) -> float:
        """What a token without class attention counts as."""
        return 0.5 if self.norm == "minmax" else 0.0

    def scaled(self, values: Tensor, alive: Tensor) -> Tensor:
        """Apply N over the live tokens; equal values become its middle."""
        if self.norm == "minmax":
            low = values.masked_fill(~alive, torch.inf).amin(1, keepdim=True)
            span = values.masked_fill(~alive, -torch.inf).amax(1, keepdim=True) - low
            return torch.where(span > 0, (values - low) / span, self.middle)
        total = alive.sum(1, keepdim=True).clamp(min=1)
        away = (values - values.masked_fill(~alive, 0.0).sum(1, keepdim=True) / total).masked_fill(~alive, 0.0)
        deviation = (away.square().sum(1, keepdim=True) / total).sqrt()
        return torch.where(deviation > 0, away / deviation, self.middle)

    def flops(self, work: Work) -> float:
        """Return those of the cosines."""
        return 2.0 * work.tokens * work.hidden if self.alpha > 0 and work.stack == "language" else 0.0


def question_cosine(tokens: Tokens, space: str, who: str) -> Tensor:
    """Return the cosine `[B, N]` of each token to the question's mean embedding.

    Raises:
        InvalidPlan: the joint space of a model that has none.
    """
    if space == "joint":
        if tokens.joint is None:
            raise InvalidPlan(f"{who} with space='joint' needs a text encoder that matches the tower; use space='embeddings'")
        patches, question = tokens.joint
    else:
        text = tokens.text
        asks = torch.where((text.asks & text.valid).any(1, keepdim=True), text.asks & text.valid, text.valid)
        patches, question = tokens.hidden, (text.embeddings * asks.unsqueeze(-1)).sum(1) / asks.sum(1, keepdim=True).clamp(min=1)
    wide = torch.promote_types(patches.dtype, torch.float32)
    unit = torch.nn.functional.normalize
    return (unit(patches.to(wide), dim=-1) @ unit(question.to(wide), dim=-1).unsqueeze(2)).squeeze(2)
