"""GQA: compositional questions with programs and scene graphs. The official files, unchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atp.errors import BadInput
from atp.evals.tasks import gqa_rules as rules
from atp.evals.tasks.base import Example, Scores, Task, by_kind, points, register, with_images
from atp.evals.tasks.files import MALFORMED, Problems, Source, read_json, wrong_file

BALANCED = "{split}_balanced_questions.json"
ALL = "{split}_all_questions.json"
SCENES = "{split}_questions.json"  # as `python -m atp.scenes` names it; its images have COCO's names
GRAPHS = "{split}_sceneGraphs.json"
CHOICES = "{split}_choices.json"
ROW = {"question": str, "imageId": str}


@register("gqa")
class Gqa(Task):
    """Questions made from scene graphs, with entailments, programs and pointers. https://gqadataset.org, 2019."""

    primary = "accuracy"
    modes = rules.MODES
    result_fields = ("questionId", "prediction")
    integer_keys = False

    def __init__(
        self,
        examples: Sequence[Example],
        problems: Problems,
        questions: Mapping[str, rules.Question],
        choices: Mapping[str, Any] | None,
        graphs: Path | None,
        mode: str = "",
    ) -> None:
        super().__init__(examples, problems, mode)
        self.questions, self.choices, self._graphs = questions, choices, graphs

    @classmethod
    def read(cls, source: Source, mode: str = "", everything: bool = False) -> Gqa:
        """Read questions, and choices where they are; scene graphs are read when grounding is asked for.

        Args:
            source: split `val`, `testdev`, `train`, ...
            mode: one of `gqa_rules.MODES`.
            everything: ask unbalanced questions too. Only then consistency covers all entailed questions.
        """
        path = source.need("GQA questions", *((ALL, SCENES) if everything else (BALANCED, SCENES, ALL)))
        content = read_json(path)
        if not isinstance(content, dict):
            raise BadInput(f"{path}: expected an object from question id to question, got {type(content).__name__}")
        questions, examples, good = {}, [], 0
        for qid, entry in content.items():
            question = _parsed(source, path, qid, entry)
            good += question is not None
            if question is None or not (everything or question.balanced):
                continue
            image = entry["imageId"]
            names = [f"{image}.jpg"]
            if path.name == SCENES.format(split=source.split) and image.isdigit():
                names.append(f"COCO_{source.image_subset}_{int(image):012d}.jpg")
            questions[qid] = question
            references = (question.answer,) if question.answer else ()
            picture = source.image(*names)
            examples.append(Example(qid, picture, entry["question"], references, question.structural, image))
        if content and not good:
            raise wrong_file(path, len(content), ROW)
        found = source.find(CHOICES)
        choices = None if found is None else read_json(found)
        return cls(with_images(source, examples), source.problems, questions, choices, source.find(GRAPHS), mode)

    def rate(self, said: Sequence[str]) -> Scores:
        """Score by the official metrics; those whose files or answers are absent are left out, never printed as 0.

        Raises:
            BadInput: the answers of this split are not public.
        """
        keys = [example.key for example in self.examples]
        asked = [self.questions[key] for key in keys]
        if not any(question.answer for question in asked):
            raise BadInput("these GQA questions have no answers: use split='val' or 'testdev', or upload results to EvalAI")
        right = {k: rules.same(s, q.answer, self.mode) for k, s, q in zip(keys, said, asked, strict=True)}
        scored = np.array([q.balanced for q in asked])
        values = np.where(scored, np.array([right[key] for key in keys], dtype=float), math.nan)
        opened = np.array([q.structural == "query" for q in asked])
        items = {
            "accuracy": values,
            "binary": np.where(opened, math.nan, values),
            "open": np.where(opened, values, math.nan),
        }
        items["consistency"], skipped = rules.consistency(self.questions, right, keys)
        if self.mode != "lavis":
            items |= self._chosen(keys, said, scored)
        metrics = {name: points(found) for name, found in items.items() if not np.isnan(found).all()}
        if self.mode != "lavis":
            gold = [(q.group if q.balanced else None, q.answer) for q in asked]
            chi = rules.distribution(gold, [rules.converted(s, self.mode) for s in said])
            metrics |= {} if math.isnan(chi) else {"distribution": chi}
        tables = {
            "structural": by_kind([q.structural for q in asked], values),
            "semantic": by_kind([q.semantic for q in asked], values),
            "steps": by_kind([str(q.steps) for q in asked], values),
            "words": by_kind([str(q.words) for q in asked], values),
        }
        counts = {"balanced": int(scored.sum()), "consistency_skipped": skipped}
        return Scores(metrics, {name: items[name] for name in items if name in metrics}, tables, counts)

    def _chosen(self, keys: Sequence[str], said: Sequence[str], scored: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
        if self.choices is None:
            return {}
        out = {name: np.full(len(keys), math.nan) for name in ("validity", "plausibility")}
        for row, (key, text) in enumerate(zip(keys, said, strict=True)):
            found = self.choices.get(key)
            if found is not None and scored[row]:
                answer = rules.converted(text, self.mode)
                out["validity"][row] = rules.among(answer, found.get("valid", ()), self.questions[key])
                out["plausibility"][row] = rules.among(answer, found.get("plausible", ()), self.questions[key])
        return out

    @cached_property
    def graphs(self) -> dict[str, Any]:
        """Scene graphs by image id.

        Raises:
            BadInput: this split has none here.
        """
        if self._graphs is None:
            raise BadInput(f"no scene graphs beside these questions: put {GRAPHS.format(split='val')} there (testdev has none)")
        return dict(read_json(self._graphs))

    def grounding(self, attention: Mapping[str, ArrayLike], boxes: bool = False, whole_scene: bool = False) -> Scores:
        """Score where a model looked, over the balanced questions.

        Args:
            attention: by question id, see `gqa_rules.grounding`.
            boxes: attention is over boxes.
            whole_scene: add the whole image as a region where an operation is about the scene. The official script means to,
                but its test looks at the keys of the operation and never holds, so False gives its numbers.

        Raises:
            BadInput: no scene graphs; attention for none of the questions.
        """
        values = np.full(len(self.examples), math.nan)
        lost = absent = 0
        for row, example in enumerate(self.examples):
            question = self.questions[example.key]
            if not question.balanced:
                continue
            graph = self.graphs.get(example.group)
            if example.key not in attention:
                absent += 1
            elif graph is None or any(obj not in graph.get("objects", {}) for obj in question.pointed):
                lost += 1
            else:
                regions = [rules.region(graph, obj) for obj in question.pointed]
                regions += [(0.0, 0.0, 1.0, 1.0)] * (whole_scene and question.scene)
                values[row] = rules.grounding(regions, attention[example.key], boxes)
        if np.isnan(values).all():
            raise BadInput(f"no question has attention and a scene graph: {absent} without attention, {lost} without objects")
        counts = {"asked": len(values), "without_attention": absent, "without_objects": lost}
        return Scores({"grounding": points(values)}, {"grounding": values}, {}, counts, self.mode)


def _parsed(source: Source, path: Path, qid: str, entry: Any) -> rules.Question | None:
    if not source.fits(path, entry, ROW, qid):
        return None
    try:
        return rules.parse(qid, entry)
    except (AttributeError, TypeError):  # a part of the entry has another form than the official one
        source.problems.add(f"{MALFORMED} in {path.name}", qid)
        return None
