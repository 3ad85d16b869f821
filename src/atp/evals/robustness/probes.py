"""Scores of the two probes that are no noise: contrast questions, and words that do not belong. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp.errors import BadInput
from atp.evals.stats import Interval, paired_bootstrap


@dataclass(frozen=True)
class ContrastScores:
    """Accuracy on contrast pairs, in points.

    Attributes:
        original, changed: on the questions as they were and on the changed ones.
        both: share of pairs with both right: what understanding gives and habit does not.
        unmoved: share of pairs whose two answers are the same, of which at most one can be right.
    """

    original: float
    changed: float
    both: float
    unmoved: float


def contrast_scores(answers: Sequence[tuple[str, str]], truths: Sequence[tuple[str, str]]) -> ContrastScores:
    """Score pairs of answers by equality with pairs of truths.

    Args:
        answers: (to the original, to the changed question), lower case.
        truths: the same, from `Contrast.original.answer` and `Contrast.changed.answer`.

    Raises:
        BadInput: unequal numbers, none, or a pair of equal truths, which is no contrast.
    """
    if len(answers) != len(truths) or not truths:
        raise BadInput(f"expected as many pairs of answers as of truths and at least one, got {len(answers)} and {len(truths)}")
    for number, (before, after) in enumerate(truths):
        if before == after:
            raise BadInput(f"pair {number} has the true answer {before!r} twice; a contrast changes it: leave the pair out")
    right = np.array([(a == c, b == d) for (a, b), (c, d) in zip(answers, truths, strict=True)])
    same = np.array([a == b for a, b in answers])
    return ContrastScores(*(float(100 * v.mean()) for v in (right[:, 0], right[:, 1], right.all(1), same)))


@dataclass(frozen=True)
class Caught:
    """Do pruned text tokens include the words that do not belong?

    Attributes:
        replaced: share of the replaced words' tokens that were pruned, in points, mean over questions.
        others: the same of the other tokens of those questions.
        before: share pruned at the same places before the words were replaced.
        gain: `replaced` minus `before`: what the wrong word itself does, its place held fixed.
    """

    replaced: float
    others: float
    before: float
    gain: Interval


Masks = Sequence[Sequence[bool]]


def caught(replaced: Masks, pruned: Masks, places: Masks, pruned_before: Masks, groups: NDArray[Any]) -> Caught:
    """Compare what is pruned with what was replaced, question by question.

    Args:
        replaced: which text tokens of each disturbed question carry a replaced word (`Replaced.tokens`).
        pruned: which of them were pruned.
        places: which tokens of each question as it was stand at those places.
        pruned_before: which of them were pruned.
        groups: image of every question, number or name, `[N]`.

    Raises:
        BadInput: masks of unequal lengths, or a question without replaced or without other tokens.
    """
    wrong, same_place = _share(replaced, pruned, "replaced"), _share(places, pruned_before, "places")
    others = _share([[not bad for bad in mask] for mask in replaced], pruned, "other")
    points = [float(100 * share.mean()) for share in (wrong, others, same_place)]
    return Caught(points[0], points[1], points[2], paired_bootstrap(wrong, same_place, np.unique(groups, return_inverse=True)[1]))


def _share(masks: Masks, pruned: Masks, what: str) -> NDArray[np.float64]:
    if len(masks) != len(pruned):
        raise BadInput(f"expected as many masks of {what} tokens as of pruned ones, got {len(masks)} and {len(pruned)}")
    shares = []
    for number, (mask, gone) in enumerate(zip(masks, pruned, strict=True)):
        if len(mask) != len(gone) or not any(mask):
            raise BadInput(
                f"question {number}: {len(mask)} tokens in the mask of {what} tokens ({sum(mask)} set) and {len(gone)} in the "
                "mask of pruned ones; give masks of equal length with at least one set, or leave the question out"
            )
        shares.append(np.mean([out for out, at in zip(gone, mask, strict=True) if at]))
    return np.array(shares, float)
