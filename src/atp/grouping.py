"""Which requests of a queue share a batch, so that counts per input lose little to padding. Knows pictures and numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from atp.asking import listed
from atp.budget.amount import check_count
from atp.errors import BadInput, told

SIDE, BLOCK = 112, 8
FAR = 16.0  # grey levels; ours, see dev/LOG.md


def detail(image: Image.Image) -> float:
    """Return how much of a picture has no like in it, in [0, 1]: the mean distance of a block to the one that is most like it.

    Blocks are 8 x 8 pixels of the picture made 112 x 112; their distance is the root mean square of their pixels' differences,
    at most 16 levels, which count as 1. A tower that merges patches keeps more of such a picture.
    """
    colour = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float64)
    count = SIDE // BLOCK
    blocks = colour.reshape(count, BLOCK, count, BLOCK, 3).swapaxes(1, 2).reshape(count * count, -1)
    square = (blocks**2).sum(1)
    apart = (square[:, None] + square - 2 * blocks @ blocks.T) / blocks.shape[1]
    np.fill_diagonal(apart, np.inf)
    return float(np.sqrt(apart.min(1).clip(min=0)).clip(max=FAR).mean() / FAR)


def batches(images: Sequence[Image.Image], size: int) -> list[list[int]]:
    """Put a queue of requests into batches of pictures of like detail, for plans whose counts depend on the input.

    Inputs of a batch are padded to the one that keeps most, so a batch is as slow as its busiest picture. With fixed counts
    any order is as good.

    Args:
        images: of the requests.
        size: requests of a batch; the last one may have fewer.

    Returns:
        Numbers of the requests of each batch, quiet pictures first.

    Raises:
        BadInput: no pictures, a size below 1.

    Example:
        >>> flat, busy = Image.new("RGB", (64, 64)), Image.effect_noise((64, 64), 90)
        >>> batches([busy, flat, busy, flat], size=2)
        [[1, 3], [0, 2]]
    """
    check_count("size", size, 16)
    images = listed(images)
    for one in images:
        if not isinstance(one, Image.Image):
            raise BadInput(f"requests are put together by their pictures, got {told(one)}; e.g. [atp.load_image('cat.png')]")
    order = sorted(range(len(images)), key=lambda number: (detail(images[number]), number))
    return [order[start : start + size] for start in range(0, len(order), size)]
