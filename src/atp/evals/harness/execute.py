"""The loop of `atp eval`: every setting answers every batch, each answer becomes a record. Knows no method and no family.

Within a batch the settings take turns, so they meet the same pictures and a slow minute of the machine slows them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp.budget.calibration import fingerprint
from atp.errors import BadInput
from atp.evals.harness import asking, header, records
from atp.evals.harness.answering import Asker, Said
from atp.evals.harness.cells import Cell, all_cells, tiles
from atp.evals.harness.settings import Settings
from atp.evals.robustness.disturb import Disturbance
from atp.evals.tasks import Example, Task
from atp.loading import build_inputs, load

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
    """Model, tasks and settings, ready to ask."""

    settings: Settings
    asker: Asker
    bare: bool
    tasks: dict[str, Task]
    cells: dict[str, list[Cell]]
    work: list[Work]


def prepare(settings: Settings, out: Path) -> Prepared:
    """Load the model, open the tasks, find the plans and deal out batches.

    Raises:
        AtpError: what model, files, plans or settings are refused for.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make the folder {str(out)!r}: {error.strerror}; choose another one with --out") from None
    model, processor = load(settings.model, dtype=settings.dtype, device=settings.device)
    bare = asking.plain(settings)
    tasks = asking.open_all(settings, asking.data_folder(settings, out), bare)
    images = tiles(model)
    cells, work = {}, []
    for name, task in tasks.items():
        batches: list[list[int]] = []
        for disturbance in (None, *settings.disturbances):
            if disturbance is None or not disturbance.of_picture:  # then the prompts have other lengths
                texts = [asking.ask(task, example, disturbance, bare) for example in task.examples]
                sizes = asking.lengths(processor, texts)
                batches = asking.batches(sizes, settings.batch)
            if disturbance is None:
                cells[name] = all_cells(model, processor, settings, asking.workload(task, processor, sizes, images))
            work += [Work(name, task, disturbance, tuple(numbers)) for numbers in batches]
    return Prepared(settings, Asker(model, processor), bare, tasks, cells, work)


def common(ready: Prepared) -> dict[str, Any]:
    """Return the header: what two legs or shards of one run must share."""
    model = ready.asker.model
    digest = hashlib.sha256(repr(fingerprint(model.named_parameters())).encode()).hexdigest()
    return {
        "settings": ready.settings.to_dict(),
        "weights": f"{digest[:16]} as {model.dtype}",
        "items": {name: {"count": len(t.examples), "digest": asking.digest(t)} for name, t in ready.tasks.items()},
        "cells": {name: {cell.label: cell.to_dict() for cell in cells} for name, cells in ready.cells.items()},
    }


def run(settings: Settings, number: int, out: Path, step: Step) -> Done:
    """Ask what is not yet answered in this shard.

    Args:
        settings: of the whole run.
        number: of the shard, from 0.
        out: folder of the records; may hold those of a run that was killed.
        step: told after every setting of every batch.

    Raises:
        BadInput: the folder holds another run (the differences are named); a full disk; whatever `prepare` refuses.
    """
    ready = prepare(settings, out)
    header.agree(out, common(ready))
    mine = [work for at, work in enumerate(ready.work) if at % settings.shards == number]
    total = sum(len(work.numbers) * sum(c.plan is not None for c in ready.cells[work.name]) for work in mine)
    source = {"versions": header.versions(), "commit": header.commit()}
    made = nan = 0
    with records.Journal(records.shard_file(out, number, settings.shards)) as journal:
        before = len(journal.done)
        for work in mine:
            for cell, fresh in _answered(ready, work, journal, source):
                made += len(fresh)
                nan += sum(record["nan"] > 0 for record in fresh)
                step(f"{work.name} {work.disturbed} {cell.label}", len(work.numbers), total, not fresh)
        refused = {name: [cell for cell in cells if cell.plan is None] for name, cells in ready.cells.items()}
        problems = {name: str(task.problems) for name, task in ready.tasks.items() if task.problems.found}
        return Done(journal.path, before, made, journal.dropped, nan, refused, problems)


def _answered(
    ready: Prepared, work: Work, journal: records.Journal, source: Mapping[str, Any]
) -> Iterator[tuple[Cell, list[dict[str, Any]]]]:
    """Ask a batch of every setting that has not answered all of it; yield settings with their new records."""
    inputs = None
    for cell in ready.cells[work.name]:
        if cell.plan is None:
            continue
        keys = [(work.name, work.disturbed, cell.method, cell.budget, example.key) for example in work.examples]
        if all(name in journal.done for name in keys):
            yield cell, []
            continue
        if inputs is None:
            inputs = ready.asker.placed(_inputs(ready, work))
        longest = min(work.task.max_new_tokens, ready.settings.longest or work.task.max_new_tokens)
        said = ready.asker.answer(inputs, cell.plan, longest)
        made = _records(ready, work, cell, said, source)
        fresh = [record for name, record in zip(keys, made, strict=True) if name not in journal.done]
        journal.add(fresh)
        yield cell, fresh


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
        "seconds": said.seconds,
        "flops": said.flops,
        "flops_unpruned": said.flops_unpruned,
        "equivalent_tokens": said.tokens,
    }
    out = []
    for example, answer, nan, scores in zip(work.examples, said.answers, said.nan, _scores(work, said.answers), strict=True):
        names = dict(zip(records.KEY, (work.name, work.disturbed, cell.method, cell.budget, example.key), strict=True))
        told = {"answer": answer, "score": scores.get(work.task.primary), "scores": scores, "nan": nan}
        place = {"image": example.group, "kind": example.kind, "plan": cell.plan_id, "seed": ready.settings.seed}
        out.append({"model": ready.settings.model, **names, **told, **place, "batch": batch, **source})
    return out


def _scores(work: Work, answers: Sequence[str]) -> list[dict[str, float]]:
    """Score a batch; nothing where the truth is withheld, or another question was asked than the one that it answers."""
    known = any(example.references for example in work.task.examples)
    if not known or (work.disturbance is not None and not work.disturbance.keeps_answer):
        return [{} for _ in answers]
    return asking.worth(work.task, work.examples, answers)
