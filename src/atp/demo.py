"""The demonstration: a dozen committed images with questions, answered whole and pruned, as pictures and one HTML page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from atp.adapters import adapt
from atp.asking import build_inputs, new_tokens, workload
from atp.budget.amount import Amount
from atp.compare import Comparison, compare, on_device, timed
from atp.engine import prune
from atp.engine.tables import Table
from atp.errors import BadInput
from atp.explain import Card, overlay, page, story
from atp.explain.page import same
from atp.images import load_image

SCENES = Path(__file__).parent / "scenes"
QUESTIONS = SCENES / "demo" / "questions.json"
ROUNDS = 5


@dataclass(frozen=True)
class Answer:
    """One question of the demonstration with its two answers.

    Attributes:
        question, truth: from the list.
        result: the two answers and what they cost.
        picture: the overlay; file: where it was written.
    """

    question: str
    truth: str
    result: Comparison
    picture: Image.Image
    file: Path

    @property
    def right(self) -> tuple[bool, bool]:
        """Whether the unpruned and the pruned answer are right."""
        return same(self.result.answer_unpruned, self.truth), same(self.result.answer, self.truth)


def questions(source: Path = QUESTIONS) -> list[dict[str, str]]:
    """Read the list of questions: `image` (below `scenes/`), `question`, `answer`.

    Raises:
        BadInput: the list is missing, no JSON, or lacks a key.
    """
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))
        return [{key: str(entry[key]) for key in ("image", "question", "answer")} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read the demonstration's questions in {str(source)!r} ({error!r}); reinstall atp-vlm") from None


def picture(image: Image.Image, result: Comparison) -> Image.Image:
    """Draw what was kept, with both answers above."""
    answers = f"all tokens: {result.answer_unpruned or '-'} · pruned: {result.answer or '-'}"
    title = f"{result.question} · {answers} · {result.flops_ratio:.0%} of the FLOPs"
    return overlay(image, story(result.trace, stacks=result.located), result.box, title)


def answer_all(
    model: Any,
    processor: Any,
    out: Path,
    budget: Amount | None,
    method: str | None,
    most: int = 16,
    source: Path = QUESTIONS,
    *,
    calibration: Table | None = None,
) -> Iterator[Answer]:
    """Answer the questions one by one and write an overlay `NN.png` of each into `out`.

    Raises:
        BadInput: `out` cannot be written, or the list of questions cannot be read.
    """
    writable(out)
    for number, entry in enumerate(questions(source), 1):
        image = load_image(source.parent.parent / entry["image"])
        result = compare(model, processor, image, entry["question"], budget, method, max_new_tokens=most, calibration=calibration)
        drawn = picture(image, result)
        file = out / f"{number:02d}.png"
        drawn.save(file)
        yield Answer(entry["question"], entry["answer"], result, drawn, file)


@dataclass(frozen=True)
class Together:
    """All questions as one batch, with all tokens and pruned in turn.

    Attributes:
        count: questions.
        right_unpruned, right: how many were answered rightly.
        seconds_unpruned, seconds: medians of the rounds, of generating.
    """

    count: int
    right_unpruned: int
    right: int
    seconds_unpruned: float
    seconds: float

    @property
    def speedup(self) -> float:
        """How many times as fast the pruned batch was."""
        return self.seconds_unpruned / self.seconds if self.seconds else 1.0

    def __str__(self) -> str:
        return (
            f"one by one; as one batch of {self.count}: right {self.right_unpruned} with all tokens, {self.right} pruned; "
            f"{1000 * self.seconds_unpruned:.0f} ms -> {1000 * self.seconds:.0f} ms (x{self.speedup:.2f})"
        )


def together(
    model: Any,
    processor: Any,
    budget: Amount | None,
    method: str | None,
    most: int = 16,
    source: Path = QUESTIONS,
    *,
    calibration: Table | None = None,
) -> Together:
    """Answer the questions as one batch, whole and pruned in turn, after a round that warms up.

    Raises:
        BadInput: the list of questions cannot be read.
    """
    asked = questions(source)
    images = [load_image(source.parent.parent / entry["image"]) for entry in asked]
    inputs = on_device(model, build_inputs(processor, images, [entry["question"] for entry in asked]))
    took: tuple[list[float], list[float]] = ([], [])
    said: list[list[str]] = [[], []]
    work = None
    for _ in range(ROUNDS + 1):
        whole, slow = timed(model, processor, inputs, most)
        work = work or workload(adapt(model).shape, processor, inputs, new_tokens(inputs, whole).shape[1])
        with prune(model, budget, method, calibration=calibration, processor=processor, workload=work):
            short, fast = timed(model, processor, inputs, most)
        said = [processor.tokenizer.batch_decode(new_tokens(inputs, ids), skip_special_tokens=True) for ids in (whole, short)]
        took[0].append(slow)
        took[1].append(fast)
    right = [sum(same(answer, entry["answer"]) for answer, entry in zip(side, asked, strict=True)) for side in said]
    return Together(len(asked), *right, *(statistics.median(side[1:]) for side in took))


def writable(out: Path) -> None:
    """Make the folder, or refuse.

    Raises:
        BadInput: nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "index.html").touch()
    except OSError as error:
        raise BadInput(f"cannot write into {str(out)!r}: {error.strerror or error}; choose another folder with --out") from None


@dataclass(frozen=True)
class Totals:
    """Sums over all questions.

    Attributes:
        count: questions.
        right_unpruned, right: how many were answered rightly.
        flops_ratio: all FLOPs over all unpruned ones.
        seconds_unpruned, seconds: of generating.
    """

    count: int
    right_unpruned: int
    right: int
    flops_ratio: float
    seconds_unpruned: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.count} questions: right {self.right_unpruned} with all tokens, {self.right} pruned; "
            f"{self.flops_ratio:.1%} of the FLOPs; {1000 * self.seconds_unpruned:.0f} ms -> {1000 * self.seconds:.0f} ms"
        )


def totals(answers: list[Answer]) -> Totals:
    """Add up."""
    results = [answer.result for answer in answers]
    whole = sum(result.flops_unpruned["total"] for result in results)
    return Totals(
        count=len(answers),
        right_unpruned=sum(answer.right[0] for answer in answers),
        right=sum(answer.right[1] for answer in answers),
        flops_ratio=sum(result.flops["total"] for result in results) / whole if whole else 1.0,
        seconds_unpruned=sum(result.seconds["unpruned"] for result in results),
        seconds=sum(result.seconds["pruned"] for result in results),
    )


def write_page(answers: list[Answer], out: Path, model: str, batch: Together | None = None) -> Path:
    """Write `index.html` into `out` and return its path."""
    sums = totals(answers)
    cards = [
        Card(
            question=answer.question,
            truth=answer.truth,
            unpruned=answer.result.answer_unpruned,
            pruned=answer.result.answer,
            flops_ratio=answer.result.flops_ratio,
            kept=answer.result.kept_in_words,
            seconds=(answer.result.seconds["unpruned"], answer.result.seconds["pruned"]),
            picture=answer.picture,
        )
        for answer in answers
    ]
    method = answers[0].result.method if answers else "nothing"
    method += " with counts per input" if answers and answers[0].result.plan.adaptive else ""
    numbers = [
        (f"{sums.right_unpruned} of {sums.count}", "right with all tokens"),
        (f"{sums.right} of {sums.count}", "right with fewer tokens"),
        (f"{sums.flops_ratio:.0%}", "of the FLOPs"),
        (f"{sums.seconds_unpruned / sums.seconds:.2f}x" if sums.seconds else "-", "as fast on this machine, one by one"),
    ]
    numbers += [] if batch is None else [(f"{batch.speedup:.2f}x", f"as fast as one batch of {batch.count}")]
    lead = f"{model}, method {method}: the same model answers with all visual tokens and with those that matter for the question."
    (out / "index.html").write_text(page("One model, fewer tokens", lead, numbers, cards), encoding="utf-8")
    return out / "index.html"
