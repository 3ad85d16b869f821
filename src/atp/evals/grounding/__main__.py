"""`python -m atp.evals.grounding`: measure where methods look, write `grounding.json` and `grounding.md`, print the latter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from atp.budget.cost import Workload
from atp.errors import AtpError
from atp.evals.grounding.markdown import markdown
from atp.evals.grounding.subjects import Subject, subjects
from atp.evals.grounding.table import Bench, build
from atp.evals.grounding.watching import prepared
from atp.evals.harness import header, settings
from atp.evals.harness.answering import Asker
from atp.evals.harness.asking import lengths, plain
from atp.evals.harness.cells import tiles
from atp.evals.tasks.base import Task
from atp.loading import DEFAULT, load, visible_box
from atp.scenes import SPLITS


def bench(model: Any, processor: Any, asked: list[Subject], bare: bool, batch: int = 20, seed: int = 0) -> Bench:
    """Make a model and its subjects ready.

    Args:
        model, processor: as `atp.load` gives them.
        asked: the subjects.
        bare: ask the questions as they are, without the words that LLaVA-1.5 puts behind them.
        batch: most questions of a batch.
        seed: of random choice.
    """
    texts = [one.question if bare else Task.prompt.format(question=one.question) for one in asked]
    sizes = lengths(processor, texts)
    work = Workload(images=tiles(model), text=round(sum(sizes) / len(sizes)), answer=2)
    boxes = [visible_box(processor, one.image.size) for one in asked]
    return Bench(Asker(model, processor), asked, prepared(processor, asked, texts, batch), boxes, work, seed)


def main(
    model: Annotated[str, typer.Option(help="shipped name, a directory, or a hub id")] = DEFAULT,
    budget: Annotated[float, typer.Option(help="share of the unpruned FLOPs")] = 0.4,
    methods: Annotated[str, typer.Option(help="comma-separated")] = "atp,fastv",
    items: Annotated[int, typer.Option(min=2, help="questions about visible objects")] = 400,
    split: Annotated[str, typer.Option(help=f"one of {', '.join(SPLITS)}")] = "val",
    out: Annotated[Path, typer.Option(help="folder for grounding.json and grounding.md")] = Path("out/grounding"),
    batch: Annotated[int, typer.Option(min=1)] = 20,
    seed: Annotated[int, typer.Option(help="of random choice")] = 0,
    device: Annotated[str | None, typer.Option(help="e.g. cpu or cuda:0")] = None,
) -> None:
    """Measure where methods look, and whether answers rest on it."""
    if split not in SPLITS:
        raise typer.BadParameter(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    asked = settings.Settings(model, ("vqav2",), settings.words(methods), (budget,))
    loaded, processor = load(model, device=device)
    ready = bench(loaded, processor, list(subjects(items, split)), plain(asked), batch, seed)
    with Console(stderr=True).status("") as status:
        ready.step = status.update
        told = build(ready, budget, asked.methods)
    scenes = len({subject.group for subject in ready.subjects})
    facts = {"model": model, "questions": items, "images": scenes, "split": split, "seed": seed, "workload": asdict(ready.work)}
    told = facts | told | {"versions": header.versions(), "commit": header.commit()}
    text = markdown(told)
    out.mkdir(parents=True, exist_ok=True)
    (out / "grounding.md").write_text(text + "\n", encoding="utf-8")
    (out / "grounding.json").write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    try:
        typer.run(main)
    except AtpError as error:
        Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        raise SystemExit(2) from None
