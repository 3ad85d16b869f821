"""Ragged batches without the padding: between attentions the rows of all inputs stand one after the other. Part of the engine.

A layer treats its rows one by one everywhere but in its attention, so only that is given the padded batch. Around it two hooks
lay the rows out, for the time of one call of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atp.adapters.base import Args, Kwargs, StackView
from atp.subset import Subset

LEAST = 0.02
"""Ours: with less padding than this share of the rows, laying out costs what it saves."""


@dataclass(frozen=True)
class Packing:
    """The valid rows of a ragged subset, one input after the other: N of them.

    Attributes:
        flat: `[N]` int64, their places in the flattened `[B * T, ...]`.
        slots: `[N]` int64, their places in the flattened `[B * K, ...]`.
        back: `[B * K]` int64, which of the N stands at each of those; padding has some row, which nobody reads.
        batch: B.
    """

    flat: Tensor
    slots: Tensor
    back: Tensor
    batch: int

    def pack(self, padded: Tensor) -> Tensor:
        """Return `[1, N, ...]` of `[B, K, ...]`."""
        return padded.flatten(0, 1).index_select(0, self.slots).unsqueeze(0)

    def pad(self, packed: Tensor) -> Tensor:
        """Return `[B, K, ...]` of `[1, N, ...]`."""
        return packed[0].index_select(0, self.back).view(self.batch, -1, *packed.shape[2:])

    def gather(self, full: Tensor) -> Tensor:
        """Cut `[B, T, ...]` to `[1, N, ...]`."""
        return full.flatten(0, 1).index_select(0, self.flat).unsqueeze(0)

    def scatter(self, full: Tensor, packed: Tensor) -> Tensor:
        """Return a copy of `[B, T, ...]` in which the valid rows are those of `[1, N, ...]`."""
        return full.flatten(0, 1).index_copy(0, self.flat, packed[0].to(full.dtype)).view(full.shape)


def packing_of(subset: Subset, total: int) -> Packing | None:
    """Lay out a subset of `total` valid rows, without a device sync; None where padding is too little to bother."""
    valid = subset.valid
    if valid is None or not 0 < total <= (1 - LEAST) * valid.numel():
        return None
    asked = valid.flatten()
    slots = asked.to(torch.uint8).sort(descending=True, stable=True).indices[:total]
    return Packing(subset.flat.index_select(0, slots), slots, (asked.cumsum(0) - 1).clamp(min=0), len(valid))


class Attended:
    """The hooks around the attention of a layer that runs packed; `remove` ends them."""

    def __init__(self, view: StackView, attention: nn.Module, packing: Packing) -> None:
        self.view, self.packing = view, packing
        self.handles = (
            attention.register_forward_pre_hook(self.enter, with_kwargs=True),
            attention.register_forward_hook(self.leave, prepend=True),
        )

    def enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Before the attention: pad."""
        return self.view.attend(args, kwargs, self.packing.pad)

    def leave(self, module: nn.Module, args: Args, output: Any) -> Any:
        """After it: pack."""
        if isinstance(output, tuple):
            return (self.packing.pack(output[0]), *output[1:])
        return self.packing.pack(output)

    def remove(self) -> None:
        """Take both hooks away."""
        for handle in self.handles:
            handle.remove()
