"""CDPruner: tokens that answer the question and differ from each other. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.methods.base import Method, Work, checked, earliest, largest, register
from atp.plan import Site
from atp.tokens import Tokens

SPACES, SIGNS = ("embeddings", "joint"), ("auto", "plus", "minus")


@register("cdpruner")
@dataclass(frozen=True)
class CDPruner(Method):
    """Choose the subset of visual tokens that a determinantal point process, conditioned on the question, likes best.

    The kernel is relevance_i x cosine_ij x relevance_j; tokens are taken greedily by what they add to its determinant.

    Differences from the authors' code: relevance is the cosine to the question's embeddings of the language model, as in
    OpenVINO's port, unless `space="joint"` has a text encoder that matches the tower; min and max are each input's own
    (theirs couple the batch); constant relevance counts as 1 (theirs returns 2 tokens); where the kernel's rank is used up the
    most relevant ones follow (theirs returns fewer tokens than asked).
    Cost: 2 x N x N x hidden FLOPs an input, 2 x N x hidden for relevance; as many sequential picks as tokens stay.

    Attributes:
        space: where patches and question are compared: `embeddings` of the language model, or `joint` (CLIP).
        sign: `minus` prefers patches unlike the text, right for CLIP patches; `auto` = minus in the joint space, else plus.
    """

    space: str = "embeddings"
    sign: str = "auto"

    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"language": ("text", "joint")}
    stacks: ClassVar[tuple[str, ...]] = ("language",)
    paper: ClassVar[str] = "Zhang et al., CDPruner: Maximizing Conditional Diversity for Token Pruning in MLLMs, NeurIPS 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2506.10967"

    def __post_init__(self) -> None:
        checked("space", self.space, SPACES)
        checked("sign", self.sign, SIGNS)

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return language:0, the projected features."""
        return (Site("language", 0),)

    def score(self, tokens: Tokens) -> Tensor:
        """Return relevance, from about 0 to 1 over the live tokens."""
        found = question_cosine(tokens, self.space, f"method {self.name!r}")
        minus = self.sign == "minus" or (self.sign == "auto" and self.space == "joint")
        found = -found if minus else found
        low = found.masked_fill(~tokens.alive, torch.inf).amin(1, keepdim=True)
        high = found.masked_fill(~tokens.alive, -torch.inf).amax(1, keepdim=True)
        return torch.where(high > low, (found - low + 1e-6) / (high - low), 1.0).masked_fill(~tokens.alive, 0.0)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the greedy maximum of the determinant."""
        kernel = scores.unsqueeze(2) * tokens.likeness * scores.unsqueeze(1)
        order = greedy_map(kernel, scores, tokens.alive, largest(counts))
        taken = torch.arange(order.shape[1], device=order.device) < counts.unsqueeze(1)
        return torch.zeros_like(tokens.alive).scatter(1, order, taken) & tokens.alive

    def flops(self, work: Work) -> float:
        """Return those of cosines and relevance."""
        return 2.0 * work.tokens**2 * work.hidden + 2.0 * work.tokens * work.hidden


def greedy_map(kernel: Tensor, relevance: Tensor, alive: Tensor, count: int) -> Tensor:
    """Return places `[B, count]` in greedy order, by incremental Cholesky (Chen et al., NeurIPS 2018).

    A token whose gain has sunk to rounding error waits until none is left with more; then relevance decides.
    """
    batch, size = alive.shape
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    least = gain.masked_fill(~alive, 0.0).amax(1, keepdim=True) * 8 * torch.finfo(gain.dtype).eps
    factors = kernel.new_zeros(batch, count, size)
    free, picks = alive.clone(), []
    for turn in range(count):
        worth = torch.where(gain > least, gain, relevance / (1 + relevance.abs()) - 2)  # spent ones below all others
        pick = earliest(worth, free)
        picks.append(torch.where(free.any(1, keepdim=True), pick, (~alive).to(torch.uint8).argmax(1, keepdim=True)))
        own, row = gain.gather(1, pick), kernel.gather(1, pick.unsqueeze(-1).expand(-1, 1, size)).squeeze(1)
        known = factors[:, :turn].gather(2, pick.unsqueeze(1).expand(-1, turn, 1))
        factor = (row - (known * factors[:, :turn]).sum(1)) / own.clamp(min=torch.finfo(own.dtype).tiny).sqrt()
        factors[:, turn] = torch.where(own > least, factor, 0.0)
        gain, free = gain - factors[:, turn] ** 2, free.scatter(1, pick, False)
    return torch.cat(picks, 1) if picks else alive.new_zeros(batch, 0, dtype=torch.int64)


def question_cosine(tokens: Tokens, space: str, who: str) -> Tensor:
    """Return the mean cosine `[B, N]` of each token to the question's.

    Raises:
        InvalidPlan: the joint space of a model that has none.
    """
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    unit = torch.nn.functional.normalize
    if space == "joint":
        if tokens.joint is None:
            raise InvalidPlan(f"{who} with space='joint' needs a text encoder that matches the tower; use space='embeddings'")
        patches, question = (unit(part.to(wide), dim=-1) for part in tokens.joint)
        return (patches @ question.unsqueeze(2)).squeeze(2)
    text = tokens.text
    asks = torch.where((text.asks & text.valid).any(1, keepdim=True), text.asks & text.valid, text.valid)
    words = unit(text.embeddings.to(wide), dim=-1) * asks.unsqueeze(-1)
    mean = words.sum(1) / asks.sum(1, keepdim=True).clamp(min=1)
    return (unit(tokens.hidden.to(wide), dim=-1) @ mean.unsqueeze(2)).squeeze(2)
