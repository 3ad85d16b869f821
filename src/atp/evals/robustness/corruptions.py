"""Corrupt an image by name and severity, the same bytes each time. Knows the kinds by name, nothing of models.

`corrupt(pixels, "fog", 3, key="000042")` draws all its randomness from (seed, key, name, severity), so all compared runs see
the same corrupted picture, in any order and in any process. Which constants an image size gets: `constants.set_for`.
Needs scipy: `pip install 'atp-vlm[eval]'`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atp.errors import AtpError, BadInput
from atp.evals.robustness.constants import CORRUPTIONS, SETS, SEVERITIES, Constant, constant, set_for
from atp.registry import did_you_mean

try:
    from atp.evals.robustness import blur, digital, noise, weather
except ModuleNotFoundError as missing:
    raise AtpError(f"image corruptions need {missing.name}, which is not installed: pip install 'atp-vlm[eval]'") from missing

SMALLEST = 16  # pixels; below, the largest kernels of the 32-pixel set no longer fit
MOVING = ("elastic_transform", "zoom_blur")  # objects move: boxes and masks of the clean image no longer hold

_MAKERS: dict[str, Callable[[noise.Pixels, Constant, np.random.Generator], noise.Pixels]] = {
    name: getattr(module, name) for module in (noise, blur, weather, digital) for name in CORRUPTIONS if hasattr(module, name)
}


def seeded(*parts: object) -> np.random.Generator:
    """Return a generator that depends on the parts only: same parts, same draws, in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def corrupt(
    pixels: NDArray[np.uint8], name: str, severity: int, key: str, seed: int = 0, constants: int | None = None
) -> NDArray[np.uint8]:
    """Return the corrupted image, shape and type kept.

    Args:
        pixels: `[H, W, 3]` RGB, 0..255.
        name: one of `CORRUPTIONS`.
        severity: 1..5.
        key: of the image, unique in its data set.
        seed: of the whole corrupted set.
        constants: which set's constants, 32, 64 or 224; None = by the image's size.

    Raises:
        BadInput: no such corruption, severity or set; not an RGB image of bytes; smaller than 16 pixels.
    """
    _check(pixels, name, severity, constants)
    size = set_for(*pixels.shape[:2]) if constants is None else constants
    out = _MAKERS[name](pixels / 255.0, constant(name, severity, size), seeded(seed, key, name, severity))
    return digital.to_bytes(out)


def corrupt_image(image: Image.Image, name: str, severity: int, key: str, seed: int = 0) -> Image.Image:
    """Do the same to a Pillow image, constants by its size; the result is RGB."""
    return Image.fromarray(corrupt(np.asarray(image.convert("RGB")), name, severity, key, seed))


def _check(pixels: NDArray[np.uint8], name: str, severity: int, constants: int | None) -> None:
    if name not in _MAKERS:
        raise BadInput(f"unknown corruption {name!r}.{did_you_mean(name, CORRUPTIONS)} Known: {', '.join(CORRUPTIONS)}")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise BadInput(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}; 0 would be the clean image: leave it as it is")
    if constants is not None and constants not in SETS:
        raise BadInput(f"constants exist for {', '.join(map(str, SETS))} pixels, got {constants!r}; constants=None picks by size")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise BadInput(
            f"expected an RGB image of bytes [H, W, 3], got {pixels.dtype} {list(pixels.shape)}; "
            "np.asarray(image.convert('RGB')) gives one"
        )
    if min(pixels.shape[:2]) < SMALLEST:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise BadInput(f"an image of {size} pixels is too small to corrupt; give at least {SMALLEST} each way")
