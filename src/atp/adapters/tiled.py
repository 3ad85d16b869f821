"""Families that cut a picture into tiles of one size, with the whole picture behind them: how some stay away from the tower."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from atp.adapters.base import Args, Kwargs, named


class Tiled:
    """Part of an adapter whose tower takes tiles `[P, C, H, W]`, each alone.

    Attributes:
        tiled: False in a family that takes over from one with tiles, and has none.
        beside: further arguments of the tower that have a row for each tile, with their positions.
    """

    tiled: ClassVar[bool] = True
    beside: ClassVar[tuple[tuple[str, int], ...]] = ()

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
