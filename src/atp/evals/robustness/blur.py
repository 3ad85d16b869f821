"""Blur: gaussian, defocus, glass, motion, zoom. Knows arrays only: `[H, W, 3]` floats in 0..1."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]

from atp.evals.robustness.constants import Constant
from atp.evals.robustness.noise import Pixels


def smooth(x: Pixels, sigma: float) -> Pixels:
    """Blur height and width, not the channels; beyond the border the edge repeats."""
    return np.asarray(ndimage.gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], mode="nearest", truncate=4.0))


def zoomed(x: Pixels, factor: float) -> Pixels:
    """Enlarge the middle of `[H, W, C]` by a factor of at least 1, linearly, to the size it had."""
    height, width = x.shape[:2]
    crop_h, crop_w = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    large = ndimage.zoom(x[top : top + crop_h, left : left + crop_w], (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])


def streaked(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """Smear along one direction with the falling half of a gaussian of `2 radius + 1` taps, edges repeated.

    Args:
        x: `[H, W]` or `[H, W, C]`.
        radius, sigma: pixels.
        angle: degrees.
    """
    taps = 2 * radius + 1
    weights = np.exp(-0.5 * (np.arange(taps) / sigma) ** 2)
    weights /= weights.sum()
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    out = np.zeros_like(x)
    for step, weight in enumerate(weights):
        down, right = math.ceil(step * sine - 0.5), math.ceil(step * cosine - 0.5)
        row, column = np.clip(rows + down, 0, len(rows) - 1), np.clip(columns + right, 0, len(columns) - 1)
        out += weight * x[row][:, column]
    return out


def gaussian_blur(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Blur with a gaussian."""
    return smooth(x, c[0])


def disk(radius: float, soften: float) -> Pixels:
    """Return the point spread of a lens out of focus: a disk whose edge is softened, sum 1."""
    reach, half = (8, 1) if radius <= 8 else (round(radius), 2)
    line = np.arange(-reach, reach + 1)
    flat = (line[:, None] ** 2 + line[None] ** 2 <= radius**2).astype(float)
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / soften) ** 2)
    taps /= taps.sum()
    soft = ndimage.correlate1d(flat / flat.sum(), taps, axis=0, mode="mirror")
    return np.asarray(ndimage.correlate1d(soft, taps, axis=1, mode="mirror"))


def defocus_blur(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Blur with a disk."""
    return np.asarray(ndimage.correlate(x, disk(*c)[..., None], mode="mirror"))


def glass_blur(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Blur, move pixels about, blur again.

    The release means to swap two pixels, but through views of one array, so the first takes the other's colour and the other
    keeps it; the published images are made so, and so are these.
    """
    sigma, reach, rounds = c[0], round(c[1]), round(c[2])
    height, width = x.shape[:2]
    source = list(range(height * width))
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    for _ in range(rounds):
        moves = iter(rng.integers(-reach, reach, size=(len(rows) * len(columns), 2)).tolist())
        for row in rows:
            for column in columns:
                right, down = next(moves)
                source[row * width + column] = source[(row + down) * width + column + right]
    blurred = np.floor(smooth(x, sigma) * 255) / 255
    moved = blurred.reshape(-1, x.shape[2])[source].reshape(x.shape)
    return smooth(moved, sigma)


def motion_blur(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Smear along a direction within 45 degrees of the horizontal."""
    return streaked(x, round(c[0]), c[1], float(rng.uniform(-45, 45)))


def zoom_blur(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Average the image with enlargements of itself."""
    factors = np.arange(1, c[0], c[1])
    total = sum((zoomed(x, float(factor)) for factor in factors), start=x)
    return total / (len(factors) + 1)
