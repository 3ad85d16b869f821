"""Sample scenes: which objects stand where, how large, in which colour, before which background. Knows nothing of pixels.

All lengths are shares of the image's side, so one scene can be drawn at any resolution. Same seed, same scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from atp.scenes.catalog import CATEGORIES, COLOR_NAMES, held_out_pair

SPLITS = ("train", "val", "artist", "compositional")


@dataclass(frozen=True)
class Thing:
    """One object: category and colour index (-1 = the artist's own colours), centre, side, mirrored or not."""

    category: int
    color: int
    x: float
    y: float
    side: float
    flip: bool

    @property
    def name(self) -> str:
        """Category name."""
        return CATEGORIES[self.category].name

    @property
    def color_name(self) -> str | None:
        """Colour as questions say it, or None where it is not asked."""
        return COLOR_NAMES[self.color] if self.color >= 0 else None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, width, height)."""
        return (self.x - self.side / 2, self.y - self.side / 2, self.side, self.side)


@dataclass(frozen=True)
class Scene:
    """A picture's ground truth.

    Attributes:
        seed: decides all of it, the noise included.
        split: `train` and `val` differ by seed only; `artist` uses the held-out artwork; `compositional` shows a
            colour-category pair that training never shows.
        style: artist.
        things: in drawing order, the last in front.
        background: seed of the background.
    """

    seed: int
    split: str
    style: str
    things: tuple[Thing, ...]
    background: int


def _seed_of(split: str, seed: int) -> str:
    return f"{split}:{seed}"


def _colors_for(category: int, split: str, rng: random.Random) -> int:
    if not CATEGORIES[category].tinted:
        return -1
    allowed = [c for c in range(len(COLOR_NAMES)) if not held_out_pair(category, c)]
    if split == "compositional":
        held = [c for c in range(len(COLOR_NAMES)) if held_out_pair(category, c)]
        if held and rng.random() < 0.7:
            return rng.choice(held)
    return rng.choice(allowed)


def _kinds(count: int, rng: random.Random) -> list[int]:
    """Draw the categories of `count` objects: few kinds, some repeated, so that counting has something to count."""
    n_kinds = rng.randint(max(1, (count + 2) // 4), count)
    pool = rng.sample(range(len(CATEGORIES)), n_kinds)
    kinds = list(pool)
    while len(kinds) < count:
        fewer = [k for k in pool if kinds.count(k) < 4]
        kinds.append(rng.choice(fewer[: max(1, len(fewer) // 2)] or pool))
    rng.shuffle(kinds)
    return kinds


def _place(things: list[Thing], side: float, rng: random.Random, overlap: float) -> tuple[float, float] | None:
    half = side / 2
    for _ in range(24):
        x, y = rng.uniform(half, 1 - half), rng.uniform(half, 1 - half)
        for other in things:
            reach = half + other.side / 2
            wide = min(reach - abs(x - other.x), side, other.side)
            high = min(reach - abs(y - other.y), side, other.side)
            if wide > 0 and high > 0 and wide * high > overlap * min(side, other.side) ** 2:
                break
        else:
            return x, y
    return None


def make_scene(seed: int, split: str = "train", most: int = 9, fewest: int = 3) -> Scene:
    """Sample one scene of `fewest`..`most` objects (fewer where they do not fit).

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    rng = random.Random(_seed_of(split, seed))
    count = rng.randint(fewest, most)
    crowd = 1.0 if count <= 5 else 0.85
    things: list[Thing] = []
    for category in _kinds(count, rng):
        side = crowd * rng.choice((rng.uniform(0.15, 0.22), rng.uniform(0.2, 0.3), rng.uniform(0.27, 0.38)))
        spot = _place(things, side, rng, overlap=0.18) or _place(things, 0.15, rng, overlap=0.25)
        if spot is None:
            continue
        side = side if _fits(things, spot, side) else 0.15
        color = _colors_for(category, split, rng)
        things.append(Thing(category, color, *spot, side, rng.random() < 0.5))
    style = "twemoji" if split == "artist" else "noto"
    return Scene(seed, split, style, tuple(things), rng.randrange(2**31))


def _fits(things: list[Thing], spot: tuple[float, float], side: float) -> bool:
    x, y = spot
    if min(x, y, 1 - x, 1 - y) < side / 2 - 1e-9:
        return False
    for other in things:
        reach = (side + other.side) / 2
        wide = min(reach - abs(x - other.x), side, other.side)
        high = min(reach - abs(y - other.y), side, other.side)
        if wide > 0 and high > 0 and wide * high > 0.25 * min(side, other.side) ** 2:
            return False
    return True
