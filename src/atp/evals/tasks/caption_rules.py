"""What captions say of the objects: CHAIR and tuple-F1. Knows mentions and true objects, not files.

CHAIR: Rohrbach et al. 2018. tuple-F1 is in the manner of SPICE (Anderson et al. 2016) but over a closed vocabulary, and is no
SPICE: objects, and (object, attribute) pairs where the truth has attributes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from atp.evals.tasks.objects import Mention


def chair(mentions: Sequence[Sequence[Mention]], truth: Sequence[Collection[str]]) -> dict[str, NDArray[np.float64]]:
    """Count mentions that are not in the image.

    Args:
        mentions: of each caption; repeats count.
        truth: categories in each image.

    Returns:
        `[N]` each: `mentioned`, `hallucinated` (mentions), `chair_s` (1 = at least one is hallucinated), `recall` of the true
        categories (NaN where there is none).
    """
    mentioned = np.array([len(found) for found in mentions], dtype=float)
    wrong = np.array([sum(m.name not in there for m in found) for found, there in zip(mentions, truth, strict=True)], dtype=float)
    recall = [
        len({m.name for m in found} & set(there)) / len(set(there)) if there else math.nan
        for found, there in zip(mentions, truth, strict=True)
    ]
    return {"mentioned": mentioned, "hallucinated": wrong, "chair_s": (wrong > 0).astype(float), "recall": np.array(recall)}


def tuples(found: Sequence[Mention], attributes: Collection[str]) -> set[tuple[str, ...]]:
    """Objects, and objects with the attributes directly before their name."""
    out: set[tuple[str, ...]] = {(mention.name,) for mention in found}
    for mention in found:
        if mention.before and mention.before[-1] in attributes:
            out.add((mention.name, mention.before[-1]))
    return out


def f1(said: Collection[tuple[str, ...]], truth: Collection[tuple[str, ...]]) -> float:
    """F1 of two sets; NaN where the truth is empty."""
    if not truth:
        return math.nan
    return 2 * len(set(said) & set(truth)) / (len(set(said)) + len(set(truth)))
