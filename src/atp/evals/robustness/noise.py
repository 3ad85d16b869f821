"""Noise: gaussian, shot, impulse, speckle. Knows arrays only: `[H, W, 3]` floats in 0..1; results may leave that range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atp.evals.robustness.constants import Constant

Pixels = NDArray[np.float64]


def gaussian_noise(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Add normal noise of one deviation."""
    return x + rng.normal(scale=c[0], size=x.shape)


def shot_noise(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Count photons: a Poisson draw of each value."""
    return rng.poisson(x * c[0]) / c[0]


def impulse_noise(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Set a share of the values to black or white, each channel for itself."""
    hit, white = rng.random(x.shape) <= c[0], rng.random(x.shape) <= 0.5
    return np.where(hit, white.astype(float), x)


def speckle_noise(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Add normal noise in proportion to the pixel."""
    return x + x * rng.normal(scale=c[0], size=x.shape)
