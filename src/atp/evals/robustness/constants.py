"""The constants of the image corruptions, severity 1 to 5, for three input sizes. Knows numbers only.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019,
arXiv 1903.12261) and the files that it released: ImageNet-C (224 px), Tiny-ImageNet-C (64 px), CIFAR-10-C (32 px).
All lengths are pixels of the input; the images of the three sets are 224, 64 and 32 pixels wide.
"""

from __future__ import annotations

from typing import TypeAlias

COMMON = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # the authors' hold-out: tune nothing on the other fifteen
CORRUPTIONS = COMMON + EXTRA
SEVERITIES = (1, 2, 3, 4, 5)
SETS = (32, 64, 224)

Constant: TypeAlias = tuple[float, ...]
_Five: TypeAlias = tuple[Constant, Constant, Constant, Constant, Constant]


def _each(a: float, b: float, c: float, d: float, e: float) -> _Five:
    return (a,), (b,), (c,), (d,), (e,)


def _times(scale: float, *rows: Constant) -> _Five:
    a, b, c, d, e = (tuple(scale * value for value in row) for row in rows)
    return a, b, c, d, e


_ZOOM_SMALL: _Five = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))

_IMAGENET: dict[str, _Five] = {
    "gaussian_noise": _each(0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
    "shot_noise": _each(60, 25, 12, 5, 3),  # photons of a white pixel
    "impulse_noise": _each(0.03, 0.06, 0.09, 0.17, 0.27),  # share of values
    "speckle_noise": _each(0.15, 0.2, 0.35, 0.45, 0.6),  # standard deviation, times the pixel
    "gaussian_blur": _each(1, 2, 3, 4, 6),  # standard deviation
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius, softening of the disk's edge
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),  # blur, farthest move, rounds
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, standard deviation
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),  # end (exclusive), step
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # amount, decay of the fractal
    "frost": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),  # image, frost, texture's scale
    "snow": (  # mean, deviation, zoom, threshold, radius, deviation of the streak, weight of the image
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "spatter": (  # mean, deviation, blur, threshold, strength (water) or blur (mud), 0 = water, 1 = mud
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "brightness": _each(0.1, 0.2, 0.3, 0.4, 0.5),  # added to HSV's value
    "contrast": _each(0.4, 0.3, 0.2, 0.1, 0.05),  # distance to the mean colour, times this
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),  # HSV's saturation: times, plus
    "jpeg_compression": _each(25, 18, 15, 10, 7),  # quality
    "pixelate": _each(0.6, 0.5, 0.4, 0.3, 0.25),  # side of the small image
    "elastic_transform": _times(  # strength, smoothness, affine jitter; 244 is what the release has, not a slip of ours
        244, (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)
    ),
}

_TINY: dict[str, _Five] = {
    "gaussian_noise": _each(0.04, 0.08, 0.12, 0.15, 0.18),
    "shot_noise": _each(250, 100, 50, 30, 15),
    "impulse_noise": _each(0.01, 0.02, 0.05, 0.08, 0.14),
    "speckle_noise": _each(0.15, 0.2, 0.25, 0.3, 0.35),
    "gaussian_blur": _each(0.5, 0.75, 1, 1.25, 1.5),
    "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "zoom_blur": _ZOOM_SMALL,
    "fog": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    "frost": ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.6, 0),
        (0.65, 0.1, 0.8, 0.7, 0.6, 0),
        (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0.6, 1),
        (0.65, 0.1, 0.5, 0.67, 0.6, 1),
    ),
    "brightness": _IMAGENET["brightness"],
    "contrast": _IMAGENET["contrast"],
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    "jpeg_compression": _each(65, 58, 50, 40, 25),
    "pixelate": _each(0.9, 0.8, 0.7, 0.6, 0.5),
    "elastic_transform": _times(64, (0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
}

_CIFAR: dict[str, _Five] = {
    "gaussian_noise": _each(0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": _each(500, 250, 100, 75, 50),
    "impulse_noise": _each(0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": _each(0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": _each(0.4, 0.6, 0.7, 0.8, 1),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": _ZOOM_SMALL,
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "frost": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "brightness": _each(0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": _each(0.75, 0.5, 0.4, 0.3, 0.15),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    "jpeg_compression": _each(80, 65, 58, 50, 40),
    "pixelate": _each(0.95, 0.9, 0.85, 0.75, 0.65),
    "elastic_transform": _times(32, (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
}

_TABLES = {32: _CIFAR, 64: _TINY, 224: _IMAGENET}


def set_for(height: int, width: int) -> int:
    """Return which set's constants an image of this size gets: 32 below 46 pixels, 64 below 120, else 224.

    The shorter side decides, and the set whose size is nearest by ratio wins (bounds: the geometric means, 45.3 and 119.7). The
    constants are pixels and are not scaled to the image; larger photographs than 224 get the 224 set, as is usual.
    """
    side = min(height, width)
    return 32 if side * side < 32 * 64 else 64 if side * side < 64 * 224 else 224


def constant(name: str, severity: int, size: int) -> Constant:
    """Return the constants of one corruption at one severity.

    Args:
        name: one of `CORRUPTIONS`.
        severity: 1..5.
        size: which set, one of `SETS`.
    """
    return _TABLES[size][name][severity - 1]
