"""Families that cut a picture into tiles of one size, with the whole picture beside them, or into windows: how some stay away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atp.adapters.base import Args, Kwargs, named


@dataclass(frozen=True)
class Picture:
    """Tiles `start` .. `start + rows * columns - 1` of a call, row by row, and a thumbnail behind or before them.

    Attributes:
        start, rows, columns: as it says.
        before: whether the thumbnail stands before the tiles.
        box: (top, left, height, width), the pixels of all tiles together that show the picture, the others pad it; None = all.
    """

    start: int
    rows: int
    columns: int
    before: bool = False
    box: tuple[int, int, int, int] | None = None

    @property
    def size(self) -> int:
        """Tiles, without the thumbnail."""
        return self.rows * self.columns

    @property
    def thumbnail(self) -> int:
        """Its place."""
        return self.start - 1 if self.before else self.start + self.size


class Tiled:
    """Part of an adapter whose tower takes tiles `[P, C, H, W]`, each alone.

    Attributes:
        tiled: False in a family that takes over from one with tiles, and has none.
        beside: further arguments of the tower that have a row for each tile, with their positions.
    """

    tiled: ClassVar[bool] = True
    beside: ClassVar[tuple[tuple[str, int], ...]] = ()

    def pictures(self, tiles: Tensor) -> list[Picture] | None:
        """Return which of the tiles of the tower's call make pictures; None = their pixels must tell."""
        return None

    def tiles_of(self, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the pixels `[P, C, H, W]` of the tower's call."""
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        return pixels

    def some_tiles(self, args: Args, kwargs: Kwargs, rows: Tensor) -> tuple[Args, Kwargs]:
        """Return the tower's arguments with these tiles `[K]` only."""
        given, left = dict(kwargs), list(args)
        for name, place in (("pixel_values", 0), *self.beside):
            value = named(given, args, name, place)
            if isinstance(value, Tensor):
                if name in given:
                    given[name] = value[rows]
                else:
                    left[place] = value[rows]
        return tuple(left), given


class Windowed:
    """Part of an adapter whose tower takes images of any size in one packed sequence, with nothing beside them.

    Attributes:
        window: side of a window, in visual tokens.
    """

    any_size: ClassVar[bool] = True
    window: int = 4

    def contents(self, args: Args, kwargs: Kwargs) -> tuple[Tensor, list[bool]]:
        """Read the tower's call: what stands in each visual token, and which images go on where the one before ends.

        Returns:
            Pixels `[N, C, K]` of all visual tokens, image by image and row by row; for each image whether it is a frame of the
            same video as the one before it.
        """
        raise NotImplementedError
