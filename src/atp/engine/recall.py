"""Keys and values of cross-attention that a model projects again at every decoded token, remembered. Part of the engine.

Exact: an output is given again only while its input is the same memory, not written to since, under the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from atp.subset import Subset, gather


@dataclass(frozen=True)
class Seen:
    """A tensor and its version when it was read; keeping it alive keeps its memory its own."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Seen | None:
        """Remember a tensor; None where versions are not counted."""
        return None if tensor.is_inference() else cls(tensor, tensor._version)

    def same(self, other: Tensor) -> bool:
        """Whether `other` is the same memory, untouched."""
        mine = self.tensor
        return (
            not other.is_inference()
            and self.version == other._version
            and (
                mine is other
                or (mine.data_ptr(), mine.shape, mine.stride(), mine.dtype, mine.device)
                == (other.data_ptr(), other.shape, other.stride(), other.dtype, other.device)
            )
        )


@dataclass
class Memory:
    """What a run remembers across the forwards of one prompt.

    Attributes:
        asked, spared: projections that decoded tokens asked for, and those that were remembered.
        cuts: subset, the keys that it was cut from, and the cut.
    """

    asked: int = 0
    spared: int = 0
    cuts: list[tuple[Subset, Seen, Tensor]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of the projections that was spared."""
        return self.spared / self.asked if self.asked else 0.0

    def cut(self, keys: Tensor, subset: Subset) -> Tensor:
        """Cut keys `[B, C, E]` to a subset, once for all layers and forwards that do so."""
        for known, seen, made in self.cuts:
            if known is subset and seen.same(keys) and not torch.is_grad_enabled():
                return made
        made = gather(keys, subset)
        seen_now = Seen.of(keys)
        if seen_now is not None and not torch.is_grad_enabled():
            self.cuts.append((subset, seen_now, made))
        return made


class Recall:
    """Lets a projection give its last output again; `remove` gives the module its own forward back.

    Args:
        module: the projection.
        memory: of the run.
        decoding: whether the forward that is running follows a prompt.
    """

    def __init__(self, module: nn.Module, memory: Memory, decoding: Callable[[], bool]) -> None:
        self.module, self.memory, self.decoding = module, memory, decoding
        self.before = vars(module).get("forward")
        self.plain: Callable[[Tensor], Tensor] = module.forward
        self.input: Seen | None = None
        self.weights: list[int] = []
        self.output: Tensor | None = None
        module.forward = self.forward

    def forward(self, states: Tensor) -> Tensor:
        """Project, or remember."""
        self.memory.asked += self.decoding()
        if torch.is_grad_enabled():
            return self.plain(states)
        weights = [weight._version for weight in self.module.parameters() if not weight.is_inference()]
        weights.append(int(torch.is_autocast_enabled(states.device.type)))
        if self.output is not None and self.input is not None and self.input.same(states) and weights == self.weights:
            self.memory.spared += self.decoding()
            return self.output
        self.output, self.input, self.weights = self.plain(states), Seen.of(states), weights
        return self.output

    def remove(self) -> None:
        """Undo."""
        owner: Any = self.module
        del owner.forward
        if self.before is not None:
            owner.forward = self.before
