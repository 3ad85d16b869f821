"""ATP: what the question looks at, mixed with what the image itself looks at. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.errors import InvalidPlan
from atp.methods.base import Method, checked, register, relative
from atp.tokens import Rows, Tokens

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

    Cost: 2 x raters x keys x heads x head_dim FLOPs a site; raters = 1 or 32 in the tower, question (at most 64) + 32 after it.
    """

    alpha: float = 0.5
    intra: str = "received"

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",), "language": ("question", "visual")}
    paper: ClassVar[str] = "Li, Song, Hu, Efficient Vision-Language Reasoning via Adaptive Token Pruning, 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2512.12701"

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)) or not 0.0 <= self.alpha <= 1.0:
            raise InvalidPlan(f"alpha is a share in [0, 1], got {self.alpha!r}; e.g. alpha=0.5")
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

    def saliency(self, tokens: Tokens) -> Tensor:
        """Return intra-modal saliency `[B, N]`, mean 1."""
        if tokens.stack == "vision" and "class" in tokens.rows:
            return relative(tokens.rows["class"].mean(), tokens.alive)
        if tokens.stack == "language" and self.intra == "carried" and tokens.carried is not None:
            known = tokens.carried.isfinite()
            return relative(torch.where(known, tokens.carried, 1.0).to(torch.float32), tokens.alive)
        return relative(received(tokens.rows["visual"]), tokens.alive)


def received(rows: Rows) -> Tensor:
    """Attention that tokens receive from visual raters, `[B, N]`.

    Each rater's row is divided by its mean over the tokens it sees, and each token averages over the raters that see it: a
    causal mask then favours neither early nor late tokens. A token that no rater sees counts as average.
    """
    sees = rows.sees & rows.valid.unsqueeze(-1)
    weight = sees.to(rows.values.dtype)
    values = rows.values * weight
    mean = values.sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp(min=1)
    share = values / mean.clamp(min=torch.finfo(values.dtype).tiny)
    seen = weight.sum(1)
    return torch.where(seen > 0, share.sum(1) / seen.clamp(min=1), 1.0)
