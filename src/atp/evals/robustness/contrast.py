"""Contrast questions: one small change in the words, another true answer. Knows scenes and the grammar, nothing of models.

A model that answers from habit gives the old answer. The new question is read back from its words and answered from the scene, so
its truth does not rest on the change having been made rightly. Score these apart: they are no noise.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from atp.errors import BadInput
from atp.evals.robustness.grammar import parse
from atp.evals.robustness.truth import execute
from atp.registry import did_you_mean
from atp.scenes.catalog import CATEGORIES, COLOR_NAMES
from atp.scenes.questions import Question, article
from atp.scenes.world import Scene

_PAIRS = (
    *(("left", "right"), ("above", "below"), ("bigger", "smaller")),
    *(("leftmost", "rightmost"), ("highest", "lowest"), ("largest", "smallest")),
)
OPPOSITE = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
CHANGES = ("name", "color", "direction", "arguments", "connective")


@dataclass(frozen=True)
class Contrast:
    """A pair of questions about one scene that differ by one change and in their answers.

    Attributes:
        original, changed: both true of the scene; the programs of `changed` carry no object numbers.
        change: one of `CHANGES`.
    """

    original: Question
    changed: Question
    change: str


def contrast(scene: Scene, question: Question, seed: int = 0, changes: tuple[str, ...] = CHANGES) -> Contrast | None:
    """Return a contrast question, or None where no change gives a clear and different answer.

    Args:
        scene: that the question is about.
        question: of `atp.scenes.ask`.
        seed: same scene, question and seed, same contrast.
        changes: kinds to draw from; each kind that works is equally likely.

    Raises:
        BadInput: no such change.
    """
    for change in changes:
        if change not in CHANGES:
            raise BadInput(f"unknown change {change!r}.{did_you_mean(change, CHANGES)} Known: {', '.join(CHANGES)}")
    rng = random.Random(f"contrast:{scene.split}:{scene.seed}:{question.text}:{seed}")
    for change in rng.sample(changes, len(changes)):
        texts = list(dict.fromkeys(_MAKERS[change](question.text)))
        for text in rng.sample(texts, len(texts)):
            changed = _asked(scene, text, question.kind)
            if changed is not None and changed.answer != question.answer:
                return Contrast(question, changed, change)
    return None


def contrasts(scene: Scene, questions: Iterable[Question], seed: int = 0) -> list[Contrast]:
    """Return the contrasts of all questions that have one."""
    found = (contrast(scene, question, seed) for question in questions)
    return [one for one in found if one is not None]


def _asked(scene: Scene, text: str, kind: str) -> Question | None:
    program = parse(text)
    truth = None if program is None else execute(program, scene)
    if program is None or truth is None:
        return None
    return Question(text, truth.answer, kind, program, truth.about)


def _swapped(text: str, words: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda m: words.get(m[0], m[0]), text)


def _names(text: str) -> Iterator[str]:
    """Every other category in the place of each name that occurs."""
    for old in sorted(CATEGORIES, key=lambda c: -len(c.name)):
        for form in ("name", "plural"):
            noun = getattr(old, form)
            for found in re.finditer(rf"\b(an? )?({noun})\b", text):
                for new in CATEGORIES:
                    if new is not old:
                        word = getattr(new, form)
                        yield text[: found.start()] + (article(word) if found[1] else word) + text[found.end() :]


def _colors(text: str) -> Iterator[str]:
    for found in re.finditer(rf"\b(an? )?({'|'.join(COLOR_NAMES)})\b", text):
        for word in COLOR_NAMES:
            if word != found[2]:
                yield text[: found.start()] + (article(word) if found[1] else word) + text[found.end() :]


def _directions(text: str) -> Iterator[str]:
    yield _swapped(text, OPPOSITE)


def _arguments(text: str) -> Iterator[str]:
    """Subject and object of a comparison or relation, exchanged."""
    middles = "to the left of the|to the right of the|left or right of the|above or below the|above the|below the"
    if found := re.fullmatch(rf"(Is the )(.+?)( (?:{middles}|bigger than the|smaller than the) )(.+)\?", text):
        yield f"{found[1]}{found[4]}{found[3]}{found[2]}?"
    if found := re.fullmatch(r"(Are there more )(.+)( than )(.+)\?", text):
        yield f"{found[1]}{found[4]}{found[3]}{found[2]}?"


def _connectives(text: str) -> Iterator[str]:
    if text.startswith("Is there"):
        yield _swapped(text, {"and": "or", "or": "and"})


_MAKERS: dict[str, Callable[[str], Iterator[str]]] = {
    "name": _names,
    "color": _colors,
    "direction": _directions,
    "arguments": _arguments,
    "connective": _connectives,
}
