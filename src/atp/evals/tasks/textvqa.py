"""TextVQA: reading what is written in the picture. The official files, unchanged, or signs in scenes (`signs.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atp.errors import BadInput
from atp.evals.tasks import vqa_rules
from atp.evals.tasks.base import Example, Scores, Task, by_kind, points, register, with_images
from atp.evals.tasks.files import Problems, Source

FILE = "TextVQA_0.5.1_{split}.json"
HEIGHT = "text_height"  # field of our own files: pixels of a capital letter


@register("textvqa")
class TextVqa(Task):
    """Questions that need reading, ten answers each. https://textvqa.org, Singh et al. 2019.

    On signs in scenes the kinds are letter heights, so the table by kind shows from which size on small detail is lost.
    """

    primary = "accuracy"
    modes = ("evalai", "official")  # the order matters: TextVQA's own evaluation always normalises

    def __init__(
        self, examples: Sequence[Example], problems: Problems, answers: dict[str, tuple[str, ...]] | None, mode: str = ""
    ) -> None:
        super().__init__(examples, problems, mode)
        self.answers = answers

    @classmethod
    def read(cls, source: Source, mode: str = "") -> TextVqa:
        """Read questions with their answers; test files have none, as published."""
        path = source.need("TextVQA questions", FILE)
        examples: list[Example] = []
        known: dict[str, tuple[str, ...]] = {}
        for row in source.rows(path, "data", {"question_id": int, "image_id": str, "question": str}, "question_id"):
            given = row.get("answers", [])
            if not isinstance(given, list) or not all(isinstance(answer, str) for answer in given):
                source.problems.add(f"questions with unreadable answers in {path.name}", row["question_id"])
                continue
            key, said = str(row["question_id"]), tuple(given)
            if not said and source.split != "test":
                source.problems.add("questions without answers", key)
                continue
            known[key] = said
            majority = max(said, key=said.count) if said else ""
            kind = "number" if majority.isdigit() else "words"
            kind = f"{row[HEIGHT]:02d} px" if isinstance(row.get(HEIGHT), int) else kind
            picture = source.image(f"{row['image_id']}.jpg")
            examples.append(Example(key, picture, row["question"], (majority,) if said else (), kind, row["image_id"]))
        return cls(with_images(source, examples), source.problems, known if any(known.values()) else None, mode)

    def rate(self, said: Sequence[str]) -> Scores:
        """Score by VQA accuracy, over all and by kind.

        Raises:
            BadInput: the answers of this split are not public.
        """
        if self.answers is None:
            raise BadInput("the answers of TextVQA's test split are not public: upload results to EvalAI, or use split='val'")
        truth = [self.answers[example.key] for example in self.examples]
        values = np.array([vqa_rules.accuracy(s, t, self.mode) for s, t in zip(said, truth, strict=True)])
        return Scores({"accuracy": points(values)}, {"accuracy": values}, {"kind": by_kind(self.kinds, values)})
