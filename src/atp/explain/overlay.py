"""One picture of one image: what the model saw, what it kept to the end, and a strip with one panel a site.

Patches that stay are bright; those that left are dark, in the colour of the site at which they left: blue in the tower,
yellow to red in the language model. Knows pillow and numpy, and a `Story`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from atp.explain.story import Stage, Story

Pixels = NDArray[np.float64]  # [height, width, 3], 0 .. 255
Color = tuple[int, int, int]

LARGE, SMALL, GAP, LINE = 420, 200, 14, 19
PAPER, INK, FAINT = (255, 255, 255), (28, 30, 38), (110, 115, 128)
_RAMPS: dict[str, tuple[Color, Color]] = {
    "pixels": ((150, 150, 160), (150, 150, 160)),
    "vision": ((94, 205, 240), (58, 70, 214)),
    "language": ((255, 205, 70), (214, 40, 40)),
}


def overlay(image: Image.Image, story: Story, box: Sequence[float] | None = None, title: str = "") -> Image.Image:
    """Draw the story of an image.

    Args:
        image: RGB, as it was asked about.
        story: of that image.
        box: (left, top, right, bottom), the part of the image that the model sees; None = all of it.
        title: a line above, e.g. the answers.

    Returns:
        An RGB picture, about 870 pixels wide.

    Example:
        >>> overlay(image, story(run.trace)).save("kept.png")
    """
    seen = image.convert("RGB").crop(tuple(round(edge) for edge in box)) if box else image.convert("RGB")  # type: ignore[arg-type]
    left, colors = story.left_at(), stage_colors(story.stages)
    stayed = int((left < 0).sum())
    large, small = _scaled(seen, LARGE), _scaled(seen, SMALL)
    panels = [
        (large, "what the model sees", f"{left.size} patches"),
        (paint(large, left, colors), "kept to the end", f"{stayed} of {left.size} patches"),
    ]
    strip = [
        (paint(small, _until(left, number), colors, number), stage.label, f"{len(stage.kept)} of {left.size} kept")
        for number, stage in enumerate(story.stages)
    ]
    columns = max(1, (2 * LARGE + 2 * GAP) // (SMALL + GAP))
    rows = [panels] + [strip[i : i + columns] for i in range(0, len(strip), columns)]
    height = sum(row[0][0].height + 2 * LINE + 2 * GAP for row in rows) + (LINE + GAP if title else 0) + GAP
    canvas = Image.new("RGB", (2 * LARGE + 3 * GAP, height), PAPER)
    pen, top = ImageDraw.Draw(canvas), GAP
    if title:
        pen.text((GAP, top), _clipped(title, canvas.width - 2 * GAP, 16), INK, ImageFont.load_default(16))
        top += LINE + GAP
    for number, row in enumerate(rows):
        shades = [None] * len(row) if number == 0 else colors[(number - 1) * columns :]
        for column, (panel, label, note) in enumerate(row):
            place = GAP + column * (panel.width + GAP)
            canvas.paste(panel, (place, top))
            _caption(pen, (place, top + panel.height + 5), label, note, shades[column])
        top += row[0][0].height + 2 * LINE + 2 * GAP
    return canvas


def stage_colors(stages: Sequence[Stage]) -> list[Color]:
    """Return one colour a site, from the first to the last of each stack along that stack's ramp."""
    colors = []
    for number, stage in enumerate(stages):
        mine = [i for i, other in enumerate(stages) if other.stack == stage.stack]
        share = mine.index(number) / max(1, len(mine) - 1)
        start, end = _RAMPS[stage.stack]
        colors.append(tuple(round(a + share * (b - a)) for a, b in zip(start, end, strict=True)))
    return colors  # type: ignore[return-value]


def paint(image: Image.Image, left: NDArray[np.int64], colors: Sequence[Color], only: int | None = None) -> Image.Image:
    """Dim the patches that left and tint them by their site.

    Args:
        image: RGB.
        left: `[grid height, grid width]`, the site's number, -1 = stayed.
        colors: one a site.
        only: tint this site alone; earlier ones are only dark.
    """
    pixels: Pixels = np.asarray(image, dtype=np.float64)
    places = _spread(left, image.size)
    grey = pixels.mean(axis=2, keepdims=True)
    gone = places >= 0
    tint = np.asarray([*colors, (0, 0, 0)], dtype=np.float64)[places]
    strength = np.where(gone & ((places == only) if only is not None else gone), 0.5, 0.0)[..., None]
    rows, columns = np.indices(places.shape)
    hatch = np.where((rows + columns) % 7 < 2, 0.6, 1.0)[..., None]  # told apart on a background of the site's own colour
    dark = (0.22 * grey + strength * tint) * hatch
    result = np.where(gone[..., None], dark, pixels)
    result[_edges(gone)] = (255, 255, 255)
    return Image.fromarray(result.clip(0, 255).astype(np.uint8))


def _until(left: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """The map as it stood right after a site."""
    return np.where(left > number, -1, left)


def _spread(values: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Nearest-neighbour enlargement of the grid to `size` (width, height)."""
    rows = np.arange(size[1]) * values.shape[0] // size[1]
    columns = np.arange(size[0]) * values.shape[1] // size[0]
    spread: NDArray[np.int64] = values[rows[:, None], columns[None, :]]
    return spread


def _edges(gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the dark side along the border between dark and bright."""
    edge = np.zeros_like(gone)
    edge[1:] |= gone[1:] & ~gone[:-1]
    edge[:-1] |= gone[:-1] & ~gone[1:]
    edge[:, 1:] |= gone[:, 1:] & ~gone[:, :-1]
    edge[:, :-1] |= gone[:, :-1] & ~gone[:, 1:]
    return edge


def _scaled(image: Image.Image, width: int) -> Image.Image:
    height = min(2 * width, max(24, round(image.height * width / image.width)))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _caption(pen: ImageDraw.ImageDraw, place: tuple[int, int], label: str, note: str, color: Color | None) -> None:
    left, top = place
    if color is not None:
        pen.rectangle((left, top + 3, left + 11, top + 14), fill=color)
        left += 18
    pen.text((left, top), label, INK, ImageFont.load_default(14))
    pen.text((left, top + LINE - 1), note, FAINT, ImageFont.load_default(13))


def _clipped(text: str, width: int, size: int) -> str:
    font = ImageFont.load_default(size)
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
