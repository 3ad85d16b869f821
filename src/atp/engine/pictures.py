"""Which tiles of a call make a picture, and what its thumbnail does not tell of them. Part of the engine; knows pixels only.

A picture in tiles is rows x columns of tiles and, beside them, the whole picture at the size of one tile. Where the adapter does
not know which tiles make one, it is read from the pixels alone, for `generate` encodes images without their prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from atp.adapters.tiled import Picture

MOST = 36
"""Tiles of one picture, at most; processors cut up to 12 (InternVL) or 16 (Idefics3)."""
SIDE, COARSE = 96, 4
"""Pictures are recognised at this size of a tile, by means of `COARSE` x `COARSE` cells of each tile."""
ALIKE, FLAT = 0.1, 1e-4
"""A thumbnail is one if the tiles differ from it by less than this share of its variance, and if it has any."""
ROUNDED = 1e-9
"""Ours: what a product of floats may be beside a half."""


def pictures(tiles: Tensor) -> list[Picture]:
    """Find the pictures among tiles `[P, C, H, W]`; what is none of theirs is an image of its own. One device sync."""
    grids = [(r, c) for r in range(1, MOST + 1) for c in range(1, MOST // r + 1) if 2 <= r * c < len(tiles)]
    if not grids:
        return []
    wide = tiles.to(torch.promote_types(tiles.dtype, torch.float32))
    small = functional.adaptive_avg_pool2d(wide, (min(SIDE, tiles.shape[-2]), min(SIDE, tiles.shape[-1])))
    parts, found = functional.adaptive_avg_pool2d(small, COARSE), []
    for rows, columns in grids:
        number = rows * columns
        thumbnails = functional.adaptive_avg_pool2d(small[number:], (rows * COARSE, columns * COARSE))
        windows = parts.unfold(0, number, 1)[: len(thumbnails)].movedim(-1, 1).reshape(-1, rows, columns, *parts.shape[1:])
        joined = windows.permute(0, 3, 1, 4, 2, 5).reshape(thumbnails.shape)
        spread = (thumbnails - thumbnails.mean((-2, -1), keepdim=True)).square().mean((1, 2, 3))
        apart = (joined - thumbnails).square().mean((1, 2, 3)) / spread
        found.append(functional.pad(apart.masked_fill(spread < FLAT, torch.inf), (0, number), value=torch.inf))
    return _cover(torch.stack(found).tolist(), grids, len(tiles))


def _cover(apart: list[list[float]], grids: Sequence[tuple[int, int]], length: int) -> list[Picture]:
    """Choose pictures that do not overlap: as few images in all as can be, and of those the likest."""
    ways: dict[int, list[tuple[float, Picture]]] = {}
    for (rows, columns), line in zip(grids, apart, strict=True):
        for start, value in enumerate(line):
            if value <= ALIKE:
                made = Picture(start, rows, columns)
                ways.setdefault(made.thumbnail + 1, []).append((value, made))
    best: list[tuple[float, list[Picture]]] = [(0.0, [])]
    for end in range(1, length + 1):
        options = [(best[end - 1][0] + 1, best[end - 1][1])]
        options += [(best[one.start][0] + 1 + value, [*best[one.start][1], one]) for value, one in ways.get(end, ())]
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def residuals(tiles: Tensor, picture: Picture) -> Tensor:
    """How much of each tile of a picture its thumbnail does not explain, `[rows * columns]`, in units of the pixels.

    The root mean square difference between the tile and its part of the thumbnail, enlarged; or from its own mean where that is
    less, so that a tile of one colour has 0 whatever its neighbours leave on the thumbnail. Pixels that pad the picture count as
    explained.
    """
    own = tiles[picture.start : picture.start + picture.size]
    own = own.to(torch.promote_types(own.dtype, torch.float32))
    thumbnail = tiles[picture.thumbnail : picture.thumbnail + 1].to(own.dtype)
    whole = (picture.rows * own.shape[-2], picture.columns * own.shape[-1])
    top, left, height, width = picture.box or (0, 0, *whole)
    large = functional.interpolate(thumbnail, size=(height, width), mode="bilinear", align_corners=False)[0]
    large = functional.pad(large, (left, whole[1] - left - width, top, whole[0] - top - height))
    inside = functional.pad(large.new_ones(1, height, width), (left, whole[1] - left - width, top, whole[0] - top - height))
    cut, shown = (
        one.reshape(-1, picture.rows, own.shape[-2], picture.columns, own.shape[-1]).permute(1, 3, 0, 2, 4).flatten(0, 1)
        for one in (large, inside)
    )
    mean = (own * shown).sum((-2, -1), keepdim=True) / shown.sum((-2, -1), keepdim=True).clamp(min=1)
    unexplained, contrast = (((own - other) * shown).square().mean((1, 2, 3)) for other in (cut, mean))
    return torch.minimum(unexplained, contrast).sqrt()


def stay(scores: Sequence[float], wanted: float | str, sizes: Sequence[int] | None = None) -> set[int]:
    """Places of the parts of one picture that stay: a share of them, the first of equals; or those with more than a threshold.

    Args:
        scores: of its parts, on the host.
        wanted: see `atp.prune`.
        sizes: of the parts, where they differ: the share is one of their sum.
    """
    if isinstance(wanted, str):
        bar = float(wanted.strip()[1:])
        return {place for place, score in enumerate(scores) if score > bar}
    sizes, there, taken = sizes or [1] * len(scores), set(), 0
    for place in sorted(range(len(scores)), key=lambda place: -scores[place]):
        if taken + sizes[place] / 2 > wanted * sum(sizes) + ROUNDED:
            break
        there.add(place)
        taken += sizes[place]
    return there


def kept(parts: int, share: float) -> int:
    """How many of a picture's parts a share is; its thumbnail, if any, comes on top."""
    return int(parts * share + 0.5)
