"""`atp eval` and `atp report` as the command line has them: options in, one summary out. No logic of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from atp.evals.harness.execute import Done

FormOption = Annotated[str, typer.Option("--format", help="jsonl; or parquet: a copy of the shard's records once it is done.")]
EngineOption = Annotated[str, typer.Option(help="local: this process; ray: a Ray cluster (RAY_ADDRESS), or this machine.")]
WorkersOption = Annotated[int | None, typer.Option(help="Models at once with --engine ray. [default: one a GPU, or a CPU]")]


def evaluate(
    model: Annotated[str, typer.Option(help="atp-mini-llava (shipped), a directory, or a hub id.")] = "atp-mini-llava",
    tasks: Annotated[
        str, typer.Option(help="Comma-separated, each with a mode where not the default: vqav2,gqa:llava.")
    ] = "vqav2",
    methods: Annotated[
        str, typer.Option("--methods", "--method", help="Comma-separated; the unpruned model is always asked too.")
    ] = "atp",
    budgets: Annotated[
        str, typer.Option("--budgets", "--budget", help="Shares of the unpruned FLOPs; 1.0 is the unpruned model.")
    ] = "1.0,0.6",
    plan: Annotated[list[str] | None, typer.Option(help="YAML or JSON file of a plan to ask as well; repeatable.")] = None,
    calibration: Annotated[
        list[str] | None, typer.Option(help="Of `atp fit-counts` or `atp calibrate`, or adaptive, to ask as well; repeatable.")
    ] = None,
    corruptions: Annotated[str, typer.Option(help="Names, groups, severities: common:3,typing:2,fog:1-3.")] = "",
    data: Annotated[str, typer.Option(help="Folder of the official files. [default: draws scenes]")] = "",
    split: Annotated[str, typer.Option(help="Of the official files.")] = "val",
    scenes: Annotated[int, typer.Option(help="Scenes to draw where no --data is given.")] = 100,
    limit: Annotated[int | None, typer.Option(help="Items of each task, drawn by their keys. [default: all]")] = None,
    shard: Annotated[str, typer.Option(help="i/n: this process asks the i-th of n parts.")] = "1/1",
    out: Annotated[Path, typer.Option(help="Folder for the records; the same command goes on after a kill.")] = Path("out/eval"),
    seed: Annotated[int, typer.Option(help="Of random pruning and of the corruptions.")] = 0,
    batch: Annotated[int, typer.Option(help="Most items of a batch.")] = 20,
    prompt: Annotated[str, typer.Option(help="task, plain, or auto: plain for shipped models.")] = "auto",
    max_new_tokens: Annotated[int | None, typer.Option(help="Cap on the task's own longest answer.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights. [default: float32 on a CPU]")] = None,
    device: Annotated[str | None, typer.Option(help="E.g. cpu or cuda:0. [default: a GPU if there is one]")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at bad rows, doubled ids, absent images; else counted.")] = False,
    form: FormOption = "jsonl",
    engine: EngineOption = "local",
    workers: WorkersOption = None,
) -> None:
    """Ask a model every item of some tasks under every method, budget and corruption; resumable, one record an answer."""
    from atp.evals.harness import settings as read
    from atp.evals.harness.execute import run
    from atp.evals.harness.scale import chosen

    number, count = read.shard(shard)
    lists = (read.words(tasks), read.words(methods), read.budgets(budgets), tuple(plan or ()), read.corruptions(corruptions))
    files: tuple[Any, ...] = (data, scenes, split, limit)
    how: tuple[Any, ...] = (seed, batch, count, prompt, max_new_tokens, dtype, device)
    asked = replace(read.Settings(model, *lists, *files, *how), strict=strict, calibrations=tuple(calibration or ()))
    with _bar() as step:
        done = run(asked, number, out, step, chosen(engine, workers), form)
    Console().print(Text("\n".join(_told(done, out))), soft_wrap=True)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `atp eval` wrote; shards are merged.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report. [default: the first of the folders]")] = None,
) -> None:
    """Make tables, Pareto plots and one self-contained page from the records of `atp eval`."""
    from atp.evals.harness.report import write

    text, page = write(folders, out or folders[0])
    typer.echo(text)
    Console().print(Text(f"open {page}"), soft_wrap=True)


def _told(done: Done, out: Path) -> Iterator[str]:
    """Yield the lines of the summary."""
    for name, problems in done.problems.items():
        yield f"{name}: {problems}"
    for name, cells in done.refused.items():
        for cell in cells:
            yield f"{name}: {cell.label} left out: {cell.refused}"
    if done.dropped:
        yield f"dropped a cut-off last line of {done.dropped} bytes; its batch was asked again"
    if done.nan:
        yield f"{done.nan} answers had NaN logits and count as empty"
    yield f"{done.before + done.made} records in {done.file} ({done.made} new); next: atp report {out}"


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int, bool], None]]:
    """A bar on stderr with the time left, estimated from answers of this process only."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("loading the model", total=None)
        known, begun = 0, False

        def step(words: str, came: int, total: int, old: bool) -> None:
            nonlocal known, begun
            known += came
            if begun:
                progress.update(task, description=words, advance=came)
            elif not old:
                begun = True
                progress.reset(task, description=words, total=total, completed=known)

        yield step
