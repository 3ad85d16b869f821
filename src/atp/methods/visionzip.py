"""VisionZip: dominant patches, and a few contextual ones that gather the rest. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.methods.base import Method, Work, class_attention, rank, register, top, tower_end
from atp.plan import Site
from atp.tokens import Tokens


@register("visionzip")
@dataclass(frozen=True)
class VisionZip(Method):
    """Keep the patches with the highest class-token attention, and evenly spaced targets among the others.

    Every other patch joins the target of the most similar key; a target becomes itself **plus** the mean of its members.

    Differences from the authors' code: the class token is no visual token here, so all of the budget are patches (theirs
    spends one on it); contextual tokens stay at the place of their target instead of behind the dominant ones; asking for
    more tokens than there are keeps all (theirs crashes); without class token patches rank by the attention they receive.
    Cost: the rows of `fastervlm`, and 2 x N x N x head_dim FLOPs for the similarity of keys.

    Attributes:
        contextual: share of the kept tokens that are targets; 5/32 is that of the authors' 54 + 10, 108 + 20, 162 + 30.
    """

    contextual: float = 5 / 32

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",)}
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("keys",)}
    stacks: ClassVar[tuple[str, ...]] = ("vision",)
    fuses: ClassVar[bool] = True
    paper: ClassVar[str] = "Yang et al., VisionZip: Longer is Better but Not Necessary in Vision Language Models, CVPR 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2412.04467"

    def __post_init__(self) -> None:
        if isinstance(self.contextual, bool) or not isinstance(self.contextual, (int, float)) or not 0 <= self.contextual <= 1:
            raise InvalidPlan(f"contextual is a share in [0, 1], got {self.contextual!r}; e.g. contextual=0.15625")

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the tower's end."""
        return tower_end(shape)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the class token's row."""
        return class_attention(tokens)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return dominant tokens and targets."""
        dominant = self.dominant(scores, tokens.alive, counts)
        return dominant | spaced(tokens.alive & ~dominant, counts - dominant.sum(1))

    def dominant(self, scores: Tensor, alive: Tensor, counts: Tensor) -> Tensor:
        """Mark what is kept by attention."""
        return top(scores, alive, counts - (counts * self.contextual + 0.5).to(torch.int64))

    def fuse(self, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, None]:
        """Add to each target the mean of the tokens that joined it."""
        target = keep & ~self.dominant(scores, tokens.alive, keep.sum(1))
        near = tokens.key_likeness.masked_fill(~target.unsqueeze(1), -2.0).argmax(2)
        joins = tokens.alive & ~keep & target.any(1, keepdim=True)
        total = torch.zeros_like(hidden).scatter_add(1, near.unsqueeze(-1).expand_as(hidden), hidden * joins.unsqueeze(-1))
        members = torch.zeros_like(hidden[..., 0]).scatter_add(1, near, joins.to(hidden.dtype))
        return hidden + total / members.clamp(min=1).unsqueeze(-1), None

    def flops(self, work: Work) -> float:
        """Return those of the similarity of keys."""
        return 2.0 * work.tokens**2 * work.head_dim


def spaced(rest: Tensor, counts: Tensor) -> Tensor:
    """Mark `counts` `[B]` of the marked places of each row: every step-th from the first, step = places // count."""
    step = (rest.sum(1) // counts.clamp(min=1)).clamp(min=1).unsqueeze(1)
    number = rank(rest)
    return rest & (number % step == 0) & (number // step < counts.unsqueeze(1))
