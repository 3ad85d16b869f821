"""`atp train-gate` as the command line has it: options in, one file and a few lines out. No logic of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from atp.refusing import writable

if TYPE_CHECKING:
    from atp.gate.settings import Settings
    from atp.gate.training import Done


def train_gate(
    model: Annotated[str, typer.Option(help="atp-mini-llava (shipped), a directory, or a hub id.")] = "atp-mini-llava",
    out: Annotated[Path, typer.Option(help="The file; the same command goes on after a kill.")] = Path("gate.safetensors"),
    kind: Annotated[str, typer.Option(help="gate, or lvpruning.")] = "gate",
    minutes: Annotated[float, typer.Option(help="Of training.")] = 8.0,
    steps: Annotated[int | None, typer.Option(help="Steps instead of minutes.")] = None,
    budget: Annotated[
        str, typer.Option("--budget", "--budgets", help="Shares of the unpruned FLOPs to train for, in turn.")
    ] = "0.6,0.4",
    sites: Annotated[
        str, typer.Option(help="vision:2,language:4. [default: those of ATP's plans in the language model, or of the paper]")
    ] = "",
    data: Annotated[str, typer.Option(help="Folder of official files. [default: draws scenes]")] = "",
    task: Annotated[str, typer.Option(help="Whose questions, for --data.")] = "vqav2",
    split: Annotated[str, typer.Option(help="Of the official files.")] = "train",
    batch: Annotated[int, typer.Option(help="Questions of a step.")] = 16,
    answer: Annotated[int, typer.Option(help="Tokens of the unpruned model's answer to learn from.")] = 2,
    rank: Annotated[int, typer.Option(help="Of the modules' projections; 0 = the largest in 0.5 % of the parameters.")] = 0,
    width: Annotated[int, typer.Option(help="Of the modules.")] = 32,
    rate: Annotated[float, typer.Option(help="Of learning, at its peak.")] = 5e-4,
    noise: Annotated[float, typer.Option(help="Of the scores, at the beginning.")] = 0.5,
    ratio: Annotated[float, typer.Option(help="Share after the first site, for lvpruning.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of questions, noise and first weights.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="Of the model's weights. [default: float32 on a CPU]")] = None,
    device: Annotated[str | None, typer.Option(help="E.g. cpu or cuda:0. [default: a GPU if there is one]")] = None,
) -> None:
    """Train a gate beside a frozen model, from the answers of the unpruned one; use it with method='gate', weights=FILE."""
    from atp.gate import settings as read
    from atp.gate.training import train

    asked = read.Settings(
        model, out, kind, minutes, steps, read.budgets(budget), read.sites(sites), data, task, split, batch, answer, rank, width,
        rate, noise, ratio, seed, dtype, device,
    )  # fmt: skip
    writable(out, "weights", "gate.safetensors", make=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as progress:
        shown = progress.add_task("reading the questions", total=1.0)
        done = train(asked, lambda words, share: progress.update(shown, description=words, completed=min(1.0, share)))
    Console().print(Text("\n".join(lines(done, asked))), soft_wrap=True)


def lines(done: Done, settings: Settings) -> list[str]:
    """Return what is printed."""
    share, sites = done.header.notes["share of the model's parameters"], ", ".join(done.header.sites)
    went = f", going on from step {done.resumed}" if done.resumed else ""
    told = [f"{done.steps} steps in {done.seconds / 60:.1f} minutes{went}; {share:.2%} of the model's parameters at {sites}"]
    for plan, before in done.before.items():
        both = f"untrained {before:.4f}, trained {done.after[plan]:.4f}"
        told.append(f"{plan}: divergence from the unpruned answers on held-out questions, {both}")
    worse = [plan for plan, before in done.before.items() if done.after[plan] >= before]
    if worse:
        told.append(f"not worth using: no nearer to the unpruned answers than untrained at {', '.join(worse)}")
    return [
        *told,
        f"written: {settings.out}; use it: atp.prune(model, method={done.header.method!r}, weights={str(settings.out)!r})",
    ]
