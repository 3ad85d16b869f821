"""Read one image file into upright, opaque, 8-bit RGB, or say why it cannot be used and what to do.

Knows pillow only: nothing of models or processors.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from atp.errors import BadInput, told

MAX_PIXELS = 64_000_000  # ours: 8,000 x 8,000; about 200 MB once decoded
MIN_SIDE = 8  # ours: below this there is not even one patch of the finest tower to look at
MAX_ASPECT = 200  # ours: processors that resize the short side would blow a thin strip up to gigabytes
_ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)


def load_image(source: str | Path | bytes | IO[bytes] | Image.Image) -> Image.Image:
    """Read an image: EXIF orientation applied, transparency on white, CMYK, grey, palette and 16 bits brought to 8-bit RGB.

    Args:
        source: a path, an open binary file or its bytes, or an image that pillow has opened already.

    Returns:
        A new RGB image that holds no open file.

    Raises:
        BadInput: missing, unreadable, truncated, animated, smaller than 8 pixels, thinner than 1:200, or above 64 megapixels
            (judged by the header, before anything is decoded).
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the image", None)
    if isinstance(source, str | Path):
        path = _existing_file(source)
        try:
            with path.open("rb") as file:
                return _read(file, str(path))
        except PermissionError:
            raise BadInput(f"no permission to read {str(path)!r}; try: chmod u+r {str(path)!r}") from None
    source = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    if not hasattr(source, "read"):
        how = "PIL.Image.fromarray(array), uint8 [H, W, 3]" if hasattr(source, "shape") else "atp.load_image('cat.png')"
        raise BadInput(f"expected one image, as a path, bytes, an open file or a pillow image, got {told(source)}; e.g. {how}")
    return _read(source, str(getattr(source, "name", "the image")))


def _existing_file(source: str | Path) -> Path:
    text = str(source)
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise BadInput(f"{text!r} is an address, expected a local file; download it first: curl -L -o image.jpg {text!r}")
    path = Path(text).expanduser()
    if path.is_dir():
        images = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        inside = f", e.g. {str(path / images[0])!r}" if images else ""
        raise BadInput(f"{text!r} is a directory, expected one image file{inside}")
    if not path.exists():
        raise BadInput(f"no such image: {text!r} (looked in {str(Path.cwd())!r}); give the path of a JPEG, PNG or WebP file")
    if not path.is_file():
        raise BadInput(f"{text!r} is no regular file; save the image to a file first")
    return path


def _read(file: IO[bytes], name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow warns above 89 megapixels; ours is an error already at 64
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(name, f"{int(pixels.group(1)) / 1e6:,.0f} megapixels" if pixels else str(error)) from None
    except UnidentifiedImageError:
        raise BadInput(
            f"{name!r} is not an image that can be read (empty, damaged, or a format such as SVG or HEIC); "
            f"expected JPEG, PNG, WebP, BMP, TIFF or GIF. To convert: magick {name!r} image.png"
        ) from None
    except _BROKEN as error:
        raise BadInput(f"cannot read the image {name!r}: {_one_line(error)}; re-export it as PNG or JPEG") from None
    with image:
        return _decode(image, name, image.format)


def _decode(image: Image.Image, name: str, kind: str | None) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width:,} x {height:,} pixels")
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{name!r} is {width} x {height} pixels, expected at least {MIN_SIDE} on each side; use a larger picture")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInput(f"{name!r} is {width} x {height} pixels, thinner than 1:{MAX_ASPECT}; crop it to the part you ask about")
    try:
        _refuse_frames(image, name, kind)
        image.load()
        return _to_rgb(_upright(image))
    except BadInput:
        raise
    except _BROKEN as error:
        what = "is truncated" if "truncated" in str(error).lower() else "is damaged"
        raise BadInput(
            f"{name!r} {what} ({_one_line(error)}); fetch it again, or keep what can be read: magick {name!r} repaired.png"
        ) from None


def _refuse_frames(image: Image.Image, name: str, kind: str | None) -> None:
    if kind in _ANIMATED | {"TIFF"} and getattr(image, "is_animated", False):
        frames = int(getattr(image, "n_frames", 1))
        what = "has pages" if kind == "TIFF" else "is animated: it has frames"
        code = f"from PIL import Image; im = Image.open({name!r}); im.seek(0); im.convert('RGBA').save('frame.png')"
        raise BadInput(f'{name!r} {what} 0 to {frames - 1}, expected a still image; save the one you mean: python -c "{code}"')


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:  # damaged EXIF says nothing about the pixels, which are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.mode.startswith("I"):
        image = _from_integers(image)
    if image.mode in ("F", "LAB"):
        raise BadInput(f"pixels of mode {image.mode!r} have no agreed range; save the image with 8 bits a channel first")
    if image.has_transparency_data or image.mode in ("RGBa", "La"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    converted = image.convert("RGB")
    return converted.copy() if converted is image else converted


def _from_integers(image: Image.Image) -> Image.Image:
    """16-bit grey (`I;16` and `I`, into which pillow reads it) to 8 bits; pillow's own `convert` clips at 255."""
    values = np.asarray(image).astype(np.float64)
    if values.min() < 0 or values.max() > 65535:
        raise BadInput("32-bit integer pixels have no agreed range; save the image with 8 or 16 bits a channel first")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _from_cmyk(image: Image.Image) -> Image.Image:
    """Through the embedded colour profile where there is one, else by the plain formula."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImportError, OSError, ValueError, ImageCms.PyCMSError):
            pass
    return image.convert("RGB")


def _too_large(name: str, size: str) -> BadInput:
    return BadInput(
        f"{name!r} has {size}, expected at most {MAX_PIXELS / 1e6:.0f} megapixels (it was not decoded); "
        f"make it smaller: magick {name!r} -resize 2048x2048 smaller.jpg"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
