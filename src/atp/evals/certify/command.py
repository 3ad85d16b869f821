"""`atp calibrate` as the command line has it: options in, a table and a certificate out. No logic of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atp.refusing import writable

if TYPE_CHECKING:
    from atp.evals.certify.execute import Outcome, Wanted

NONE_PASSED = 1
"""Exit code where nothing could be certified; 2 is for input that cannot be used."""


def calibrate(
    max_drop: Annotated[float, typer.Option(help="Most accuracy that may be lost, as a share: 0.01 is one point.")],
    model: Annotated[str, typer.Option(help="A shipped model, a directory, or a hub id.")] = "atp-mini-llava",
    confidence: Annotated[float, typer.Option(help="Probability with which the bound holds.")] = 0.95,
    task: Annotated[str, typer.Option(help="scenes (drawn), or with --data: gqa, pope, vqav2, textvqa.")] = "scenes",
    budgets: Annotated[
        str, typer.Option("--budgets", "--budget", help="Grid of shares of the FLOPs, tested from dear to cheap.")
    ] = "0.9,0.8,0.7,0.6,0.5",
    method: Annotated[str, typer.Option(help="See `atp methods`.")] = "atp",
    items: Annotated[int, typer.Option(help="To ask, one an image; set it before you see an answer.")] = 1000,
    data: Annotated[str, typer.Option(help="Folder of the official files. [default: draws scenes]")] = "",
    split: Annotated[str, typer.Option(help="Of the official files or the scenes.")] = "val",
    test: Annotated[
        str, typer.Option(help="auto, exact, betting or hoeffding-bentkus; set it before you see an answer.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
    batch: Annotated[int, typer.Option(help="Most items of a batch.")] = 20,
    records: Annotated[Path, typer.Option(help="Folder for the answers; the same command goes on after a kill.")] = Path(
        "out/calibrate"
    ),
    out: Annotated[Path, typer.Option(help="File for the certificate.")] = Path("certificate.json"),
    dtype: Annotated[str | None, typer.Option(help="Of the weights. [default: float32 on a CPU]")] = None,
    device: Annotated[str | None, typer.Option(help="E.g. cpu or cuda:0. [default: a GPU if there is one]")] = None,
) -> None:
    """Find the cheapest budget whose accuracy drop is bounded with confidence, and write a certificate of it."""
    from atp.evals.certify.execute import Wanted, certify
    from atp.evals.harness import settings as read
    from atp.evals.harness.command import _bar

    grid = read.budgets(budgets)
    wanted = Wanted(
        model, max_drop, confidence, task, grid, method, data, split, items, seed, test, batch, dtype, device
    )  # fmt: skip
    writable(out, "certificate", "certificate.json", make=True)
    with _bar() as step:
        found = certify(wanted, records, step)
    _show(found, wanted)
    if found.certificate is None:
        Console(stderr=True).print(Text(_why(found, wanted), style="red"), soft_wrap=True)
        raise typer.Exit(NONE_PASSED)
    found.certificate.save(out)
    Console().print(
        Text(f"{found.certificate.statement}\nwritten: {out}; use atp.prune(model, calibration={str(out)!r})"), soft_wrap=True
    )


def _show(found: Outcome, wanted: Wanted) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("budget", "FLOPs", "accuracy", "drop", "worse", "better", "p", ""):
        table.add_column(column, justify="right")
    for row in found.rows:
        p = "-" if row["p"] is None else f"{row['p']:.4f}"
        said = "certified" if row["passed"] else ("not tested" if row["p"] is None else "failed")
        numbers = (f"{row['budget']:g}", f"{row['flops_share']:.3f}", f"{100 * row['accuracy']:.2f}", f"{100 * row['drop']:+.2f}")
        table.add_row(*numbers, str(row["worse"]), str(row["better"]), p, said)
    console = Console()
    head = f"{wanted.method} on {found.items} items of {wanted.task}, unpruned {100 * found.accuracy:.2f}; test {wanted.tested}"
    console.print(Text(head, style="bold"), soft_wrap=True)
    console.print(table)


def _why(found: Outcome, wanted: Wanted) -> str:
    dearest = found.rows[0]
    bound = f"a drop of at most {wanted.max_drop:g} with confidence {wanted.confidence:g}"
    said = f"nothing can be certified: {bound} was not shown at budget {dearest['budget']:g} on {found.items} items"
    if found.needed is None:
        return (
            f"{said}, and with the observed drop of {dearest['drop']:+.4f} no number of items would show it; "
            "allow a larger --max-drop, or begin the --budgets higher"
        )
    return (
        f"{said}; with the observed drop of {dearest['drop']:+.4f} it would take about {found.needed}: run again with "
        f"--items {found.needed} and another --seed (or other data) and --records, since these answers have been seen"
    )
