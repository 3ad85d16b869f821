"""Digital: brightness, contrast, saturate, elastic, pixelate, JPEG. Knows arrays and Pillow: `[H, W, 3]` floats in 0..1."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from atp.evals.robustness.constants import Constant
from atp.evals.robustness.noise import Pixels


def to_bytes(x: Pixels) -> NDArray[np.uint8]:
    """Return the image in 0..255, cut off and not rounded, as the release saves it."""
    return np.asarray(np.clip(x, 0, 1) * 255 + 1e-9, np.uint8)  # 1e-9: what came from bytes goes back to them


def to_hsv(x: Pixels) -> Pixels:
    """Return hue, saturation, value, each in 0..1; grey has hue 0."""
    value = x.max(-1)
    spread = np.ptp(x, axis=-1)
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = (x[..., i] for i in range(3))
    hue = np.where(
        red == value, (green - blue) / safe, np.where(green == value, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    hue = np.where(spread > 0, hue / 6 % 1, 0)
    return np.stack([hue, np.where(value > 0, spread / np.where(value > 0, value, 1), 0), value], -1)


def from_hsv(x: Pixels) -> Pixels:
    """Return RGB from hue, saturation, value."""
    hue, saturation, value = (x[..., i] for i in range(3))
    corner = (hue[..., None] * 6 + np.array([5, 3, 1])) % 6
    return np.asarray(value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(corner, 4 - corner), 0, 1)))


def brightness(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Raise HSV's value."""
    hsv = to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + c[0], 0, 1)
    return from_hsv(hsv)


def saturate(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Change HSV's saturation; severities 1 and 2 take colour away, 3 to 5 add it."""
    hsv = to_hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * c[0] + c[1], 0, 1)
    return from_hsv(hsv)


def contrast(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Draw every pixel to the image's mean colour."""
    mean = x.mean((0, 1), keepdims=True)
    return np.asarray((x - mean) * c[0] + mean)


def jpeg_compression(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Save as JPEG and read back; the bytes depend on the JPEG library below Pillow."""
    buffer = BytesIO()
    Image.fromarray(to_bytes(x)).save(buffer, "JPEG", quality=round(c[0]))
    return np.asarray(Image.open(buffer), float) / 255


def pixelate(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Shrink and enlarge with box filters."""
    height, width = x.shape[:2]
    small = Image.fromarray(to_bytes(x)).resize((int(width * c[0]), int(height * c[0])), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX), float) / 255


def _jittered(x: Pixels, reach: float, rng: np.random.Generator) -> Pixels:
    """Apply the affine map that moves three points around the centre by up to `reach` pixels each way."""
    height, width = x.shape[:2]
    centre, arm = np.array([width // 2, height // 2], float), min(height, width) // 3
    before = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + rng.uniform(-reach, reach, (3, 2))
    back = np.linalg.lstsq(np.c_[after, np.ones(3)], before, rcond=None)[0].T  # [2, 3]: output (x, y, 1) -> input (x, y)
    turned = back[::-1][:, [1, 0, 2]]  # the same in (row, column) order
    planes = [ndimage.affine_transform(x[..., i], turned[:, :2], turned[:, 2], order=1, mode="mirror") for i in range(x.shape[2])]
    return np.stack(planes, -1)


def elastic_transform(x: Pixels, c: Constant, rng: np.random.Generator) -> Pixels:
    """Jitter by a random affine map, then pull pixels along a smooth random field."""
    strength, sigma, reach = c
    shape = x.shape[:2]
    moved = _jittered(x, reach, rng)

    def pull() -> Pixels:
        field = ndimage.gaussian_filter(rng.uniform(-1, 1, shape), sigma, mode="reflect", truncate=3)
        return np.asarray(field * strength)

    right, down = pull(), pull()
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    where = np.stack([rows + down, columns + right])
    planes = [ndimage.map_coordinates(moved[..., i], where, order=1, mode="reflect") for i in range(x.shape[2])]
    return np.stack(planes, -1)
