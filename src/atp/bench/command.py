"""`atp bench` as the command line has it: options in, tables out. No logic of its own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def bench(
    model: Annotated[str | None, typer.Option(help="atp-mini-llava (shipped), a directory, or a hub id.")] = None,
    arch: Annotated[str | None, typer.Option(help="Or a true size with random weights, e.g. smolvlm-256m.")] = None,
    method: Annotated[str, typer.Option(help="Comma-separated; `resize` to the same FLOPs may stand beside.")] = "atp",
    budget: Annotated[str, typer.Option(help="Shares of the unpruned FLOPs, comma-separated.")] = "0.6",
    batch: Annotated[str, typer.Option(help="Prompts of a batch, comma-separated: 1,4,16.")] = "1",
    answer_tokens: Annotated[str, typer.Option(help="Length of every answer, comma-separated: 1,16,128.")] = "8",
    device: Annotated[str, typer.Option(help="Comma-separated: cpu,cuda:0. [default: a GPU if there is one]")] = "",
    dtype: Annotated[str | None, typer.Option(help="bf16, fp32, ... [default: bf16 for an --arch, else as `atp run`]")] = None,
    rounds: Annotated[int, typer.Option(help="How often each side is timed, all in turn.")] = 5,
    warmup: Annotated[int, typer.Option(help="How often each side runs before that.")] = 1,
    text_tokens: Annotated[int, typer.Option(help="Words of a prompt, for an --arch.")] = 32,
    tiles: Annotated[
        int | None, typer.Option(help="Images of the tower in a prompt, for an --arch. [default: a photo's]")
    ] = None,
    image: Annotated[str | None, typer.Option(help="File, for a --model. [default: a drawn scene]")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the host. [default: torch's choice]")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and prompts.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and the plot.")] = Path("out/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Time a model whole and pruned, in turn, by part, next to what its FLOPs promise."""
    from atp.bench import settings as read
    from atp.bench.execute import bench as measure
    from atp.bench.execute import prepare, steps, write
    from atp.bench.table import lines

    wanted = read.Settings(
        model, arch, read.words("--method", method), read.shares("--budget", budget), read.numbers("--batch", batch, "1,4"),
        read.numbers("--answer-tokens", answer_tokens, "1,16"), read.words("--device", device) if device else ("",),
        read.dtype(dtype), rounds, warmup, text_tokens, tiles, image, threads, seed,
    )  # fmt: skip
    prepare(out)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(f"loading {wanted.subject}", total=steps(wanted))
        begun = itertools.count()
        result = measure(
            wanted,
            lambda words: progress.update(task, description=words, completed=next(begun)),
            lambda made: write(made, out),
        )
    files = write(result, out)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    typer.echo("\n".join(lines(result)))
    typer.echo(f"written: {', '.join(map(str, files))}")
