"""The controls that every table needs: keep all, keep at random, keep an even grid. They look at no attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.methods.base import Method, even, register
from atp.plan import Site
from atp.tokens import Tokens


@register("none")
@dataclass(frozen=True)
class KeepAll(Method):
    """Score all tokens alike. For plans that keep everything: what runs is the untouched model."""

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return none."""
        return ()

    def score(self, tokens: Tokens) -> Tensor:
        """Return ones."""
        return torch.ones(tokens.alive.shape, device=tokens.alive.device)


@register("random")
@dataclass(frozen=True)
class Random(Method):
    """Score by a hash of seed, stack, layer and the token's number: the same for every row, batch and machine.

    Cost: none.
    """

    seed: int = 0

    kinds: ClassVar[tuple[str, ...]] = ("visual", "text")

    def score(self, tokens: Tokens) -> Tensor:
        """Return hashes in [0, 1)."""
        count = tokens.alive.shape[1]
        salt = (self.seed * 2 + (tokens.stack == "language")) * 1009 + tokens.layer
        value = torch.arange(count, device=tokens.alive.device) + (salt % 65521) * 65536
        for factor in (0x45D9F3B, 0x119DE1F3):  # two rounds of xor-shift-multiply; 32 bits, so exact in int64
            value = ((value ^ (value >> 16)) * factor) & 0xFFFFFFFF
        value = value ^ (value >> 16)
        return ((value >> 8).to(torch.float32) / 2**24).expand_as(tokens.alive)


@register("uniform")
@dataclass(frozen=True)
class Uniform(Method):
    """Keep an even grid: tokens are ranked by the ordered-dither (Bayer) matrix of their patch, so any count is spread evenly.

    A token that is no patch (a class token among the visual ones) stays. Cost: none.
    """

    def score(self, tokens: Tokens) -> Tensor:
        """Return the reciprocal of the dither rank."""
        return even(tokens)
