"""How long runs of `atp eval` will take on this machine: a batch of each task is asked, and answers that are there are left out.

Seconds are those of the processor, so that the estimate for idle cores is right on busy ones too.
`python runs/estimate.py --model M --data D --methods A,B --budgets 0.6,0.4 --part FOLDER:TASKS:LIMIT`, see peers.sh.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from atp.errors import AtpError
from atp.evals.harness import execute, records
from atp.evals.harness import settings as read

ASKED = 3  # settings that a batch is asked of: the unpruned one, one in the middle, the last


def main(
    model: Annotated[list[str], typer.Option(help="repeatable")],
    part: Annotated[list[str], typer.Option(help="folder of a run, its tasks and its limit: out/questions:vqav2,gqa:150")],
    data: Annotated[str, typer.Option(help="folder of official files")],
    methods: Annotated[str, typer.Option()] = "atp",
    budgets: Annotated[str, typer.Option()] = "1.0,0.6",
    split: Annotated[str, typer.Option()] = "val",
    jobs: Annotated[int, typer.Option(help="processes that will share the work, on as many idle cores")] = 1,
) -> None:
    """Print items, settings, answers a second and minutes of every task, and the sum."""
    total = 0.0
    for one in part:
        folder, tasks, limit = one.rsplit(":", 2)
        for name in model:
            asked = read.Settings(name, read.words(tasks), read.words(methods), read.budgets(budgets))
            asked = read.Settings(**(vars(asked) | {"data": data, "split": split, "limit": int(limit)}))
            there = Path(folder) / Path(name).name
            done = {records.key(record) for record in records.once(records.files(there))} if there.is_dir() else set()
            with TemporaryDirectory() as empty:
                ready = execute.prepare(asked, Path(empty))
            total += sum(minutes(ready, task, done, jobs) for task in ready.tasks)
    typer.echo(f"about {total:.0f} minutes in all, with {jobs} processes on as many idle cores")


def minutes(ready: execute.Prepared, task: str, done: set[Any], jobs: int) -> float:
    """Time a task's batch of typical size, say what was found, return the minutes that are left."""
    batches = [at for at, work in enumerate(ready.work) if work.name == task]
    cells = ready.settings_of(batches[0])
    left = sum(key not in done for at in batches for cell in cells for key in ready.keys(at, cell))
    if not left:
        typer.echo(f"{ready.settings.model} {task}: all answers are there")
        return 0.0
    sizes = sorted((len(ready.work[number].numbers), number) for number in batches)
    at = next(at for n, (_, at) in enumerate(sizes) if 2 * sum(size for size, _ in sizes[: n + 1]) >= sum(s for s, _ in sizes))
    asked = [cells[number].label for number in sorted({0, len(cells) // 2, len(cells) - 1})][:ASKED]
    list(execute.answers(ready, at, asked[:1], execute.origin()))  # the first batch of a process is slower
    begin = time.process_time()
    list(execute.answers(ready, at, asked, execute.origin()))
    speed = len(asked) * len(ready.work[at].numbers) / (time.process_time() - begin) * torch.get_num_threads()
    spent = left / speed / jobs / 60
    items = len(ready.tasks[task].examples)
    typer.echo(
        f"{ready.settings.model} {task}: {items} items x {len(cells)} settings, {left} answers to come at {speed:.1f} a second: "
        f"{spent:.1f} minutes"
    )
    return spent


if __name__ == "__main__":
    try:
        typer.run(main)
    except AtpError as error:
        sys.exit(f"Error: {error}")
