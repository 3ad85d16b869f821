"""VQAv2: questions and ten human answers each, scored by VQA accuracy. The official files, unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atp.errors import BadInput
from atp.evals.tasks import vqa_rules
from atp.evals.tasks.base import Example, Scores, Task, by_kind, points, register, with_images
from atp.evals.tasks.files import Problems, Source

QUESTIONS = "v2_OpenEnded_mscoco_{subset}_questions.json"
ANNOTATIONS = "v2_mscoco_{subset}_annotations.json"


@dataclass(frozen=True)
class Annotation:
    """What people said to one question; `answers` are theirs, usually ten."""

    answers: tuple[str, ...]
    question_type: str
    answer_type: str
    majority: str


def read_annotations(source: Source) -> dict[int, Annotation] | None:
    """Read the annotations by question id; None where a test split has none, as published."""
    if source.split.startswith("test") and source.find(ANNOTATIONS) is None:
        return None
    path = source.need("VQAv2 annotations", ANNOTATIONS)
    spec = {"question_id": int, "answers": list, "question_type": str, "answer_type": str}
    out = {}
    for row in source.rows(path, "annotations", spec, "question_id"):
        answers = tuple(a["answer"] for a in row["answers"] if isinstance(a, dict) and isinstance(a.get("answer"), str))
        if len(answers) != len(row["answers"]) or not answers:
            source.problems.add(f"questions with unreadable answers in {path.name}", row["question_id"])
            continue
        majority = str(row.get("multiple_choice_answer") or max(answers, key=answers.count))
        out[row["question_id"]] = Annotation(answers, row["question_type"], row["answer_type"], majority)
    return out


@register("vqav2")
class Vqav2(Task):
    """Open questions about COCO images. https://visualqa.org, Goyal et al. 2017."""

    primary = "accuracy"
    modes = vqa_rules.MODES

    def __init__(
        self, examples: Sequence[Example], problems: Problems, annotations: dict[str, Annotation] | None, mode: str = ""
    ) -> None:
        super().__init__(examples, problems, mode)
        self.annotations = annotations

    @classmethod
    def read(cls, source: Source, mode: str = "") -> Vqav2:
        """Read questions, annotations and where the images are."""
        path = source.need("VQAv2 questions", QUESTIONS)
        annotations = read_annotations(source)
        examples = []
        for row in source.rows(path, "questions", {"question_id": int, "image_id": int, "question": str}, "question_id"):
            number, image = row["question_id"], row["image_id"]
            found = annotations.pop(number, None) if annotations is not None else None
            if annotations is not None and found is None:
                source.problems.add("questions without answers", number)
                continue
            picture = source.image(f"COCO_{source.image_subset}_{image:012d}.jpg")
            references, kind = ((found.majority,), found.answer_type) if found else ((), "unknown")
            examples.append((Example(str(number), picture, row["question"], references, kind, str(image)), found))
        for number in annotations or ():
            source.problems.add("answers for unknown questions", number)
        by_key = {example.key: found for example, found in examples if found is not None}
        kept = with_images(source, [example for example, _ in examples])
        return cls(kept, source.problems, None if annotations is None else by_key, mode)

    def rate(self, said: Sequence[str]) -> Scores:
        """Score by VQA accuracy, over all and by answer type and question type.

        Raises:
            BadInput: the answers of this split are not public.
        """
        if self.annotations is None:
            raise BadInput("the answers of VQAv2's test splits are not public: upload results to EvalAI, or use split='val'")
        truth = [self.annotations[example.key] for example in self.examples]
        values = np.array([vqa_rules.accuracy(s, t.answers, self.mode) for s, t in zip(said, truth, strict=True)])
        tables = {
            "answer_type": by_kind([t.answer_type for t in truth], values),
            "question_type": by_kind([t.question_type for t in truth], values),
        }
        return Scores({"accuracy": points(values)}, {"accuracy": values}, tables)
