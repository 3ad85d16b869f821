"""Weather: snow, frost, fog, spatter. Knows arrays only: `[H, W, 3]` floats in 0..1.

Differences: the release cuts frost out of photographs; here it is drawn in their colours (`frost_texture`). The rims of water
drops are found by Canny edges of our own. All else gives the release's images to one grey level when fed the same draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from atp.evals.robustness.blur import smooth, streaked, zoomed
from atp.evals.robustness.constants import Constant
from atp.evals.robustness.noise import Pixels

GREY = np.array([0.299, 0.587, 0.114])
WATER = np.array([175, 238, 238]) / 255  # pale turquoise
MUD = np.array([63, 42, 20]) / 255
PLATES = (  # red, green, blue and deviation within 224 x 224 of the five frost photographs that the release draws from
    (0.305, 0.585, 0.650, 0.162),
    (0.787, 0.805, 0.841, 0.077),
    (0.787, 0.805, 0.841, 0.077),
    (0.540, 0.599, 0.648, 0.116),
    (0.441, 0.484, 0.528, 0.149),
)


def plasma(height: int, width: int, decay: float, rng: np.random.Generator) -> Pixels:
    """Return a diamond-square height map `[H, W]` in 0..1; `decay` is how fast the detail fades."""
    size = 1 << (max(height, width) - 1).bit_length()
    grid = np.zeros((size, size))
    step, wobble = size, 100.0

    def middle(total: Pixels) -> Pixels:
        return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = grid[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        grid[half::step, half::step] = middle(pairs + np.roll(pairs, -1, 1))
        centres = grid[half::step, half::step]
        grid[::step, half::step] = middle(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        grid[half::step, ::step] = middle(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wobble = half, wobble / decay
    grid -= grid.min()
    return np.asarray(grid[:height, :width] / grid.max())


def fog(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Add a bright plasma and scale back to the brightest value."""
    amount, decay = c
    brightest = float(x.max())
    thick = x + amount * plasma(x.shape[0], x.shape[1], decay, rng)[..., None]
    return np.asarray(thick * brightest / (brightest + amount))


def frost_texture(height: int, width: int, scale: float, rng: np.random.Generator) -> Pixels:
    """Draw frost: needles in a few directions, thick in some places and thin in others, `[H, W, 3]` in 0..1.

    Args:
        height, width: pixels.
        scale: of the needles; the release shrinks its photographs by as much.
        rng: draws one of `PLATES` and the pattern.
    """
    *color, deviation = PLATES[rng.integers(len(PLATES))]
    needles = np.zeros((height, width))
    for angle in rng.uniform(0, 180, 4):
        grains = rng.random((height, width)) ** 6
        needles += streaked(grains, max(2, round(24 * scale)), max(1.0, 10 * scale), float(angle))
    cover = smooth(rng.normal(size=(height, width)), max(2.0, 28 * scale))
    field = _unit(0.6 * _unit(needles) + _unit(cover) + 0.3 * rng.normal(size=(height, width)))
    return np.clip(np.array(color) + deviation * field[..., None], 0, 1)


def _unit(field: Pixels) -> Pixels:
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-12))


def frost(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Lay drawn frost over the image."""
    return c[0] * x + c[1] * frost_texture(x.shape[0], x.shape[1], c[2], rng)


def snow(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Whiten the image and let streaked flakes fall, once more turned upside down."""
    mean, deviation, zoom, threshold, radius, sigma, keep = c
    flakes = zoomed(rng.normal(mean, deviation, x.shape[:2])[..., None], zoom)[..., 0]
    flakes[flakes < threshold] = 0
    flakes = np.floor(np.clip(flakes, 0, 1) * 255) / 255
    flakes = streaked(flakes, round(radius), sigma, float(rng.uniform(-135, -45)))[..., None]
    white = np.maximum(x, (x @ GREY)[..., None] * 1.5 + 0.5)
    return np.asarray(keep * x + (1 - keep) * white + flakes + flakes[::-1, ::-1])


def _edges(image: Pixels, low: float, high: float) -> NDArray[np.bool_]:
    """Canny's edges of a 0..255 image: Sobel, thinning along the gradient, edges that touch a strong one."""
    across, down = ndimage.sobel(image, 1, mode="nearest"), ndimage.sobel(image, 0, mode="nearest")
    size = np.abs(across) + np.abs(down)
    turn = np.round(np.degrees(np.arctan2(down, across)) / 45).astype(int) % 4
    padded = np.pad(size, 1)
    thin = np.zeros(size.shape, bool)
    for index, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : 1 + dy + size.shape[0], 1 + dx : 1 + dx + size.shape[1]]
        behind = padded[1 - dy : 1 - dy + size.shape[0], 1 - dx : 1 - dx + size.shape[1]]
        thin |= (turn == index) & (size > behind) & (size >= ahead)
    labels, _ = ndimage.label(thin & (size > low), np.ones((3, 3)))
    strong = np.unique(labels[thin & (size > high)])
    return np.isin(labels, strong[strong > 0])


def _equalized(grey: NDArray[np.uint8]) -> Pixels:
    counts = np.bincount(grey.ravel(), minlength=256)
    first = counts[np.flatnonzero(counts)[0]]
    if first == grey.size:
        return grey.astype(float)
    table = np.round((np.cumsum(counts) - first) * (255 / (grey.size - first)))
    return np.asarray(np.clip(table, 0, 255)[grey])


def _drops(liquid: Pixels) -> Pixels:
    """Return how much light each water drop adds, `[H, W]` in 0..1: brighter away from its rim, with a lit side."""
    deep = np.floor(liquid * 255)
    edges = _edges(deep, 50, 150)
    far = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(deep.shape, 20.0)
    near = ndimage.uniform_filter(np.minimum(far, 20), 3, mode="mirror")
    relief = ndimage.correlate(_equalized(near.astype(np.uint8)), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    light = deep * ndimage.uniform_filter(np.clip(relief, 0, 255), 3, mode="mirror")
    return np.asarray(light / max(float(light.max()), 1e-12))


def spatter(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Splash water drops (light added) or mud (colour laid over) on the lens."""
    mean, deviation, blur, threshold, strength, mud = c
    liquid = smooth(rng.normal(mean, deviation, x.shape[:2]), blur)
    liquid[liquid < threshold] = 0
    if not mud:
        return x + strength * _drops(liquid)[..., None] * WATER
    cover = smooth((liquid > threshold).astype(float), strength)
    cover[cover < 0.8] = 0
    return x * (1 - cover[..., None]) + cover[..., None] * MUD
