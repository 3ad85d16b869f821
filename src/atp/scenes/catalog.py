"""What can stand in a scene: COCO category names with artwork, coloured shapes, colours, textures. Knows numpy and pillow only.

Artwork and licences: `assets/NOTICE`. Every category is one 64-pixel glyph per artist; `noto` trains, `twemoji` is held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ASSETS = Path(__file__).parent / "assets"
STYLES = ("noto", "twemoji")
CELL = 64
TEXTURE_CELL = 160


@dataclass(frozen=True)
class Category:
    """One kind of object.

    Attributes:
        name, plural: as questions say it.
        coco_id: official category id (0 for shapes, which COCO does not have).
        supercategory: official one; "shape" for shapes.
        tinted: drawn in one of `COLORS`, so its colour can be asked.
    """

    name: str
    plural: str
    coco_id: int
    supercategory: str
    tinted: bool


_OBJECTS = """person people 1 person -|bicycle bicycles 2 vehicle t|car cars 3 vehicle t|motorcycle motorcycles 4 vehicle t
airplane airplanes 5 vehicle t|bus buses 6 vehicle t|truck trucks 8 vehicle t|boat boats 9 vehicle -
traffic_light traffic_lights 10 outdoor -
bird birds 16 animal -|cat cats 17 animal -|dog dogs 18 animal -|horse horses 19 animal -
sheep sheep 20 animal -|cow cows 21 animal -|elephant elephants 22 animal -|bear bears 23 animal -|zebra zebras 24 animal -
giraffe giraffes 25 animal -|backpack backpacks 27 accessory t|umbrella umbrellas 28 accessory t|handbag handbags 31 accessory t
tie ties 32 accessory t|suitcase suitcases 33 accessory t|kite kites 38 sports t|bottle bottles 44 kitchen t|cup cups 47 kitchen t
banana bananas 52 food -|apple apples 53 food -|carrot carrots 57 food -|pizza pizzas 59 food -|donut donuts 60 food -
cake cakes 61 food -|chair chairs 62 furniture t|couch couches 63 furniture t|toilet toilets 70 furniture -
laptop laptops 73 electronic -|clock clocks 85 indoor -|vase vases 86 indoor t|book books 84 indoor t"""

_SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")


def _read() -> tuple[Category, ...]:
    rows = [entry.split() for line in _OBJECTS.splitlines() for entry in line.split("|")]
    objects = [Category(n.replace("_", " "), p.replace("_", " "), int(i), s, t == "t") for n, p, i, s, t in rows]
    shapes = [Category(name, f"{name}s", 0, "shape", True) for name in _SHAPES]
    return (*objects, *shapes)


CATEGORIES: tuple[Category, ...] = _read()
N_GLYPHS = len(CATEGORIES) - len(_SHAPES)
BY_NAME = {category.name: index for index, category in enumerate(CATEGORIES)}

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 165, 60),
    "blue": (35, 90, 225),
    "purple": (135, 45, 175),
    "white": (248, 248, 248),
    "black": (28, 28, 32),
}
COLOR_NAMES = tuple(COLORS)


def held_out_pair(category: int, color: int) -> bool:
    """Whether this colour never goes with this category in training scenes: the compositional split."""
    return (category * 5 + color * 3) % 16 == 0


@lru_cache(maxsize=2)
def _sheet(style: str) -> Image.Image:
    return Image.open(ASSETS / f"{style}.png").convert("RGBA")


@lru_cache(maxsize=1)
def textures() -> NDArray[np.uint8]:
    """Return the natural textures, `[n, 160, 160]` grey."""
    strip = np.asarray(Image.open(ASSETS / "textures.jpg").convert("L"))
    return np.stack(np.split(strip, strip.shape[1] // TEXTURE_CELL, axis=1))


def _draw_shape(name: str) -> Image.Image:
    side = 4 * CELL
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    low, high, mid = side * 0.06, side * 0.94, side / 2
    if name == "circle":
        pen.ellipse((low, low, high, high), fill=255)
    elif name == "square":
        pen.rectangle((side * 0.1, side * 0.1, side * 0.9, side * 0.9), fill=255)
    elif name == "triangle":
        pen.polygon([(mid, low), (high, side * 0.9), (low, side * 0.9)], fill=255)
    elif name == "diamond":
        pen.polygon([(mid, low), (side * 0.86, mid), (mid, high), (side * 0.14, mid)], fill=255)
    elif name == "star":
        angles = [np.pi * (i / 5 - 0.5) for i in range(10)]
        radii = [0.48 * side if i % 2 == 0 else 0.2 * side for i in range(10)]
        pen.polygon([(mid + r * np.cos(a), mid + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)], fill=255)
    else:  # heart: two discs and a wedge
        pen.ellipse((low, side * 0.1, side * 0.53, side * 0.57), fill=255)
        pen.ellipse((side * 0.47, side * 0.1, high, side * 0.57), fill=255)
        pen.polygon([(side * 0.1, side * 0.46), (side * 0.9, side * 0.46), (mid, side * 0.95)], fill=255)
    alpha = image.resize((CELL, CELL), Image.Resampling.LANCZOS)
    grey = Image.new("L", (CELL, CELL), 200)
    return Image.merge("RGBA", (grey, grey, grey, alpha))


@cache
def _tinted(category: int, color: int, style: str) -> Image.Image:
    if category >= N_GLYPHS:
        glyph = _draw_shape(CATEGORIES[category].name)
    else:
        row, column = divmod(category, 10)
        box = (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)
        glyph = _sheet(style).crop(box)
    if color < 0:
        return glyph
    pixels = np.asarray(glyph).astype(np.float32)
    alpha = pixels[..., 3:]
    grey = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    inside = grey[alpha[..., 0] > 128]
    low, high = (float(v) for v in np.percentile(inside, [5, 95]))
    light = np.clip((grey - low) / max(high - low, 1.0), 0, 1) if high - low > 8 else np.full_like(grey, 0.6)
    base = np.array(COLORS[COLOR_NAMES[color]], np.float32)
    shade = base * (0.55 + 0.45 * light[..., None])
    return Image.fromarray(np.concatenate([shade, alpha], -1).astype(np.uint8), "RGBA")


@lru_cache(maxsize=40_000)
def sprite(category: int, color: int, style: str, side: int, flip: bool) -> NDArray[np.uint8]:
    """Return one object's picture, `[side, side, 4]` RGBA.

    Args:
        category: index into `CATEGORIES`.
        color: index into `COLOR_NAMES`, -1 for the artist's own colours.
        style: artist, one of `STYLES`; shapes look alike in both.
        side: pixels.
        flip: mirrored left to right.
    """
    picture = _tinted(category, color, style).resize((side, side), Image.Resampling.LANCZOS)
    array = np.asarray(picture)
    return np.ascontiguousarray(array[:, ::-1] if flip else array)
