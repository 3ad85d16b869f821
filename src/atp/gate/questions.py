"""What is asked while training: generated scenes, or a folder of official files. A step's number decides its questions."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from atp.evals.items import scene_items
from atp.evals.tasks import Example, Task, open_task
from atp.gate.settings import Settings
from atp.loading import PACKAGED, resolve

TRAIN, HELD_OUT = 910_000_000, 920_000_000
"""First seeds of scenes: of the split `train`, from 900,000,000 on no shipped model was trained, and calibrations end before."""
PER_SCENE = 4
KEPT = 64  # examples of a folder that are not trained on, at most a tenth

Asked = list[tuple[Image.Image, str]]


class Questions(ABC):
    """Images with questions; no answers are needed, for the unpruned model gives them."""

    @abstractmethod
    def batch(self, step: int, size: int) -> Asked:
        """Return the questions of a training step."""

    @abstractmethod
    def held_out(self, number: int, size: int) -> Asked:
        """Return questions that no step has."""


class Scenes(Questions):
    """Generated ones, never the same twice."""

    def batch(self, step: int, size: int) -> Asked:
        return self._from(TRAIN, step, size)

    def held_out(self, number: int, size: int) -> Asked:
        return self._from(HELD_OUT, number, size)

    def _from(self, first: int, number: int, size: int) -> Asked:
        seed = first + number * math.ceil(size / PER_SCENE)
        return [(item.image, item.question) for item in scene_items(size, "train", seed, per_scene=PER_SCENE)]


class Files(Questions):
    """Those of a task's official files, shuffled; the same again when all were asked."""

    def __init__(self, task: Task, seed: int, plain: bool) -> None:
        order = list(task.examples)
        random.Random(seed).shuffle(order)
        kept = min(KEPT, max(1, len(order) // 10))
        self.kept, self.examples = order[:kept], order[kept:] or order
        self.prompt = "{question}" if plain else task.prompt

    def batch(self, step: int, size: int) -> Asked:
        return self._of([self.examples[(step * size + n) % len(self.examples)] for n in range(size)])

    def held_out(self, number: int, size: int) -> Asked:
        return self._of([self.kept[(number * size + n) % len(self.kept)] for n in range(size)])

    def _of(self, examples: Sequence[Example]) -> Asked:
        return [(one.image, self.prompt.format(question=one.question)) for one in examples]


def questions(settings: Settings) -> Questions:
    """Open what the settings ask for.

    Raises:
        BadInput: files that are absent or broken.
    """
    if not settings.data:
        return Scenes()
    plain = Path(resolve(settings.model)).parent == PACKAGED
    return Files(open_task(settings.task, settings.data, split=settings.split), settings.seed, plain)
