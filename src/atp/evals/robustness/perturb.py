"""Perturb a question by name and severity, the same text each time. Knows the kinds by name, nothing of models.

The answer stays true by the scene grammar: words that carry meaning stay, still read as themselves, or give way to a synonym.
All randomness comes from (seed, key, name); the severity only says how many of the drawn edits are made.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from atp.errors import BadInput
from atp.evals.robustness.letters import ocr, typing
from atp.evals.robustness.phrasing import dropped, filler, order
from atp.evals.robustness.spelling import spelling
from atp.evals.robustness.synonyms import synonyms
from atp.evals.robustness.words import SHARES, Perturbed
from atp.registry import did_you_mean

_MAKERS: dict[str, Callable[[str, int, random.Random], Perturbed]] = {
    maker.__name__: maker for maker in (typing, ocr, spelling, dropped, order, filler, synonyms)
}
PERTURBATIONS = tuple(_MAKERS)
SEVERITIES = tuple(range(1, len(SHARES) + 1))


def perturb(text: str, name: str, severity: int, key: str, seed: int = 0) -> Perturbed:
    """Return the perturbed question.

    Args:
        text: of the question.
        name: one of `PERTURBATIONS`.
        severity: 1..5: edits per letter (typing, ocr) or per word (the others), see `words.SHARES`.
        key: of the question, unique in its data set.
        seed: of the whole perturbed set.

    Raises:
        BadInput: no such perturbation or severity, or a text without words.
    """
    if name not in _MAKERS:
        raise BadInput(f"unknown perturbation {name!r}.{did_you_mean(name, PERTURBATIONS)} Known: {', '.join(PERTURBATIONS)}")
    check_severity(severity)
    check_text(text)
    return _MAKERS[name](text, severity, random.Random(f"{seed}\x1f{key}\x1f{name}"))


def check_severity(severity: int) -> None:
    """Raise BadInput for what is not 1..5."""
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise BadInput(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}; 0 would be the question itself: leave it as it is")


def check_text(text: str) -> None:
    """Raise BadInput for a question without words."""
    if not isinstance(text, str) or not any(letter.isalnum() for letter in text):
        raise BadInput(f"a question needs words, got {text!r}; leave such a question out")
