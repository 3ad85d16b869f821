"""The step at pixels:0: the tower runs on a smaller image, and what it gives is laid out on the full grid. Part of the engine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from atp.adapters.base import Adapter
from atp.engine.census import TowerPass
from atp.methods.resize import places, smaller_grid
from atp.plan import Step
from atp.trace import Record


class SmallerImage:
    """One pass of the tower over smaller images."""

    def __init__(self, adapter: Adapter, step: Step) -> None:
        self.adapter, self.step = adapter, step
        self.side = adapter.grid[0]
        self.small = smaller_grid(self.side, step.keep)
        self.batch, self.device = 0, torch.device("cpu")

    def shrink(self, pixels: Tensor) -> Tensor:
        """Downsample `[P, C, H, W]` to small x small patches, antialiased."""
        self.batch, self.device = pixels.shape[0], pixels.device
        if self.small == self.side:
            return pixels
        size = (pixels.shape[-2] * self.small // self.side, pixels.shape[-1] * self.small // self.side)
        wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32))  # a CPU has no antialiasing in half precision
        return functional.interpolate(wide, size=size, mode="bicubic", antialias=True, align_corners=False).to(pixels.dtype)

    @property
    def where(self) -> Tensor:
        """Places of the small grid's patches in the full one."""
        return torch.tensor(places(self.side, self.small), device=self.device)

    def widen(self, state: Tensor) -> Tensor:
        """Lay `[P, prefix + small**2, D]` out on the full grid; other places are zero."""
        prefix = self.adapter.shape.prefix
        full = state.new_zeros(state.shape[0], prefix + self.side**2, state.shape[-1])
        index = torch.cat([torch.arange(prefix, device=self.device), self.where + prefix])
        return full.index_copy(1, index, state)

    def tower_pass(self) -> TowerPass:
        """Tell the language model which places are alive."""
        patches, count = self.side**2, self.small**2
        alive = torch.zeros(patches, dtype=torch.bool, device=self.device).index_fill(0, self.where, True)
        length = (count + self.adapter.shape.prefix,) * self.adapter.shape.vision.layers
        return TowerPass(
            alive=alive.expand(self.batch, -1),
            started=[patches] * self.batch,
            counts=[count] * self.batch,
            scores=None,
            lengths=[length] * self.batch,
            grids=[self.adapter.grid] * self.batch,
            embedded=count,
        )

    def live(self) -> tuple[Tensor, list[int]]:
        """Places of the full grid that hold something, `[P, T]`, and how many of each image."""
        made, prefix = self.tower_pass(), self.adapter.shape.prefix
        return functional.pad(made.alive, (prefix, 0), value=True), [count + prefix for count in made.counts]

    def record(self, forward: int) -> Record:
        """Return what the trace remembers of it; the stack is `pixels`."""
        made = self.tower_pass()
        return Record(
            forward=forward,
            stack="pixels",
            layer=0,
            input_index=list(range(self.batch)),
            started=[self.side**2] * self.batch,
            counts=made.counts,
            keep=made.alive,
            raw_scores=None,
            alive=torch.ones_like(made.alive),
        )
