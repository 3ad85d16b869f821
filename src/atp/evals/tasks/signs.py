"""Scenes with signs to read, in TextVQA's schema: `python -m atp.evals.tasks.signs OUT --images 100`.

Each picture shows two plates of different colours, one with a number, one with a word; letter heights go through `HEIGHTS`, so
that accuracy by height says from which size on detail is lost. The ten answers are the written text ten times.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from atp.evals.tasks.textvqa import FILE, HEIGHT
from atp.scenes import SPLITS, Scene, make_scene, render
from atp.scenes.catalog import COLORS

WORDS = "stop exit open sale taxi hotel bank park zoo cafe shop bus left food farm gate".split()
HEIGHTS = (6, 8, 10, 14, 20)  # pixels of a capital at 224 pixels: our choice
PLATES = ("red", "blue", "green", "purple", "black")  # white letters are clear on all of them
NATIVE = 224
TRIES = 200

Box = tuple[int, int, int, int]


def _font(height: int) -> ImageFont.FreeTypeFont:
    """Font whose capitals have a height in pixels."""
    size = height
    while True:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType; reinstall it: pip install --force-reinstall pillow")
        _, top, _, bottom = font.getbbox("H")
        if bottom - top >= height:
            return font
        size += 1


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _place(wide: int, high: int, side: int, taken: list[Box], rng: random.Random) -> Box:
    """Spot where a plate hides least of what is there."""
    spots = []
    for _ in range(TRIES):
        x, y = rng.randint(0, max(0, side - wide)), rng.randint(0, max(0, side - high))
        box = (x, y, x + wide, y + high)
        spots.append((sum(_overlap(box, other) for other in taken), box))
        if not spots[-1][0]:
            break
    return min(spots)[1]


def signed(scene: Scene, size: int = NATIVE) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draw a scene with two signs; returns the picture and a row (question, answer, height) for each.

    Args:
        scene: to draw on.
        size: side of the picture in pixels; letters grow with it.
    """
    rng = random.Random(f"signs:{scene.split}:{scene.seed}")
    image = Image.fromarray(render(scene, size)[0])
    pen = ImageDraw.Draw(image)
    taken = [tuple(round(v * size) for v in (x, y, x + w, y + h)) for x, y, w, h in (thing.box for thing in scene.things)]
    boxes: list[Box] = [(box[0], box[1], box[2], box[3]) for box in taken]
    plates: list[Box] = []
    rows = []
    number, word = str(rng.randint(1, 999)), rng.choice(WORDS)
    for text, color in zip((number, word), rng.sample(PLATES, 2), strict=True):
        height = rng.choice(HEIGHTS)
        font = _font(max(1, round(height * size / NATIVE)))
        left, top, right, bottom = (round(v) for v in font.getbbox(text.upper()))
        pad = max(2, (bottom - top) // 3)
        box = _place(right - left + 2 * pad, bottom - top + 2 * pad, size, boxes + 100 * plates, rng)
        plates.append(box)
        pen.rectangle(box, fill=COLORS[color])
        pen.text((box[0] + pad - left, box[1] + pad - top), text.upper(), fill=(255, 255, 255), font=font)
        what = "number" if text.isdigit() else "word"
        rows.append({"question": f"What {what} is on the {color} sign?", "answer": text, HEIGHT: height})
    return image, rows


def write_signs(folder: str | Path, seeds: Iterable[int], split: str = "val", size: int = NATIVE) -> int:
    """Write `TextVQA_0.5.1_val.json` and `train_images/*.jpg`; returns how many questions.

    Args:
        folder: made if absent.
        seeds: of the scenes.
        split: one of `atp.scenes.SPLITS`.
        size: side of the images in pixels.
    """
    folder = Path(folder)
    (folder / "train_images").mkdir(parents=True, exist_ok=True)
    data: list[dict[str, Any]] = []
    for seed in seeds:
        image, rows = signed(make_scene(seed, split), size)
        name = f"sign{seed:08d}"
        image.save(folder / "train_images" / f"{name}.jpg", quality=95)
        for row in rows:
            data.append(
                {
                    "question": row["question"],
                    "image_id": name,
                    "image_classes": ["Sign"],
                    "flickr_original_url": "",
                    "flickr_300k_url": "",
                    "image_width": size,
                    "image_height": size,
                    "answers": [row["answer"]] * 10,
                    "question_tokens": row["question"].lower().rstrip("?").split(),
                    "question_id": len(data),
                    "set_name": "val",
                    HEIGHT: row[HEIGHT],
                }
            )
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "info": "signs in generated scenes"}
    (folder / FILE.format(split="val")).write_text(json.dumps({**head, "data": data}), encoding="utf-8")
    return len(data)


def main(
    out: Annotated[Path, typer.Argument(help="folder to write into")],
    images: Annotated[int, typer.Option(min=1, help="how many scenes")] = 100,
    split: Annotated[str, typer.Option(help=f"one of {', '.join(SPLITS)}")] = "val",
    first: Annotated[int, typer.Option(min=0, help="first scene seed")] = 0,
    size: Annotated[int, typer.Option(min=64, max=2048, help="image side in pixels")] = NATIVE,
) -> None:
    """Write scenes with signs as a TextVQA file."""
    if split not in SPLITS:
        raise typer.BadParameter(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    made = write_signs(out, track(range(first, first + images), description="drawing"), split, size)
    typer.echo(f"{images} images, {made} questions in {out}")


if __name__ == "__main__":
    typer.run(main)
