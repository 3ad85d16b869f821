"""Draw a scene: background, sprites, sensor noise; and the mask of what stays visible of each object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atp.scenes.catalog import TEXTURE_CELL, sprite, textures
from atp.scenes.world import Scene

_TEXTURE_POOL = 2.0  # a texture crop spans up to 1/2 of its cell before scaling


def _gradient(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    first, second = rng.uniform(30, 230, (2, 3)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = np.clip(0.5 + (np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]), 0, 1)[..., None]
    blend: NDArray[np.float32] = first * (1 - ramp) + second * ramp
    return blend


def _background(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    canvas = _gradient(size, rng)
    if rng.random() < 0.5:
        cells = textures()
        cell = cells[rng.integers(len(cells))]
        span = int(rng.integers(int(TEXTURE_CELL / _TEXTURE_POOL), TEXTURE_CELL))
        x, y = rng.integers(0, TEXTURE_CELL - span + 1, 2)
        turned = np.rot90(cell[y : y + span, x : x + span], int(rng.integers(4)))
        grain = np.asarray(Image.fromarray(turned).resize((size, size), Image.Resampling.BILINEAR), np.float32)
        grain = (grain - grain.mean())[..., None] / 128.0
        canvas = canvas * (1 + rng.uniform(0.3, 0.8) * grain)
    return canvas


def render(scene: Scene, size: int = 112) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Draw a scene.

    Args:
        scene: what to draw.
        size: side in pixels.

    Returns:
        The image `[size, size, 3]` and, per pixel, the index of the object seen there (-1 = background) `[size, size]`.
    """
    rng = np.random.default_rng(scene.background)
    canvas = _background(size, rng)
    owner = np.full((size, size), -1, np.int8)
    for index, thing in enumerate(scene.things):
        side = max(4, round(thing.side * size))
        picture = sprite(thing.category, thing.color, scene.style, side, thing.flip)
        left = min(max(round((thing.x - thing.side / 2) * size), 0), size - side)
        top = min(max(round((thing.y - thing.side / 2) * size), 0), size - side)
        area = (slice(top, top + side), slice(left, left + side))
        alpha = picture[..., 3:].astype(np.float32) / 255
        light = np.float32(rng.uniform(0.85, 1.12))
        canvas[area] = canvas[area] * (1 - alpha) + np.minimum(picture[..., :3] * light, 255) * alpha
        owner[area][picture[..., 3] > 127] = index
    noise = np.random.default_rng(scene.background + 1).normal(0, rng.uniform(1, 6), (size, size, 3))
    return np.clip(canvas + noise.astype(np.float32), 0, 255).astype(np.uint8), owner
