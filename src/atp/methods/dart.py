"""DART: a few pivots, and the visual tokens least like them. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.methods.base import Method, Work, register, top
from atp.plan import Site
from atp.tokens import Tokens


@register("dart")
@dataclass(frozen=True)
class DART(Method):
    """Keep visual tokens that are not duplicates: for each of a few pivots in turn, those of the lowest cosine to it.

    Pivots are the visual and the text tokens with the largest L1 norm of keys; visual pivots stay.

    Differences from the authors' code (read in LightCompress's port): pivots go from the largest norm down, visual ones first
    (theirs in the order of a Python set); the count is met (theirs keeps 124 of 128), the first pivots take what a division by
    8 leaves; keys are taken before the rotary phases; states are compared without the model's last norm; every input for itself.
    Cost: 2 x pivots x N x hidden FLOPs a prompt; no attention.

    Attributes:
        pivots: how many of each kind, 4 in the paper.
    """

    pivots: int = 4

    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"language": ("keys", "text")}
    stacks: ClassVar[tuple[str, ...]] = ("language",)
    paper: ClassVar[str] = "Wen et al., Stop Looking for Important Tokens in Multimodal Language Models, EMNLP 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2502.11494"

    def __post_init__(self) -> None:
        if isinstance(self.pivots, bool) or not isinstance(self.pivots, int) or self.pivots < 1:
            raise InvalidPlan(f"pivots is a whole number of tokens of each kind, at least 1, got {self.pivots!r}; e.g. pivots=4")

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return language:2, the paper's K."""
        return (Site("language", min(2, shape.language.layers - 1)),)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the L1 norm of the keys."""
        return norm(tokens.keys)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the visual pivots and what differs from all pivots."""
        text = tokens.text
        assert text.keys is not None, "the text was made without keys: name them in the method's `reads`"
        own = top(scores, tokens.alive, counts.clamp(max=self.pivots))
        visual, seen = first(scores, own, self.pivots)
        words, said = first(norm(text.keys), text.valid, self.pivots)
        wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
        unit = torch.nn.functional.normalize(tokens.hidden.to(wide), dim=-1)
        there = torch.nn.functional.normalize(text.hidden.to(wide), dim=-1)
        width = unit.shape[2]
        pivot = torch.cat(
            [part.gather(1, index.unsqueeze(-1).expand(-1, -1, width)) for part, index in ((unit, visual), (there, words))], 1
        )
        valid = torch.cat([seen, said], 1)
        likeness = pivot @ unit.transpose(1, 2)  # [B, P, N]
        wanted, among = counts - own.sum(1), valid.sum(1).clamp(min=1)
        keep = own
        for index in range(valid.shape[1]):
            number = valid[:, :index].sum(1)
            quota = torch.where(valid[:, index], wanted // among + (number < wanted % among), 0)
            keep = keep | top(-likeness[:, index], tokens.alive & ~keep, quota)
        return keep

    def flops(self, work: Work) -> float:
        """Return those of the cosines to the pivots."""
        return 2.0 * (min(self.pivots, work.tokens) + min(self.pivots, work.text)) * work.tokens * work.hidden


def norm(keys: Tensor) -> Tensor:
    """L1 norm `[B, N]` of keys `[B, N, H, d]`."""
    return keys.flatten(2).to(torch.promote_types(keys.dtype, torch.float32)).abs().sum(2)


def first(scores: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return places `[B, P]` of the highest allowed scores, best first, and which are valid; P = min(count, N)."""
    order = scores.masked_fill(~allowed, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :count]
    return order, allowed.gather(1, order)
