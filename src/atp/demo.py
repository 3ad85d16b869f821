"""The demonstration: a dozen committed images with questions, answered whole and pruned, as pictures and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from atp.budget.amount import Amount
from atp.compare import Comparison, compare
from atp.errors import BadInput
from atp.explain import Card, overlay, page, story
from atp.explain.page import same
from atp.images import load_image

SCENES = Path(__file__).parent / "scenes"
QUESTIONS = SCENES / "demo" / "questions.json"


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
    model: Any, processor: Any, out: Path, budget: Amount | None, method: str | None, most: int = 16, source: Path = QUESTIONS
) -> Iterator[Answer]:
    """Answer the questions one by one and write an overlay `NN.png` of each into `out`.

    Raises:
        BadInput: `out` cannot be written, or the list of questions cannot be read.
    """
    _writable(out)
    for number, entry in enumerate(questions(source), 1):
        image = load_image(source.parent.parent / entry["image"])
        result = compare(model, processor, image, entry["question"], budget, method, max_new_tokens=most)
        drawn = picture(image, result)
        file = out / f"{number:02d}.png"
        drawn.save(file)
        yield Answer(entry["question"], entry["answer"], result, drawn, file)


def _writable(out: Path) -> None:
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


def write_page(answers: list[Answer], out: Path, model: str) -> Path:
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
    numbers = [
        (f"{sums.right_unpruned} of {sums.count}", "right with all tokens"),
        (f"{sums.right} of {sums.count}", "right with fewer tokens"),
        (f"{sums.flops_ratio:.0%}", "of the FLOPs"),
        (f"{sums.seconds_unpruned / sums.seconds:.2f}x" if sums.seconds else "-", "as fast on this machine"),
    ]
    lead = f"{model}, method {method}: the same model answers with all visual tokens and with those that matter for the question."
    (out / "index.html").write_text(page("One model, fewer tokens", lead, numbers, cards), encoding="utf-8")
    return out / "index.html"
