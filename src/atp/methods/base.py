"""What a pruning method is: a frozen dataclass whose fields are its options. Knows tensors only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan, UnknownMethod
from atp.plan import Site
from atp.registry import Registry
from atp.tokens import Tokens

NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods. A subclass scores tokens; the plan says where and how many.

    Attributes:
        needs: kinds of raters (see `atp.tokens.Rows`) by stack. A stack that is named cannot be pruned at layer 0, for the
            rows come from the layer before the site. `class` means `visual` on a tower without class token.
        stacks: where the method can prune.
        paper: who thought of it; url: where to read it.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = NOTHING
    stacks: ClassVar[tuple[str, ...]] = ("vision", "language")
    paper: ClassVar[str] = ""
    url: ClassVar[str] = ""

    def raters(self, stack: str) -> tuple[str, ...]:
        """Return the raters that these options need in a stack."""
        return self.needs.get(stack, ())

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...] | None:
        """Return the sites to prune at when none are given; None leaves them to the solver."""
        return None

    @abstractmethod
    def score(self, tokens: Tokens) -> Tensor:
        """Return `[B, N]`, higher = keep; what stands at dead tokens is not read. Row i depends on row i only."""

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return `[B, N]` bool: the `counts` `[B]` live tokens of each row that stay. Here: the highest scores."""
        return top(scores, tokens.alive, counts)


def top(scores: Tensor, alive: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts` `[B]` highest live scores of each row of `[B, N]`; ties go to the earlier token."""
    order = scores.masked_fill(~alive, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    rank = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(alive).scatter(1, order, rank < counts.unsqueeze(1)) & alive


METHODS: Registry[Method] = Registry("method", UnknownMethod, "atp.methods")
register = METHODS.register


def list_methods() -> list[str]:
    """Return the names of all methods."""
    return METHODS.names()


def relative(values: Tensor, alive: Tensor) -> Tensor:
    """Divide `[B, N]` by its mean over the live tokens of each row, so that 1 is the average token."""
    values = values.masked_fill(~alive, 0.0)
    mean = values.sum(1, keepdim=True) / alive.sum(1, keepdim=True).clamp(min=1)
    return values / mean.clamp(min=torch.finfo(values.dtype).tiny)


def checked(option: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse an option's value.

    Raises:
        InvalidPlan: naming the option and what is allowed.
    """
    if value not in allowed:
        raise InvalidPlan(f"{option} is one of {', '.join(map(repr, allowed))}, got {value!r}; e.g. {option}={allowed[0]!r}")
