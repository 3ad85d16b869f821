"""Tasks made ready to ask: which items, with which words and pictures, in which batches. Knows tasks, nothing of pruning."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from atp.asking import words
from atp.budget.cost import Workload
from atp.errors import BadInput
from atp.evals.harness.settings import Settings
from atp.evals.robustness.disturb import Disturbance
from atp.evals.tasks import Example, Task, open_task
from atp.evals.tasks.signs import write_signs
from atp.loading import PACKAGED, resolve
from atp.scenes.official import write

PLAIN_QUESTIONS = {"coco": "Describe the image.", "chair": "Describe the image."}
"""What the shipped models were taught to caption at."""
OPTIONS: dict[str, dict[str, Any]] = {"coco": {"corpus_df": True}}
"""CIDEr from document frequencies of the whole file, so that an item's score does not depend on the others asked."""
ACROSS = {"gqa": ("consistency",)}
"""Metrics of an item that depend on answers to other items; the report counts them, a record cannot."""
MEASURED = 1000  # true answers whose length is looked at: ours


def data_place(settings: Settings, out: Path) -> Path:
    """Return where the official files lie or will: the folder that is named, or one of `out` named by what is drawn into it."""
    if settings.data:
        return Path(settings.data)
    return out / f"data-{settings.split}-{settings.scenes}{'-signs' * _signs(settings)}"


def _signs(settings: Settings) -> bool:
    return any(task.partition(":")[0] == "textvqa" for task in settings.tasks)


def data_folder(settings: Settings, out: Path) -> Path:
    """Return the folder with the official files, drawing scenes into it where none is named.

    Raises:
        BadInput: they cannot be drawn, e.g. because the disk is full.
    """
    folder = data_place(settings, out)
    if not settings.data and not folder.is_dir():
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            write(made, range(settings.scenes), settings.split)
            if _signs(settings):
                write_signs(made, range(settings.scenes), settings.split)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            raise BadInput(f"cannot draw scenes into {str(out)!r}: {error.strerror}; free some space, then run again") from None
        try:
            made.rename(folder)
        except OSError:  # another shard was first
            shutil.rmtree(made)
    return folder


def plain(settings: Settings) -> bool:
    """Whether questions are asked as they are."""
    shipped = settings.prompt == "auto" and Path(resolve(settings.model)).parent == PACKAGED
    return shipped or settings.prompt == "plain"


def open_all(settings: Settings, folder: Path, bare: bool) -> dict[str, Task]:
    """Open every task and keep the items that are asked.

    Args:
        settings: names the tasks.
        folder: with the official files.
        bare: from `plain`.
    """
    tasks = {}
    for asked in settings.tasks:
        name, _, mode = asked.partition(":")
        options = dict(OPTIONS.get(name, {}))
        if bare and name in PLAIN_QUESTIONS:
            options["question"] = PLAIN_QUESTIONS[name]
        task = open_task(name, folder, split=settings.split, mode=mode, strict=settings.strict, **options)
        tasks[asked] = part(task, drawn(one_an_image(task.examples) if settings.singly else task.examples, settings.limit))
    return tasks


def drawn(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """Keep `limit` examples, those with the smallest hash of their key, in their order: a larger limit asks the same and more."""
    if limit is None or limit >= len(examples):
        return list(examples)
    by_hash = sorted(range(len(examples)), key=lambda n: hashlib.sha256(examples[n].key.encode()).digest())
    return [examples[n] for n in sorted(by_hash[:limit])]


def one_an_image(examples: Sequence[Example]) -> list[Example]:
    """Keep of each image the example with the smallest hash of its key."""
    best: dict[str, tuple[bytes, int]] = {}
    for number, example in enumerate(examples):
        mark = (hashlib.sha256(example.key.encode()).digest(), number)
        best[example.group] = min(best.get(example.group, mark), mark)
    return [examples[number] for number in sorted(number for _, number in best.values())]


def part(task: Task, examples: Sequence[Example]) -> Task:
    """Return the task with some of its examples."""
    smaller = copy.copy(task)
    smaller.examples = tuple(examples)
    return smaller


def digest(task: Task) -> str:
    """Return what two runs must share to be asked the same: keys, questions and true answers."""
    text = "\x1e".join("\x1f".join((e.key, e.question, *e.references)) for e in task.examples)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ask(task: Task, example: Example, disturbance: Disturbance | None, bare: bool) -> str:
    """Return what the model is asked."""
    text = example.question if disturbance is None else disturbance.question(example.question, example.key)
    return text if bare else task.prompt.format(question=text)


def lengths(processor: Any, texts: Sequence[str]) -> list[int]:
    """Return tokens of each prompt beside the image."""
    return [words(processor, text) for text in texts]


def batches(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Group item numbers of equal length, shortest first, `most` at a time.

    Example:
        >>> batches([5, 4, 5, 5], 2)
        [[1], [0, 2], [3]]
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, size in enumerate(sizes):
        by_length[size].append(number)
    groups = [by_length[size] for size in sorted(by_length)]
    return [group[start : start + most] for group in groups for start in range(0, len(group), most)]


def workload(task: Task, processor: Any, sizes: Sequence[int], images: int) -> Workload:
    """Describe the task's mean prompt and true answer, for which plans are solved.

    Args:
        task: whose first true answers are measured.
        processor: of the model.
        sizes: from `lengths`.
        images: that the tower sees for one picture.
    """
    told = [example.answer for example in task.examples[:MEASURED] if example.answer]
    spoken = [len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in told]
    answer = round(sum(spoken) / len(spoken)) + 1 if spoken else 3  # and the token that ends it
    return Workload(images=images, text=round(sum(sizes) / len(sizes)), answer=answer)


@lru_cache(maxsize=128)
def picture(path: Path, key: str, disturbance: Disturbance | None) -> Image.Image:
    """Return an image, disturbed the same way for whoever asks about it.

    Raises:
        BadInput: the file is no readable image.
    """
    try:
        with Image.open(path) as found:
            image = found.convert("RGB")
    except OSError as error:
        raise BadInput(f"{path}: not a readable image ({error}); put it there again, then run the same command") from None
    return image if disturbance is None else disturbance.picture(image, key)


def worth(task: Task, examples: Sequence[Example], said: Sequence[str]) -> list[dict[str, float]]:
    """Score a batch: for each item its value in every metric that the item alone decides, 0..1 (CIDEr 0..10)."""
    rated = part(task, examples).rate(said).items
    kept = {name: values for name, values in rated.items() if name not in ACROSS.get(task.name, ())}
    return [{name: float(v[n]) for name, v in kept.items() if not math.isnan(v[n])} for n in range(len(said))]
