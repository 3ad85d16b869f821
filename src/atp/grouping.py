"""Which requests of a queue share a batch, so that counts per input lose little to padding. Knows pictures and numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from atp.errors import BadInput

SIDE, BLOCK = 112, 8
EDGE = 20.0  # grey levels; ours, see dev/LOG.md


def detail(image: Image.Image) -> float:
    """Return how much of a picture differs from what is beside it, in [0, 1]: the share of neighbouring blocks that do.

    Blocks are 8 x 8 pixels of the picture made 112 x 112 and grey; they differ where the root mean square of their pixels'
    differences is above 20 levels. A tower that merges patches keeps more of such a picture.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE)), dtype=np.float64)
    apart = (grey[:, BLOCK:] - grey[:, :-BLOCK]) ** 2
    blocks = apart.reshape(SIDE // BLOCK, BLOCK, -1, BLOCK).mean(axis=(1, 3))
    return float((blocks > EDGE**2).mean())


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
        BadInput: a size below 1.

    Example:
        >>> flat, busy = Image.new("RGB", (64, 64)), Image.effect_noise((64, 64), 90)
        >>> batches([busy, flat, busy, flat], size=2)
        [[1, 3], [0, 2]]
    """
    if size < 1:
        raise BadInput(f"a batch has at least one request, got size={size}; e.g. size=16")
    order = sorted(range(len(images)), key=lambda number: (detail(images[number]), number))
    return [order[start : start + size] for start in range(0, len(order), size)]
