"""DivPrune: keep the tokens that lie farthest apart. Knows tensors, nothing of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.methods.base import Method, Work, earliest, largest, register
from atp.plan import Site
from atp.tokens import Tokens


@register("divprune")
@dataclass(frozen=True)
class DivPrune(Method):
    """Choose a subset of visual tokens by greedy max-min distance, 1 - cosine of their embeddings.

    The first is the token whose nearest neighbour is farthest; each next one is farthest from all chosen so far.

    Differences from the authors' code: cosines in float32 whatever the model's precision (in bfloat16 theirs finds 89 of
    192 picks again); a token is chosen once (theirs repeats an index where tokens are equal); every input for itself.
    Cost: 2 x N x N x hidden FLOPs an input; as many sequential picks as tokens stay.
    """

    stacks: ClassVar[tuple[str, ...]] = ("language",)
    paper: ClassVar[str] = "Alvar et al., DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models, CVPR 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2503.02175"

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return language:0, the projected features."""
        return (Site("language", 0),)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the distance to the nearest other live token, at least 0."""
        near = nearest(1 - tokens.likeness, tokens.alive)
        return torch.where(near.isfinite(), near, 1.0).clamp(min=0)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the greedy subset."""
        order = farthest(1 - tokens.likeness, tokens.alive, largest(counts))
        taken = torch.arange(order.shape[1], device=order.device) < counts.unsqueeze(1)
        return torch.zeros_like(tokens.alive).scatter(1, order, taken) & tokens.alive

    def flops(self, work: Work) -> float:
        """Return those of the cosines."""
        return 2.0 * work.tokens**2 * work.hidden


def nearest(distance: Tensor, alive: Tensor) -> Tensor:
    """Return `[B, N]`, distance to the nearest other live token; infinite where there is none."""
    same = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    return distance.masked_fill(same | ~alive.unsqueeze(1), torch.inf).amin(2)


def farthest(distance: Tensor, alive: Tensor, count: int) -> Tensor:
    """Return `[B, count]`, places in the order in which greedy max-min takes them; ties go to the earlier one.

    Rows with fewer live tokens repeat dead places at the end.
    """
    gap = nearest(distance, alive)
    free, picks = alive.clone(), []
    for turn in range(count):
        pick = earliest(gap, free)
        picks.append(torch.where(free.any(1, keepdim=True), pick, (~alive).to(torch.uint8).argmax(1, keepdim=True)))
        free = free.scatter(1, pick, False)
        row = distance.gather(1, pick.unsqueeze(-1).expand(-1, 1, distance.shape[2])).squeeze(1)
        gap = row if turn == 0 else torch.minimum(gap, row)
    return torch.cat(picks, 1) if picks else alive.new_zeros(alive.shape[0], 0, dtype=torch.int64)
