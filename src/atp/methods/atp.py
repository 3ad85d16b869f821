"""ATP: what the question looks at, mixed with what the image itself looks at. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.errors import InvalidPlan
from atp.methods.base import Method, checked, even, received, register, relative, top
from atp.tokens import Tokens

INTRA = ("received", "carried", "none")


@register("atp")
@dataclass(frozen=True)
class ATP(Method):
    """Mix inter-modal saliency (question tokens -> visual tokens) with intra-modal saliency, each with mean 1.

    In the tower a patch scores by the class token's row, or without class token by the attention it receives from at most
    32 sampled patches. In the language model it scores `alpha * inter + (1 - alpha) * intra`.

    Differences from the paper: its relevance is the cosine to a separate text encoder; here the model's own attention, of the
    question's tokens without those of the template. The count is the plan's, per input where its steps have thresholds.

    Attributes:
        alpha: share of inter-modal saliency, in [0, 1].
        intra: `received` = attention from sampled visual tokens of the layer before the site; `carried` = the tower's last
            scores (falls back to received where the tower scored nothing); `none` = inter-modal only, as `alpha=1`.
        coverage: share of what stays in the tower that is spread evenly over the image instead of chosen by score, in [0, 1]. The
            tower has not seen the question, and with none plain backgrounds vanish wholly, which costs answers (dev/LOG.md).

    Cost: 2 x raters x keys x heads x head_dim FLOPs a site; raters = 1 or 32 in the tower, question (at most 64) + 32 after it.
    """

    alpha: float = 0.5
    intra: str = "received"
    coverage: float = 0.5

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",), "language": ("question", "visual")}
    paper: ClassVar[str] = "Li, Song, Hu, Efficient Vision-Language Reasoning via Adaptive Token Pruning, 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2512.12701"

    def __post_init__(self) -> None:
        for name, value, usual in (("alpha", self.alpha, 0.5), ("coverage", self.coverage, 0.5)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
                raise InvalidPlan(f"{name} is a share in [0, 1], got {value!r}; e.g. {name}={usual}")
        checked("intra", self.intra, INTRA)

    def raters(self, stack: str) -> tuple[str, ...]:
        """Return question and, where they have a part in the score, visual raters."""
        if stack == "language" and (self.alpha == 1 or self.intra == "none"):
            return ("question",)
        return self.needs[stack]

    def score(self, tokens: Tokens) -> Tensor:
        """Return saliency with mean 1 over the live tokens."""
        if tokens.stack == "vision":
            return self.saliency(tokens)
        inter = relative(tokens.rows["question"].mean(), tokens.alive)
        if "visual" not in tokens.rows:
            return inter
        return self.alpha * inter + (1 - self.alpha) * self.saliency(tokens)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the highest scores; in the tower, also an even spread of the others."""
        if tokens.stack != "vision":
            return top(scores, tokens.alive, counts)
        spread = (counts * self.coverage).to(counts.dtype)
        salient = top(scores, tokens.alive, counts - spread)
        return salient | top(even(tokens), tokens.alive & ~salient, spread)

    def saliency(self, tokens: Tokens) -> Tensor:
        """Return intra-modal saliency `[B, N]`, mean 1."""
        if tokens.stack == "vision" and "class" in tokens.rows:
            return relative(tokens.rows["class"].mean(), tokens.alive)
        if tokens.stack == "language" and self.intra == "carried" and tokens.carried is not None:
            known = tokens.carried.isfinite()
            return relative(torch.where(known, tokens.carried, 1.0).to(torch.float32), tokens.alive)
        return relative(received(tokens.rows["visual"]), tokens.alive)
