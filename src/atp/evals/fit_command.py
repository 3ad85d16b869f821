"""`atp fit-counts` as the command line has it: options in, a calibration out. No logic of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from atp.budget.amount import check_share
from atp.errors import BadInput
from atp.refusing import writable

if TYPE_CHECKING:
    from PIL import Image

FIRST = 900_000_000
"""Seed of the first scene that is drawn: neither trained on nor asked in any table."""


def fit_counts(
    model: Annotated[str, typer.Option(help="A shipped model (see `atp models`), a directory, or a hub id.")] = "atp-mini-llava",
    budgets: Annotated[str, typer.Option("--budgets", "--budget", help="Shares of the unpruned FLOPs.")] = "0.6,0.4,0.25",
    data: Annotated[str, typer.Option(help="Folder of official files. [default: draws scenes]")] = "",
    task: Annotated[str, typer.Option(help="Whose questions, for --data.")] = "vqav2",
    split: Annotated[str, typer.Option(help="Of the official files.")] = "train",
    items: Annotated[int, typer.Option(help="Questions to ask; no true answers are needed.")] = 240,
    method: Annotated[str, typer.Option(help="See `atp methods`.")] = "atp",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Most questions of a forward. [default: 8, or 1 without masks]")
    ] = None,
    out: Annotated[Path, typer.Option(help="File for the calibration.")] = Path("adaptive_calibration.json"),
    dtype: Annotated[str | None, typer.Option(help="Of the weights. [default: float32 on a CPU]")] = None,
    device: Annotated[str | None, typer.Option(help="E.g. cpu or cuda:0. [default: a GPU if there is one]")] = None,
) -> None:
    """Fit counts per input: thresholds that spend each budget on average, so that plain pictures keep less than crowded ones."""
    from atp.evals.harness import settings as read
    from atp.fitting import FEWEST
    from atp.fitting import fit_counts as fit
    from atp.loading import check_kind, check_model_type, load, resolve
    from atp.methods import spelled

    for share in read.budgets(budgets):
        check_share("budget", share, positive=True)
    shares = [share for share in read.budgets(budgets) if share < 1]
    if not shares:
        raise BadInput(f"--budgets has no share below 1, got {budgets!r}; e.g. --budgets 0.6,0.4")
    spelled(method)
    if items < FEWEST:
        raise BadInput(f"--items is at least {FEWEST}, got {items}; e.g. --items 240")
    writable(out, "calibration", "adaptive_calibration.json")
    check_kind(dtype, device)
    check_model_type(resolve(model))
    images, questions, told = asked(data, task, split, items)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        shown = progress.add_task("loading the model", total=None)
        loaded, processor = load(model, dtype=dtype, device=device)

        def step(budget: float, runs: int, share: float) -> None:
            progress.update(shown, description=f"budget {budget:g}: all inputs ran {runs} times, {share:.3f} of the FLOPs")

        found = fit(loaded, processor, images, questions, shares, method=method, batch=batch, note=told, step=step)
    part = out.with_name(f"{out.name}.part")
    found.save(part)
    part.replace(out)
    use = f"use it: atp.prune(model, budget={shares[0]:g}, calibration={str(out)!r})"
    lines = [", ".join(f"{step.site} {step.keep:.0%}" for step in plan.steps) for plan in found.plans]
    kept = [f"{plan.budget:g}: {line} on average" for plan, line in zip(found.plans, lines, strict=True)]
    Console().print(Text("\n".join([*kept, f"written: {out}; {use}"])), soft_wrap=True)


def asked(data: str, task: str, split: str, items: int) -> tuple[list[Image.Image], list[str], str]:
    """Return images and questions of official files, as many images as there are, or of scenes, and what they are."""
    from atp.evals.items import scene_items
    from atp.evals.tasks import open_task
    from atp.fitting import FEWEST

    if data:
        of_image: Counter[str] = Counter()
        ranked = []
        for one in open_task(task, data, split=split).examples:
            ranked.append((of_image[one.group], one))
            of_image[one.group] += 1
        chosen = [one for _, one in sorted(ranked, key=lambda pair: pair[0])][:items]  # first every image once
        if len(chosen) < FEWEST:
            raise BadInput(
                f"{task} in {data!r} has {len(chosen)} questions, expected at least {FEWEST}; choose another folder or split"
            )
        told = f"{len(chosen)} questions of {task}, split {split}"
        return [one.image for one in chosen], [one.question for one in chosen], told
    drawn = list(scene_items(items, "train", FIRST, per_scene=1))  # thresholds of the tower want many images
    told = f"{items} questions about generated scenes, seeds from {FIRST}"
    return [one.image for one in drawn], [one.question for one in drawn], told
