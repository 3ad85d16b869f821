"""`python -m atp.scenes OUT --images 100`: write scenes in the official schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from atp.scenes.official import write
from atp.scenes.world import SPLITS


def main(
    out: Annotated[Path, typer.Argument(help="folder to write into")],
    images: Annotated[int, typer.Option(min=1, help="how many scenes")] = 100,
    split: Annotated[str, typer.Option(help=f"one of {', '.join(SPLITS)}")] = "val",
    first: Annotated[int, typer.Option(min=0, help="first scene seed")] = 0,
    size: Annotated[int, typer.Option(min=32, max=2048, help="image side in pixels")] = 224,
) -> None:
    """Write scenes as VQAv2, GQA and COCO files."""
    if split not in SPLITS:
        raise typer.BadParameter(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    made = write(out, track(range(first, first + images), description="drawing"), split, size)
    typer.echo(f"{made['images']} images, {made['questions']} questions, {made['objects']} objects in {out}")


if __name__ == "__main__":
    typer.run(main)
