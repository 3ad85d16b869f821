"""The loop of `atp eval`: every setting answers every batch, each answer becomes a record. Knows no method and no family.

Within a batch the settings take turns, so they meet the same pictures and a slow minute of the machine slows them all.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp.budget.calibration import fingerprint
from atp.budget.cost import Workload
from atp.calibrations import read_all
from atp.errors import BadInput
from atp.evals.harness import asking, header, parquet, records
from atp.evals.harness.answering import Asker, Said
from atp.evals.harness.cells import Cell, all_cells, tiles
from atp.evals.harness.settings import Settings
from atp.evals.robustness.disturb import Disturbance
from atp.evals.tasks import Example, Task
from atp.loading import build_inputs, load
from atp.plan import Plan

CLEAN = "none"
Step = Callable[[str, int, int, bool], None]
"""Told what runs, answers that came, answers in all, and whether they were there before."""


@dataclass(frozen=True)
class Done:
    """What a call did.

    Attributes:
        file: of the records.
        before, made: records that were there, records added.
        dropped: bytes of a last line that was cut off.
        nan: answers with a NaN logit among those added.
        refused: settings that could not be, with the reason, by task.
        problems: what was wrong in the files, by task.
    """

    file: Path
    before: int
    made: int
    dropped: int
    nan: int
    refused: dict[str, list[Cell]]
    problems: dict[str, str]


@dataclass(frozen=True)
class Work:
    """One batch to ask: the items of a task under a disturbance, by number."""

    name: str
    task: Task
    disturbance: Disturbance | None
    numbers: tuple[int, ...]

    @property
    def disturbed(self) -> str:
        """What records call the disturbance."""
        return CLEAN if self.disturbance is None else str(self.disturbance)

    @property
    def examples(self) -> list[Example]:
        """The items."""
        return [self.task.examples[number] for number in self.numbers]


@dataclass(frozen=True)
class Prepared:
    """Model, tasks and settings, ready to ask; `workloads` are what the plans of each task are solved for."""

    settings: Settings
    asker: Asker
    bare: bool
    tasks: dict[str, Task]
    workloads: dict[str, Workload]
    cells: dict[str, list[Cell]]
    work: list[Work]

    def settings_of(self, at: int) -> list[Cell]:
        """Return the settings that a batch is asked of."""
        return [cell for cell in self.cells[self.work[at].name] if cell.plan is not None]

    def keys(self, at: int, cell: Cell) -> list[records.Key]:
        """Return the keys of the records of a batch and a setting."""
        work = self.work[at]
        return [(work.name, work.disturbed, cell.method, cell.budget, example.key) for example in work.examples]

    def missing(self, at: int, done: Container[records.Key]) -> list[str]:
        """Return the names of the settings that have not answered all of a batch."""
        return [cell.label for cell in self.settings_of(at) if not all(key in done for key in self.keys(at, cell))]

    def words(self, at: int, label: str) -> str:
        """Say what is asked, for a progress bar."""
        return f"{self.work[at].name} {self.work[at].disturbed} {label}"


Left = tuple[int, list[str]]
"""A batch by number, with the settings that it is still to be asked of."""
Answered = tuple[int, str, list[dict[str, Any]]]
"""A batch by number, a setting, and the records of both."""
Engine = Callable[[Prepared, Sequence[Left], Path], Iterator[Answered]]
"""Answers batches in any order; told the folder of the run."""


def prepare(settings: Settings, out: Path) -> Prepared:
    """Load the model, open the tasks, find the plans and deal out batches.

    Raises:
        AtpError: what model, files, plans or settings are refused for.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make the folder {str(out)!r}: {error.strerror}; choose another one with --out") from None
    for plan in settings.plans:
        Plan.load(plan)  # a file that is not there is said at once
    given = read_all(settings.calibrations, settings.model, settings.budgets, settings.methods)
    model, processor = load(settings.model, dtype=settings.dtype, device=settings.device)
    for one in given:
        one.fits(model)
    bare = asking.plain(settings)
    tasks = asking.open_all(settings, asking.data_folder(settings, out), bare)
    images = tiles(model)
    workloads, cells, work = {}, {}, []
    for name, task in tasks.items():
        batches: list[list[int]] = []
        for disturbance in (None, *settings.disturbances):
            if disturbance is None or not disturbance.of_picture:  # then the prompts have other lengths
                texts = [asking.ask(task, example, disturbance, bare) for example in task.examples]
                sizes = asking.lengths(processor, texts)
                batches = asking.batches(sizes, settings.batch)
            if disturbance is None:
                workloads[name] = asking.workload(task, processor, sizes, images)
                cells[name] = all_cells(model, processor, settings, workloads[name], given)
            work += [Work(name, task, disturbance, tuple(numbers)) for numbers in batches]
    return Prepared(settings, Asker(model, processor), bare, tasks, workloads, cells, work)


def common(ready: Prepared) -> dict[str, Any]:
    """Return the header: what two legs or shards of one run must share."""
    model = ready.asker.model
    digest = hashlib.sha256(repr(fingerprint(model.named_parameters())).encode()).hexdigest()
    return {
        "settings": ready.settings.to_dict(),
        "weights": f"{digest[:16]} as {model.dtype}",
        "items": {name: {"count": len(t.examples), "digest": asking.digest(t)} for name, t in ready.tasks.items()},
        "solved_for": {name: solved_for(workload) for name, workload in ready.workloads.items()},
        "cells": {name: {cell.label: cell.to_dict() for cell in cells} for name, cells in ready.cells.items()},
    }


def solved_for(workload: Workload) -> dict[str, int]:
    """Return what a record says of the prompts and answers that plans are solved for."""
    return {name: value for name, value in dataclasses.asdict(workload).items() if value is not None}


def run(settings: Settings, number: int, out: Path, step: Step, engine: Engine | None = None, form: str = "jsonl") -> Done:
    """Ask what is not yet answered in this shard.

    Args:
        settings: of the whole run.
        number: of the shard, from 0.
        out: folder of the records; may hold those of a run that was killed.
        step: told after every setting of every batch.
        engine: that answers; None = this process.
        form: of `records.FORMATS`; `parquet` adds a copy in that format when the shard is done.

    Raises:
        BadInput: the folder holds another run (the differences are named); a full disk; whatever `prepare` refuses.
    """
    if form not in records.FORMATS:
        raise BadInput(f"unknown format {form!r}; choose one of {', '.join(records.FORMATS)}")
    if form == "parquet":
        parquet.check()
    ready = prepare(settings, out)
    header.agree(out, common(ready))
    mine = [at for at in range(len(ready.work)) if at % settings.shards == number]
    total = sum(len(ready.work[at].numbers) * len(ready.settings_of(at)) for at in mine)
    made = nan = 0
    with records.Journal(records.shard_file(out, number, settings.shards)) as journal:
        before = len(journal.done)
        left = []
        for at in mine:
            missing = ready.missing(at, journal.done)
            for cell in ready.settings_of(at):
                if cell.label not in missing:
                    step(ready.words(at, cell.label), len(ready.work[at].numbers), total, True)
            if missing:
                left.append((at, missing))
        for at, label, answered in (engine or here)(ready, left, out):
            fresh = [record for record in answered if records.key(record) not in journal.done]
            journal.add(fresh)
            made += len(fresh)
            nan += sum(record["nan"] > 0 for record in fresh)
            step(ready.words(at, label), len(ready.work[at].numbers), total, False)
    path = journal.path
    if form == "parquet":
        path = parquet.write(path.with_suffix(".parquet"), iter(records.read(path)[0]))
    refused = {name: [cell for cell in cells if cell.plan is None] for name, cells in ready.cells.items()}
    problems = {name: str(task.problems) for name, task in ready.tasks.items() if task.problems.found}
    return Done(path, before, made, journal.dropped, nan, refused, problems)


def here(ready: Prepared, left: Sequence[Left], out: Path) -> Iterator[Answered]:
    """Answer in this process, in order."""
    source = origin()
    for at, missing in left:
        for label, made in answers(ready, at, missing, source):
            yield at, label, made


def origin() -> dict[str, Any]:
    """Return what a record says of the software that made it."""
    return {"versions": header.versions(), "commit": header.commit()}


def answers(
    ready: Prepared, at: int, missing: Sequence[str], source: Mapping[str, Any]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Ask a batch of the settings that have not answered all of it; yield their names with a record for each item.

    Args:
        ready: from `prepare`.
        at: number of the batch in `ready.work`.
        missing: names of the settings.
        source: from `origin`.
    """
    work = ready.work[at]
    inputs = ready.asker.placed(_inputs(ready, work))
    longest = min(work.task.max_new_tokens, ready.settings.longest or work.task.max_new_tokens)
    for cell in ready.settings_of(at):
        if cell.label in missing and cell.plan is not None:
            yield cell.label, _records(ready, work, cell, ready.asker.answer(inputs, cell.plan, longest), source)


def _inputs(ready: Prepared, work: Work) -> dict[str, Any]:
    pictures, texts = [], []
    for example in work.examples:
        if example.path is None:
            raise BadInput(f"item {example.key!r} of task {work.name!r} has no image")
        pictures.append(asking.picture(example.path, example.group, work.disturbance))
        texts.append(asking.ask(work.task, example, work.disturbance, ready.bare))
    return build_inputs(ready.asker.processor, pictures, texts)


def _records(ready: Prepared, work: Work, cell: Cell, said: Said, source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record for each item of the batch; `batch` is what the whole batch cost."""
    batch = {
        "size": len(said.answers),
        "steps": said.steps,
        "seconds": said.seconds,
        "flops": said.flops,
        "flops_unpruned": said.flops_unpruned,
        "equivalent_tokens": said.tokens,
    }
    out = []
    for example, answer, nan, scores in zip(work.examples, said.answers, said.nan, _scores(work, said.answers), strict=True):
        names = {
            "task": work.name,
            "disturbance": work.disturbed,
            "method": cell.method,
            "budget": cell.budget,
            "item": example.key,
        }
        told = {"answer": answer, "score": scores.get(work.task.primary), "scores": scores, "nan": nan}
        place = {"image": example.group, "kind": example.kind, "plan": cell.plan_id, "seed": ready.settings.seed}
        place["solved_for"] = solved_for(ready.workloads[work.name])
        out.append({"model": ready.settings.model, **names, **told, **place, "batch": batch, **source})
    return out


def _scores(work: Work, answers: Sequence[str]) -> list[dict[str, float]]:
    """Score a batch; nothing where the truth is withheld, or another question was asked than the one that it answers."""
    known = any(example.references for example in work.task.examples)
    if not known or (work.disturbance is not None and not work.disturbance.keeps_answer):
        return [{} for _ in answers]
    return asking.worth(work.task, work.examples, answers)
