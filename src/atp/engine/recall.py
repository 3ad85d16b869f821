"""Keys and values of cross-attention that a model projects again at every decoded token, remembered. Part of the engine.

Exact: an output is given again only while its input is the same memory, not written to since, under the same weights. Tensors of
`torch.inference_mode` count no writes, so those are compared with a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from atp.subset import Subset, gather


class Seen:
    """A tensor as it was when it was read; keeping it alive keeps its memory its own."""

    def __init__(self, tensor: Tensor) -> None:
        self.copied = tensor.is_inference()
        self.tensor = tensor.clone() if self.copied else tensor
        self.version = 0 if self.copied else tensor._version

    def same(self, other: Tensor) -> bool:
        """Whether `other` holds the same values."""
        mine = self.tensor
        if self.copied or other.is_inference():
            equal = self.copied and mine.shape == other.shape and mine.dtype == other.dtype and mine.device == other.device
            return equal and torch.equal(mine, other)
        return self.version == other._version and place(mine) == place(other)


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Which memory a tensor reads, and how."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


@dataclass
class Memory:
    """What a run remembers across the forwards of one prompt.

    Attributes:
        asked, spared: projections that decoded tokens asked for, and those that were remembered.
        cuts: subset (None = all), the keys that it was cut from, and the cut.
    """

    asked: int = 0
    spared: int = 0
    cuts: list[tuple[Subset | None, Seen, Tensor]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of the projections that was spared."""
        return self.spared / self.asked if self.asked else 0.0

    def cut(self, keys: Tensor, subset: Subset | None) -> Tensor:
        """Cut keys `[B, C, E]` to a subset, once for all layers and forwards that do so."""
        if torch.is_grad_enabled():
            return keys if subset is None else gather(keys, subset)
        for known, seen, made in self.cuts:
            if known is subset and seen.same(keys):
                return made
        now = Seen(keys)
        made = now.tensor if subset is None else gather(keys, subset)
        self.cuts.append((subset, now, made))
        return made

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the cuts, which nobody writes to."""
        return any(tensor is made for _, _, made in self.cuts)


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
        self.known: tuple[Tensor, list[int], Tensor] | None = None  # input, its state and that of the weights, output
        module.forward = self.forward

    def forward(self, states: Tensor) -> Tensor:
        """Project, or remember."""
        self.memory.asked += self.decoding()
        if torch.is_grad_enabled() or (states.is_inference() and not self.memory.owns(states)):
            return self.plain(states)
        now = [int(torch.is_autocast_enabled(states.device.type)), 0 if states.is_inference() else states._version]
        now += [weight._version for weight in self.module.parameters() if not weight.is_inference()]
        if self.known is not None and now == self.known[1] and self._same(states, self.known[0]):
            self.memory.spared += self.decoding()
            return self.known[2]
        self.known = (states, now, self.plain(states))
        return self.known[2]

    @staticmethod
    def _same(states: Tensor, known: Tensor) -> bool:
        counted = not (states.is_inference() or known.is_inference())
        return states is known or (counted and place(states) == place(known))

    def remove(self) -> None:
        """Undo."""
        owner: Any = self.module
        del owner.forward
        if self.before is not None:
            owner.forward = self.before
