"""VisPruner: half by what the class token looks at, half by what differs. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.methods.base import Method, Work, class_attention, largest, rank, register, top, tower_end
from atp.plan import Site
from atp.tokens import Tokens

AT_ONCE = 8  # the most that a round removes, from the authors' code


@register("vispruner")
@dataclass(frozen=True)
class VisPruner(Method):
    """Keep the patches with the highest class-token attention, and of the others a diverse rest.

    The others, sorted by attention, lose in rounds up to 8 tokens of even rank that are most similar to one of odd rank.

    Differences from the authors' code: between rounds the rest stays sorted by attention; every input for itself; without
    class token the score is the attention that patches receive, as the paper has it.
    Cost: the rows of `fastervlm`, 2 x N x N x hidden FLOPs for the cosines, and a round for every 8 tokens removed.

    Attributes:
        important: share of the kept tokens chosen by attention, 0.5 in the paper.
    """

    important: float = 0.5

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",)}
    stacks: ClassVar[tuple[str, ...]] = ("vision",)
    paper: ClassVar[str] = "Zhang et al., Beyond Text-Visual Attention: VisPruner, ICCV 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2412.01818"

    def __post_init__(self) -> None:
        if isinstance(self.important, bool) or not isinstance(self.important, (int, float)) or not 0 <= self.important <= 1:
            raise InvalidPlan(f"important is a share in [0, 1], got {self.important!r}; e.g. important=0.5")

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the tower's end."""
        return tower_end(shape)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the class token's row."""
        return class_attention(tokens)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the important tokens and the diverse rest."""
        keep = top(scores, tokens.alive, (counts * self.important).to(torch.int64))
        order = scores.masked_fill(~tokens.alive, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        left = thinned(_sorted(tokens.likeness, order), (tokens.alive & ~keep).gather(1, order), counts - keep.sum(1))
        return keep | torch.zeros_like(keep).scatter(1, order, left)

    def flops(self, work: Work) -> float:
        """Return those of the cosines."""
        return 2.0 * work.tokens**2 * work.hidden


def thinned(likeness: Tensor, left: Tensor, counts: Tensor) -> Tensor:
    """Remove near duplicates from `left` `[B, N]` in rounds until each row has `counts` `[B]`; tokens stand in order."""
    rounds = -(-largest(left.sum(1) - counts) // AT_ONCE)
    for _ in range(rounds + 4):  # below 16 tokens a round removes half of them: four more, and none is left
        excess = (left.sum(1) - counts).clamp(min=0)
        even = left & (rank(left) % 2 == 0)
        odd = left & ~even
        close = likeness.masked_fill(~odd.unsqueeze(1), -2.0).amax(2)
        left = left & ~top(close, even, excess.clamp(max=AT_ONCE))
    return left


def _sorted(likeness: Tensor, order: Tensor) -> Tensor:
    batch, count = order.shape
    rows = likeness.gather(1, order.unsqueeze(-1).expand(batch, count, count))
    return rows.gather(2, order.unsqueeze(1).expand(batch, count, count))
