"""A task: examples to ask and one scoring function. Knows files through `Source`, nothing of models or pruning."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atp.errors import BadInput
from atp.evals.tasks.files import LEFT_OUT, Problems, Source
from atp.registry import Registry


class UnknownTask(BadInput):
    """No task of that name is registered."""


@dataclass(frozen=True)
class Example:
    """One question about one image.

    Attributes:
        key: unique in its task and stable: the official question or image id.
        path: of the image; None where answers made elsewhere are scored.
        question: without any model's prompt around it.
        references: true answers, the one that tables show first; empty where the truth is withheld (test splits).
        kind: for scores by kind.
        group: of the image; examples of one image are resampled together.
    """

    key: str
    path: Path | None
    question: str
    references: tuple[str, ...]
    kind: str
    group: str

    @property
    def answer(self) -> str:
        """First true answer, or an empty string."""
        return self.references[0] if self.references else ""

    @property
    def image(self) -> Image.Image:
        """RGB picture, read anew at each call.

        Raises:
            BadInput: no image, or one that cannot be read.
        """
        if self.path is None:
            raise BadInput(f"example {self.key!r} has no image: the task was opened with images=False; open it without that")
        try:
            with Image.open(self.path) as picture:
                return picture.convert("RGB")
        except OSError as error:
            raise BadInput(f"{self.path}: not a readable image ({error}); download it again") from None


@dataclass(frozen=True)
class Scores:
    """What answers are worth.

    Attributes:
        metrics: in points (shares x 100, CIDEr x 100); but `distribution` is GQA's chi-square / 100, `words` a mean length.
        items: value of each example, `[N]` in the order of the examples, NaN where a metric does not apply;
            `metrics[name] == 100 * nanmean(items[name])` for every name in both.
        tables: metric by kind, e.g. `{"answer_type": {"yes/no": 80.1}}`, in points.
        counts: `asked`, `unanswered`, `empty`, `unknown`, and what a task adds.
        mode: rules that were applied.
    """

    metrics: dict[str, float]
    items: dict[str, NDArray[np.float64]]
    tables: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    mode: str = ""


class Task(ABC):
    """Data and one scoring function.

    Attributes:
        primary: metric that stands for the task; its per-example values are in `Scores.items`.
        modes: names of the scoring rules in use in the field, the default first.
        prompt: around the question, as LLaVA-1.5 puts it; models with prompts of their own do without.
        max_new_tokens: enough for an answer.
        result_fields: of key and answer in the data set's own result files.
        integer_keys: whether keys are numbers there.
    """

    name: ClassVar[str] = ""
    primary: ClassVar[str]
    modes: ClassVar[tuple[str, ...]]
    prompt: ClassVar[str] = "{question}\nAnswer the question using a single word or phrase."
    max_new_tokens: ClassVar[int] = 10
    result_fields: ClassVar[tuple[str, str]] = ("question_id", "answer")
    integer_keys: ClassVar[bool] = True

    def __init__(self, examples: Sequence[Example], problems: Problems, mode: str = "") -> None:
        if mode and mode not in self.modes:
            raise BadInput(f"task {self.name!r} has no mode {mode!r}; choose one of {', '.join(self.modes)}")
        self.examples = tuple(examples)
        self.problems = problems
        self.mode = mode or self.modes[0]
        self.strict = False

    @classmethod
    @abstractmethod
    def read(cls, source: Source, mode: str = "") -> Task:
        """Read the official files; subclasses may take more options, by keyword."""

    @abstractmethod
    def rate(self, said: Sequence[str]) -> Scores:
        """Score one answer for each example, in their order; an absent one is an empty string."""

    @property
    def groups(self) -> NDArray[np.int64]:
        """Image number of every example, `[N]`, for the paired bootstrap."""
        _, index = np.unique([example.group for example in self.examples], return_inverse=True)
        return np.asarray(index, dtype=np.int64)

    @property
    def kinds(self) -> list[str]:
        """Kind of every example."""
        return [example.kind for example in self.examples]

    def score(self, predictions: Mapping[str, object]) -> Scores:
        """Score answers by example key.

        No answer, None and NaN are scored as an empty answer and counted; so are answers to examples that the task lacks.

        Raises:
            BadInput: the task is strict and the keys are not those of the examples.
        """
        keys = {example.key for example in self.examples}
        unknown = [str(key) for key in predictions if str(key) not in keys]
        given = {str(key): _text(value) for key, value in predictions.items()}
        said = [given.get(example.key, "") for example in self.examples]
        unanswered = [key for key in keys if key not in given]
        if self.strict and (unknown or unanswered):
            raise BadInput(
                f"task {self.name!r}: {len(unknown)} answers to unknown questions ({', '.join(unknown[:3])}) and "
                f"{len(unanswered)} questions without an answer ({', '.join(sorted(unanswered)[:3])}); "
                "give one answer for each example, or open the task with strict=False"
            )
        rated = self.rate(said)
        empty = sum(1 for example in self.examples if example.key in given and not given[example.key].strip())
        counts = {"asked": len(said), "unanswered": len(unanswered), "empty": empty, "unknown": len(unknown)}
        return Scores(rated.metrics, rated.items, rated.tables, counts | rated.counts, self.mode)


REGISTRY: Registry[Task] = Registry("task", UnknownTask)
register = REGISTRY.register


def list_tasks() -> list[str]:
    """Return the names that `open_task` takes."""
    return REGISTRY.names()


def open_task(
    name: str,
    folder: str | Path,
    *,
    split: str = "val",
    mode: str = "",
    strict: bool = False,
    images: bool = True,
    limit: int | None = None,
    **options: Any,
) -> Task:
    """Read a task from official files, or from the folder that `python -m atp.scenes OUT` writes.

    Args:
        name: one of `list_tasks()`.
        folder: with the files as they were published.
        split: see `Source`.
        mode: scoring rules, see the task's `modes`.
        strict: stop at any bad row, doubled id, absent image, and later at any missing or unknown answer.
        images: False = score answers made elsewhere.
        limit: keep the first so many examples.
        options: of the task, see its `read`.

    Raises:
        BadInput: unknown task, mode or option; a missing or broken file; nothing to ask; problems in a strict run.

    Example:
        >>> task = open_task("vqav2", "out/scenes")  # doctest: +SKIP
        >>> task.score({example.key: "yes" for example in task.examples}).metrics["accuracy"]  # doctest: +SKIP
    """
    kind = REGISTRY.get(name)
    known = [p for p in inspect.signature(kind.read).parameters if p not in ("source", "mode")]
    for option in options:
        if option not in known:
            raise BadInput(f"task {name!r} has no option {option!r}; it has: {', '.join(known) or 'none'}")
    source = Source(Path(folder), split, images)
    task = kind.read(source, mode, **options)
    if strict and task.problems.found:
        raise BadInput(f"task {name!r} in {str(folder)!r}: {task.problems}; mend the files or open it with strict=False")
    if not task.examples:
        raise BadInput(f"task {name!r} in {str(folder)!r} has nothing to ask ({task.problems}); check folder and split={split!r}")
    task.strict = strict
    task.examples = task.examples[:limit]
    return task


def with_images(source: Source, examples: Sequence[Example]) -> list[Example]:
    """Leave out and count the examples whose image is absent."""
    kept = []
    for example in examples:
        if example.path is None and source.images:
            source.problems.add(LEFT_OUT, example.key)
        else:
            kept.append(example)
    return kept


def by_kind(kinds: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    """Mean in points of each kind, NaN values apart."""
    names = np.asarray(kinds)
    table = {}
    for kind in sorted(set(kinds)):
        chosen = values[names == kind]
        if not np.isnan(chosen).all():
            table[kind] = points(chosen)
    return table


def points(values: NDArray[np.float64]) -> float:
    """Mean x 100, NaN values apart; NaN where nothing is left."""
    kept = values[~np.isnan(values)]
    return float(100 * kept.mean()) if len(kept) else math.nan


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)
