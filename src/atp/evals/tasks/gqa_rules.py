"""GQA's metrics: accuracy, consistency, validity, plausibility, distribution, grounding. Knows questions, not files.

Rules: Hudson and Manning 2019 and the evaluation script of gqadataset.org. It compares strings exactly; `llava` first drops a
full stop at the end and lower-cases, as LLaVA's converter does; `lavis` normalises both sides by the VQA rules and knows
accuracy only.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atp.evals.tasks.vqa_rules import normalized, stripped

MODES = ("gqa", "llava", "lavis")
COMMON = ("color", "material", "shape")  # what "what is common to" asks for, whatever the choices file says
NO_STEP = ("exist", "query: name", "choose name")


@dataclass(frozen=True)
class Question:
    """What scoring needs of one question.

    Attributes:
        answer: the truth.
        balanced: counts for accuracy; unbalanced ones only serve consistency.
        entailed: ids of questions whose answers follow from this one's, itself apart.
        group: of the distribution metric, None = none.
        structural, semantic, detailed: types.
        words: of the question.
        steps: operations of the program that are not the final query; 0 where no program is given.
        pointed: ids of the objects that question and full answer mention, repeats kept.
        scene: whether an operation is about the whole scene.
    """

    answer: str
    balanced: bool
    entailed: tuple[str, ...]
    group: str | None
    structural: str
    semantic: str
    detailed: str
    words: int
    steps: int
    pointed: tuple[str, ...]
    scene: bool


def parse(qid: str, entry: Mapping[str, Any]) -> Question:
    """Read an entry of a questions file; programs, groups, types and annotations may be absent, as in test files."""
    operations = [f"{op.get('operation')}: {op.get('argument')}" for op in entry.get("semantic") or ()]
    types, places = entry.get("types") or {}, entry.get("annotations") or {}
    return Question(
        answer=entry.get("answer", ""),
        balanced=bool(entry.get("isBalanced", True)),
        entailed=tuple(other for other in entry.get("entailed") or () if other != qid),
        group=(entry.get("groups") or {}).get("global"),
        structural=types.get("structural") or "unknown",
        semantic=types.get("semantic") or "unknown",
        detailed=types.get("detailed") or "",
        words=len(entry["question"].split()),
        steps=sum(1 for operation in operations if not any(word in operation for word in NO_STEP)),
        pointed=tuple(str(o) for part in ("question", "fullAnswer") for o in (places.get(part) or {}).values()),
        scene=any("scene" in operation for operation in operations),
    )


def same(said: str, answer: str, mode: str = "gqa") -> bool:
    """Whether a prediction is right under a mode."""
    if mode == "lavis":
        return normalized(stripped(said)) == normalized(stripped(answer))
    return converted(said, mode) == answer


def converted(said: str, mode: str) -> str:
    """Prediction as the mode compares it."""
    return said.rstrip(".").lower() if mode == "llava" else said


def among(said: str, choices: Sequence[str], question: Question) -> bool:
    """Whether an answer is among the valid or plausible ones."""
    return said in (COMMON if "Common" in question.detailed else choices)


def consistency(
    questions: Mapping[str, Question], right: Mapping[str, bool], keys: Sequence[str]
) -> tuple[NDArray[np.float64], int]:
    """Share of right answers to the questions entailed by each rightly answered balanced one.

    Args:
        questions: all of the file.
        right: whether each answered question is right.
        keys: the order of the result.

    Returns:
        `[N]`, NaN where the metric does not apply; and how many were skipped since entailed questions were not asked.
    """
    values = np.full(len(keys), math.nan)
    skipped = 0
    for row, key in enumerate(keys):
        question = questions[key]
        if not (question.balanced and right[key] and question.entailed):
            continue
        if any(other not in right for other in question.entailed):
            skipped += 1
            continue
        values[row] = np.mean([right[other] for other in question.entailed])
    return values, skipped


def distribution(gold: Sequence[tuple[str | None, str]], said: Sequence[str]) -> float:
    """Chi-square between true and predicted answers per group, weighted by group size, / 100; lower is better.

    Args:
        gold: (group, answer) of each question; no group = left out.
        said: predictions, in the same order.

    Returns:
        NaN where no question has a group.
    """
    truth: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for (group, answer), prediction in zip(gold, said, strict=True):
        if group is not None:
            truth[group][answer] += 1
            given[group][prediction] += 1
    total = weighted = 0.0
    for group, counts in truth.items():
        chi = sum((given[group][answer] - expected) ** 2 / expected for answer, expected in counts.items())
        size = sum(counts.values())
        weighted, total = weighted + chi * size, total + size
    return weighted / total / 100 if total else math.nan


def region(graph: Mapping[str, Any], obj: str) -> tuple[float, float, float, float]:
    """Box of an object as shares of the image's sides: x0, y0, x1, y1."""
    found, wide, high = graph["objects"][obj], graph["width"], graph["height"]
    return found["x"] / wide, found["y"] / high, (found["x"] + found["w"]) / wide, (found["y"] + found["h"]) / high


def grounding(regions: Sequence[tuple[float, float, float, float]], attention: ArrayLike, boxes: bool = False) -> float:
    """Attention that falls on the regions: sum over regions and cells of attention x share of the cell inside.

    Regions that overlap count twice, so the sum may exceed the attention's; the official script does the same.

    Args:
        regions: of the objects that the question is about.
        attention: `[n, n]`, **first index x, second y**; or, with `boxes`, rows of x0, y0, x1, y1, weight.
        boxes: attention is over boxes. (The official script means to offer this, but stops with an error.)
    """
    weights = np.asarray(attention, dtype=np.float64)
    if boxes:
        cells = weights[:, :4]
        weights = weights[:, 4]
    else:
        low = np.arange(len(weights)) / len(weights)
        x, y = np.meshgrid(low, low, indexing="ij")
        cells = np.stack([x, y, x + 1 / len(weights), y + 1 / len(weights)], -1).reshape(-1, 4)
        weights = weights.reshape(-1)
    total = 0.0
    for x0, y0, x1, y1 in regions:
        wide = np.clip(np.minimum(cells[:, 2], x1) - np.maximum(cells[:, 0], x0), 0, None)
        high = np.clip(np.minimum(cells[:, 3], y1) - np.maximum(cells[:, 1], y0), 0, None)
        area = (cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])
        total += float((weights * wide * high / area).sum())
    return total
