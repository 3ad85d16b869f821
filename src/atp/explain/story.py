"""The story of one image: which of its patches were still there after each site. Plain data, made from a `Trace`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atp.errors import BadInput
from atp.plan import STACKS
from atp.trace import Trace

_PLACES = {"pixels": "image resized", "vision": "tower layer {}", "language": "language layer {}"}


@dataclass(frozen=True)
class Stage:
    """One site.

    Attributes:
        stack, layer: where; tokens that left are not seen by that layer nor by later ones.
        kept: sorted numbers of the image's patches (row-major in the grid) that stayed.
    """

    stack: str
    layer: int
    kept: tuple[int, ...]

    @property
    def label(self) -> str:
        """The place in words, e.g. "language layer 2"."""
        return _PLACES[self.stack].format(self.layer)


@dataclass(frozen=True)
class Story:
    """All sites in the order in which a patch meets them.

    Attributes:
        grid: (height, width) of the patch grid.
        stages: the sites.
    """

    grid: tuple[int, int]
    stages: tuple[Stage, ...]

    def left_at(self) -> NDArray[np.int64]:
        """Return `[height, width]`: the number of the stage at which each patch left, -1 where it stayed to the end."""
        count = self.grid[0] * self.grid[1]
        left = np.full(count, -1, dtype=np.int64)
        for number, stage in enumerate(self.stages):
            gone = np.ones(count, dtype=bool)
            gone[list(stage.kept)] = False
            left[gone & (left < 0)] = number
        return left.reshape(self.grid)


def story(trace: Trace, image: int = 0, stacks: Sequence[str] = STACKS) -> Story:
    """Read the last forward of a run.

    Args:
        trace: of the run.
        image: which image of that forward, from 0.
        stacks: those whose tokens are patches; behind queries that read them (BLIP-2, Flamingo) the language model's are none.

    Raises:
        BadInput: the run has seen no such image.

    Example:
        >>> story(run.trace).left_at().shape
        (14, 14)
    """
    if not 0 <= image < len(trace.grids):
        raise BadInput(
            f"the run has seen {len(trace.grids)} images in its last forward, there is no number {image} (counted from 0); "
            "call model.generate inside `with atp.prune(...)` first"
        )
    height, width = trace.grids[image]
    rows = list(trace.image_rows) if len(trace.image_rows) == len(trace.grids) else list(range(len(trace.grids)))
    sizes = [h * w for h, w in trace.grids]
    first = sum(sizes[other] for other in range(image) if rows[other] == rows[image])
    stages = []
    for stack in stacks:
        row, start = (rows[image], first) if stack == "language" else (image, 0)
        for record in trace.last(stack):
            if row not in record.input_index:
                continue
            numbers = record.kept[record.input_index.index(row)].numpy() - start
            inside = numbers[(numbers >= 0) & (numbers < height * width)]
            stages.append(Stage(stack, record.layer, tuple(int(n) for n in inside)))
    return Story((height, width), tuple(stages))
