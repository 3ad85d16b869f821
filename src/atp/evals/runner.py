"""Answer items with a model, pruned or not, and keep what it said and what it spent. Knows the public API only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from atp.adapters import adapt
from atp.asking import build_inputs, new_tokens, words
from atp.budget.cost import Workload
from atp.engine import prune
from atp.evals.items import Item
from atp.fitting import batched

MAX_NEW_TOKENS = 4


@dataclass(frozen=True)
class Result:
    """What one setting answered, in the order of the items.

    Attributes:
        name: of the setting.
        answers: decoded, stripped, lower case.
        correct: 1.0 where the answer equals the truth, `[N]`.
        report: `Report.to_dict()` of the whole run; None for the unpruned one.
        seconds: wall time of the generate calls, all items.
    """

    name: str
    answers: tuple[str, ...]
    correct: NDArray[np.float64]
    report: dict[str, Any] | None
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of exact answers, in points."""
        return float(100 * self.correct.mean())


def prepared(processor: Any, items: Sequence[Item], batch: int, blank: bool = False) -> list[tuple[list[int], Any]]:
    """Tokenize and batch items of equal shapes, so that no batch is padded.

    Args:
        processor: of the model.
        items: to ask.
        batch: most items of a batch.
        blank: replace every image by a grey one, for the text-only baseline.

    Returns:
        (item numbers, model inputs) of each batch.
    """
    grey = Image.new("RGB", (224, 224), (128, 128, 128))
    rows = [build_inputs(processor, [grey if blank else item.image], [item.question]) for item in items]
    return batched(rows, batch)


def workload_of(model: Any, processor: Any, items: Sequence[Item]) -> Workload:
    """Describe the mean question and an answer of one token and the end, for which plans are solved."""
    text = sum(words(processor, item.question) for item in items) / len(items)
    return Workload(images=adapt(model).tiles, text=round(text), answer=2)


def evaluate(
    name: str,
    model: Any,
    processor: Any,
    items: Sequence[Item],
    batches: Sequence[tuple[list[int], Any]],
    pruning: dict[str, Any] | None = None,
) -> Result:
    """Ask every item and score exact answers.

    Args:
        name: of the setting, shown on the progress bar.
        model, processor: as `atp.loading.load` gives them.
        items: the questions, for the truth.
        batches: from `prepared`.
        pruning: keyword arguments of `atp.prune`; None = unpruned.

    Raises:
        AtpError: what `atp.prune` refuses.
    """
    answers = [""] * len(items)
    spent = 0.0
    manager: Any = nullcontext() if pruning is None else prune(model, processor=processor, **pruning)
    with torch.inference_mode(), manager as run:
        for numbers, inputs in track(batches, description=f"{name:<12}", transient=True):
            placed = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
            begin = time.perf_counter()
            out = model.generate(**placed, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            spent += time.perf_counter() - begin
            said = processor.batch_decode(new_tokens(placed, out), skip_special_tokens=True)
            for number, answer in zip(numbers, said, strict=True):
                answers[number] = answer.strip().lower()
            if run is not None:
                run.trace.clear()
        report = None if run is None else run.report().to_dict()
    correct = np.array([float(answer == item.answer) for answer, item in zip(answers, items, strict=True)])
    return Result(name, tuple(answers), correct, report, spent)
