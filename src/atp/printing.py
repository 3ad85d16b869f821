"""What the command line prints: tables on stdout, bars and notices on stderr. Knows results, nothing of how they are made."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from atp.errors import BadInput

if TYPE_CHECKING:
    from atp.chat import Talk
    from atp.compare import Comparison


def print_comparison(result: Comparison) -> None:
    """Print both answers, and what they cost and kept, side by side."""
    console = Console()
    table = empty_table("", "all tokens", "pruned", "share")
    table.add_row("answer", result.answer_unpruned or "-", result.answer or "-", "")
    for part, whole in result.flops_unpruned.items():
        spent = result.flops[part]
        table.add_row(f"{part} FLOPs", flops(whole), flops(spent), f"{spent / whole:.1%}" if whole else "-")
    slow, fast = result.seconds["unpruned"], result.seconds["pruned"]
    table.add_row("time", f"{1000 * slow:.1f} ms", f"{1000 * fast:.1f} ms", f"{fast / slow:.1%}")
    for stack, layers in result.kept.items():
        for layer, kept in layers.items():
            started = result.started[stack]
            table.add_row(f"kept at {stack} layer {layer}", str(started), str(kept), f"{kept / max(1, started):.1%}")
    console.print(Text(f"{result.question}   [{result.method}]", style="bold"), soft_wrap=True)
    console.print(table)
    if result.plan.adaptive:
        console.print(Text("counts per input: a budget is met on average, a crowded picture takes more"), soft_wrap=True)


def print_talks(questions: list[str], found: dict[str, Talk], as_json: bool) -> None:
    """Print a chat, a column for each way to answer it."""
    if as_json:
        turns = {name: {"answers": one.answers, "flops": one.flops} for name, one in found.items()}
        typer.echo(json.dumps({"questions": questions, "talks": turns}, ensure_ascii=False, allow_nan=False))
        return
    table = empty_table("question", *found)
    for turn, question in enumerate(questions):
        table.add_row(question, *(f"{one.answers[turn] or '-'}  [{flops(one.flops[turn])}]" for one in found.values()))
    Console().print(table)
    Console().print(Text("in brackets: counted FLOPs of the turn, from pixels or on the cache"), soft_wrap=True)


def flops(value: float) -> str:
    """Write a number of FLOPs, e.g. "1.5 G"."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def empty_table(*columns: str) -> Table:
    """Return a table without lines; shares and FLOPs stand on the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in ("share", "FLOPs") else "left", overflow="fold")
    return table


def save(picture: Any, target: str) -> None:
    """Write a picture to a file.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        picture.save(target)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot write the picture {target!r} ({error}); expected a writable path such as out.png") from None


@contextlib.contextmanager
def bar(steps: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr that vanishes when done; calling its function begins the next of `steps` steps."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=steps)
        begun = False

        def step(words: str) -> None:
            nonlocal begun
            progress.update(task, description=words, advance=1 if begun else 0)
            begun = True

        yield step


def notice(message: Warning | str, *place: Any, **more: Any) -> None:
    """Show a warning as one line, without the place in the code."""
    Console(stderr=True).print(Text(f"note: {' '.join(str(message).split())}", style="yellow"), soft_wrap=True)
