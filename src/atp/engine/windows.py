"""Windows leave before the tower runs: those of one colour, or that show what the frame before them shows. Part of the engine.

Beside an image of any size there is no thumbnail that would tell what left, so one visual token of each such window stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from atp.adapters.base import Args, Images, Kwargs
from atp.adapters.tiled import Windowed
from atp.engine.pictures import stay
from atp.engine.run import Run
from atp.trace import Record
from atp.tracing import clock


@dataclass(frozen=True)
class Chosen:
    """What stays of the images of one call of the tower.

    Attributes:
        keep: `[P, N]` bool, as `Census.alive`.
        counts: visual tokens of each image that stay.
        windows: (whole, all) windows of each image.
    """

    keep: Tensor
    counts: list[int]
    windows: list[tuple[int, int]]


@dataclass(frozen=True)
class Layout:
    """Windows of `side` x `side` visual tokens over images of any size, cut off at their right and lower edges.

    Attributes:
        of: `[N]` int64, the window of each visual token of all images.
        sizes: tokens of each window.
        windows: how many windows each image has.
    """

    of: Tensor
    sizes: list[int]
    windows: list[int]

    @classmethod
    def over(cls, images: Images, side: int) -> Layout:
        """Lay windows over images; no device sync."""
        parts: list[Tensor] = []
        sizes: list[int] = []
        windows: list[int] = []
        for high, wide in images.grids:
            lines = [[min(side, length - start) for start in range(0, length, side)] for length in (high, wide)]
            row, column = torch.arange(high) // side, torch.arange(wide) // side
            parts.append((row.unsqueeze(1) * len(lines[1]) + column + len(sizes)).flatten())
            sizes += [a * b for a in lines[0] for b in lines[1]]
            windows.append(len(lines[0]) * len(lines[1]))
        return cls(torch.cat(parts).to(images.where.device), sizes, windows)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `[N, ...]` over the tokens of each window, `[W, ...]`."""
        total = values.new_zeros(len(self.sizes), *values.shape[1:]).index_add(0, self.of, values)
        return total / values.new_tensor(self.sizes).view(-1, *[1] * (values.dim() - 1))


def contrasts(contents: Tensor, follows: list[bool], images: Images, layout: Layout) -> tuple[Tensor, Tensor]:
    """How much each window tells, and how much of it each visual token.

    Args:
        contents, follows: see `Windowed.contents`.
        images: of the call.
        layout: of its windows.

    Returns:
        `[W]`, in units of the pixels: the root mean square difference from the window's own mean colour, or from the same
        window of the frame before where that is less. `[N]`, the mean square difference of each token from that colour.
    """
    pixels = contents.to(torch.promote_types(contents.dtype, torch.float32))
    colour = pixels.mean(2)
    inside = (pixels - colour.unsqueeze(2)).square().mean((1, 2))
    own = inside + (colour - layout.mean(colour)[layout.of]).square().mean(1)
    contrast = layout.mean(own)
    if any(follows):
        moved, start = torch.full_like(own, torch.inf), 0
        for size, goes_on in zip(images.counts, follows, strict=True):
            if goes_on:
                here, before = pixels[start : start + size], pixels[start - size : start]
                moved[start : start + size] = (here - before).square().mean((1, 2))
            start += size
        contrast = torch.minimum(contrast, layout.mean(moved))
    return contrast.sqrt(), own


def choose(contents: Tensor, follows: list[bool], images: Images, side: int, wanted: float | str) -> Chosen:
    """Choose windows: a share of each image's or video's, or those that tell more than a threshold. One device sync.

    Args:
        contents, follows: see `Windowed.contents`.
        images: of the call.
        side: of a window, in visual tokens.
        wanted: see `atp.prune`.
    """
    layout = Layout.over(images, side)
    found, own = contrasts(contents, follows, images, layout)
    values, start = found.tolist(), 0
    whole: list[bool] = []
    groups: list[int] = []  # windows of one image, or of all frames of a video
    for number, goes_on in zip(layout.windows, follows, strict=True):
        if goes_on:
            groups[-1] += number
        else:
            groups.append(number)
    for number in groups:
        own_windows = slice(len(whole), len(whole) + number)
        chosen = stay(values[own_windows], wanted, layout.sizes[own_windows])
        whole += [place in chosen for place in range(number)]
    places = torch.arange(len(own), device=own.device)
    rank = torch.empty_like(places).index_copy(0, own.argsort(descending=True, stable=True), places)
    first = torch.full((len(whole),), len(own), device=own.device).scatter_reduce(0, layout.of, rank, "amin")
    keep = torch.tensor(whole, device=own.device)[layout.of] | (rank == first[layout.of])
    left = [size if there else 1 for size, there in zip(layout.sizes, whole, strict=True)]
    counts, ran = [], []
    for number in layout.windows:
        counts.append(sum(left[start : start + number]))
        ran.append((sum(whole[start : start + number]), number))
        start += number
    return Chosen(pad_sequence(list(torch.split(keep, list(images.counts))), batch_first=True), counts, ran)


class WindowedRun(Run):
    """A run whose plan says which windows stay whole."""

    def enter_tower(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        changed = super().enter_tower(module, args, kwargs)
        if self.plan.tiles is None or self._vision is None or self._images is None:
            return changed
        begin, images, adapter = clock(), self._images, cast(Windowed, self.adapter)
        with torch.no_grad():
            chosen = choose(*adapter.contents(args, kwargs), images, adapter.window, self.plan.tiles)
            self.book.parts(chosen.windows, clock() - begin, windows=True)
            census = self._vision.census
            assert census is not None
            if 0 not in self._vision.steps:
                self._vision.records.append(record(self.book.number, census.alive, census.started, chosen))
            if chosen.counts != census.counts:
                census.alive, census.counts, census.arrived = chosen.keep, list(chosen.counts), list(chosen.counts)
                self._vision.shrink()
        return changed


def record(forward: int, alive: Tensor, started: list[int], chosen: Chosen) -> Record:
    """Return what the trace remembers of it, as of a site at the tower's first layer; its time is in the book."""
    return Record(
        forward=forward,
        stack="vision",
        layer=0,
        input_index=list(range(len(started))),
        started=list(started),
        counts=list(chosen.counts),
        keep=chosen.keep,
        raw_scores=None,
        alive=alive,
    )
