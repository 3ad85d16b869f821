"""`atp bench` as the command line has it: options in, tables out. No logic of its own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from atp.bench.settings import Settings

CalibrationOption = Annotated[
    list[str] | None, typer.Option(help="Of `atp fit-counts` or `atp calibrate`, or adaptive, to time as well; repeatable.")
]


def bench(
    model: Annotated[str | None, typer.Option(help="atp-mini-llava (shipped), a directory, or a hub id.")] = None,
    arch: Annotated[str | None, typer.Option(help="Or a true size with random weights, e.g. smolvlm-256m.")] = None,
    method: Annotated[str, typer.Option("--method", "--methods", help="Comma-separated, see `atp methods`.")] = "atp",
    compare: Annotated[str, typer.Option(help="Methods that stand beside at the same FLOPs; none = nothing.")] = "resize",
    budget: Annotated[str, typer.Option("--budget", "--budgets", help="Shares of the unpruned FLOPs, comma-separated.")] = "0.6",
    calibration: CalibrationOption = None,
    batch: Annotated[str, typer.Option(help="Prompts of a batch, comma-separated: 1,4,16.")] = "1",
    answer_tokens: Annotated[str, typer.Option(help="Length of every answer, comma-separated: 1,16,128.")] = "8",
    device: Annotated[str, typer.Option(help="Comma-separated: cpu,cuda:0. [default: a GPU if there is one]")] = "",
    dtype: Annotated[str | None, typer.Option(help="bf16, fp32, ... [default: bf16 for an --arch, else as `atp run`]")] = None,
    rounds: Annotated[int, typer.Option(help="How often each side is timed, all in turn.")] = 5,
    warmup: Annotated[int, typer.Option(help="How often each side runs before that.")] = 1,
    text_tokens: Annotated[int, typer.Option(help="Words of a prompt, for an --arch.")] = 32,
    tiles: Annotated[int | None, typer.Option(help="Tower images of a prompt, for an --arch. [default: a photo's]")] = None,
    keep_tiles: Annotated[float | None, typer.Option(help="Share of the tiles, or windows, that reach the tower: 0.5.")] = None,
    depth: Annotated[float, typer.Option(help="Share of the layers of an --arch that are built, e.g. 0.5.")] = 1.0,
    quant: Annotated[str | None, typer.Option(help="int8 or int4: all sides once more, weights so by torchao.")] = None,
    round_to: Annotated[
        int | None, typer.Option(help="Once more with counts rounded down to rows in multiples of it, e.g. 32.")
    ] = None,
    keep_all: Annotated[bool, typer.Option(help="One more side that saves nothing: what the machinery costs.")] = False,
    kernels: Annotated[str, typer.Option(help="triton: pruned sides once more, attention rows by Triton on a GPU.")] = "torch",
    eager: Annotated[str, typer.Option(help="Methods once more with eager attention, as fastv's authors run it: fastv.")] = "",
    trace: Annotated[Path | None, typer.Option(help="Write a profile of one pruned prefill to this JSON file.")] = None,
    image: Annotated[str | None, typer.Option(help="File, for a --model. [default: a drawn scene]")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the host. [default: torch's choice]")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and prompts.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and the plot.")] = Path("out/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Time a model whole and pruned, in turn, by part, next to what its FLOPs promise."""
    from atp.bench import settings as read
    from atp.bench.execute import prepare, write
    from atp.bench.table import lines

    wanted = read.Settings(
        model, arch, read.words("--method", method), read.shares("--budget", budget), read.numbers("--batch", batch, "1,4"),
        read.numbers("--answer-tokens", answer_tokens, "1,16"), read.words("--device", device) if device else ("",),
        read.dtype(dtype), rounds, warmup, text_tokens, tiles, image, threads, seed, () if compare == "none" else
        read.words("--compare", compare), keep_all, round_to, quant, depth, keep_tiles, kernels, tuple(calibration or ()),
        read.words("--eager", eager) if eager else (),
    )  # fmt: skip
    prepare(out, trace)
    result = _measured(wanted, out, trace)
    files = write(result, out)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    typer.echo("\n".join(lines(result)))
    typer.echo(f"written: {', '.join(map(str, files))}")


def _measured(wanted: Settings, out: Path, trace: Path | None) -> dict[str, Any]:
    """Time everything, with a bar; what is done already lies in `out` at any moment."""
    from atp.bench.execute import bench as measure
    from atp.bench.execute import steps, write
    from atp.methods import spelled

    for name in (*wanted.methods, *wanted.compare):
        spelled(name)
    wanted.given()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(f"loading {wanted.subject}", total=steps(wanted))
        begun = itertools.count()
        return measure(
            wanted,
            lambda words: progress.update(task, description=words, completed=next(begun)),
            lambda made: write(made, out),
            trace,
        )
