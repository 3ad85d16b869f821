"""Every kind of image file that people have, and every kind that cannot be used."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp.errors import BadInput
from atp.images import load_image


def picture(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """A gradient with detail, so that codecs have something to do."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    channels = np.stack([x * 255 // width, y * 255 // height, (x * 7 + y * 13) % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(channels).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif", "jpg"])
def test_reads_common_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture().save(path)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_reads_open_files_and_images_without_touching_them() -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    buffer.seek(0)
    assert np.array_equal(np.asarray(load_image(buffer)), np.asarray(picture()))
    given = picture()
    taken = load_image(given)
    taken.putpixel((0, 0), (9, 9, 9))
    assert given.getpixel((0, 0)) != (9, 9, 9)


def test_bytes_are_those_of_a_file() -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    for given in (buffer.getvalue(), bytearray(buffer.getvalue())):
        assert np.array_equal(np.asarray(load_image(given)), np.asarray(picture()))
    with pytest.raises(BadInput, match="is not an image that can be read"):
        load_image(b"no image")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, r"got None \(NoneType\).*atp\.load_image\('cat\.png'\)"),
        (np.zeros((9, 9, 3), np.uint8), r"got array.*\(ndarray\).*PIL\.Image\.fromarray\(array\)"),
        ([picture()], r"expected one image, .*\(list\)"),
    ],
)
def test_what_is_no_image(given: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_image(given)  # type: ignore[arg-type]


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    half.paste((0, 0, 255, 128), (0, 0, 10, 20))
    half.save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.getpixel((15, 5)) == (255, 255, 255)
    assert image.getpixel((5, 5)) == (127, 127, 255)


def test_transparent_palette_and_rgb_colour_key(tmp_path: Path) -> None:
    palette = picture().convert("P")
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert load_image(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)
    picture().save(tmp_path / "key.png", transparency=picture().getpixel((3, 3)))
    assert load_image(tmp_path / "key.png").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    picture(mode="L" if mode == "LA" else "RGB").convert(mode).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 8).reshape(8, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    read = np.asarray(load_image(tmp_path / "a.png"))[..., 0]
    assert np.abs(read.astype(float) - ramp / 257).max() <= 0.51


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_keeps_its_colours(tmp_path: Path, suffix: str) -> None:
    flat = Image.new("RGB", (32, 32), (200, 40, 90))
    flat.convert("CMYK").save(tmp_path / f"a.{suffix}")
    image = load_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - np.asarray(flat)).max() <= 4


def test_cmyk_with_a_broken_profile_falls_back(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK").save(tmp_path / "a.jpg", icc_profile=b"nonsense")
    assert load_image(tmp_path / "a.jpg").mode == "RGB"


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    picture((40, 30)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "a.jpg")
    assert image.size == (30, 40)
    expected = picture((40, 30)).transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 40


def test_missing_directory_and_address(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such image: .*give the path"):
        load_image(tmp_path / "cat.png")
    picture().save(tmp_path / "x.png")
    with pytest.raises(BadInput, match=r"is a directory, expected one image file, e\.g\. .*x\.png"):
        load_image(tmp_path)
    with pytest.raises(BadInput, match="download it first: curl"):
        load_image("https://example.org/cat.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(BadInput, match="chmod u"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"])
def test_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadInput, match="image"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    whole = tmp_path / f"a.{suffix}"
    picture((200, 150)).save(whole)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput, match=r"cut\."):
        load_image(cut)


def test_truncated_is_called_so(tmp_path: Path) -> None:
    picture((200, 150)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2000])
    with pytest.raises(BadInput, match=r"b\.jpg' is truncated .*fetch it again"):
        load_image(tmp_path / "b.jpg")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animated(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (20, 20), (60 * i, 0, 0)) for i in range(3)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(BadInput, match=r"animated: it has frames 0 to 2, .*python -c .*im\.seek\(0\)"):
        load_image(path)


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.tiff", save_all=True, append_images=[picture()])
    with pytest.raises(BadInput, match="has pages 0 to 1"):
        load_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7)])
def test_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    picture(size).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match=rf"is {size[0]} x {size[1]} pixels, expected at least 8"):
        load_image(tmp_path / "a.png")


def test_too_thin(tmp_path: Path) -> None:
    picture((8, 1700)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match="thinner than 1:200"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (9_000, 9_000), (12_000, 9_000)])
def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(width, height))
    with pytest.raises(BadInput, match=r"at most 64 megapixels \(it was not decoded\).*-resize 2048x2048"):
        load_image(tmp_path / "a.png")


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((16, 16), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(BadInput, match="no agreed range"):
        load_image(tmp_path / "a.tiff")
