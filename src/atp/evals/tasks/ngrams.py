"""BLEU, ROUGE-L and CIDEr-D over tokenized captions, by the rules of coco-caption. Knows lists of words only.

The constants are those of the public evaluation code, since published numbers contain them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = Sequence[str]
Gram = tuple[str, ...]

ORDERS = 4
TINY, SMALL = 1e-15, 1e-9  # keep BLEU's ratios defined
BETA = 1.2  # of ROUGE-L
SIGMA = 6.0  # of CIDEr-D's length penalty, which counts bigrams


def grams(words: Words, order: int) -> Counter[Gram]:
    """Count the n-grams of one order."""
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def bleu(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[list[float], NDArray[np.float64]]:
    """BLEU-1..4 with the closest reference length (the shorter of two).

    Args:
        said: one caption an image.
        references: captions of each image.

    Returns:
        The corpus scores, which are no means of the images' scores, and those of each image, `[N, 4]`.
    """
    rows, lengths = [], []
    for caption, truths in zip(said, references, strict=True):
        closest = min((abs(len(truth) - len(caption)), len(truth)) for truth in truths)[1]
        lengths.append((len(caption), closest))
        row = []
        for order in range(1, ORDERS + 1):
            most: Counter[Gram] = Counter()
            for truth in truths:
                most |= grams(truth, order)
            row.append((sum((grams(caption, order) & most).values()), max(0, len(caption) - order + 1)))
        rows.append(row)
    counts = np.array(rows, dtype=float)  # [N, 4, (right, guessed)]
    corpus = _bleu(counts.sum(0), *(sum(pair[i] for pair in lengths) for i in (0, 1)))
    return corpus, np.array([_bleu(row, *pair) for row, pair in zip(counts, lengths, strict=True)])


def _bleu(counts: NDArray[np.float64], length: int, closest: int) -> list[float]:
    ratio = (length + TINY) / (closest + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    precision = np.cumprod((counts[:, 0] + TINY) / (counts[:, 1] + SMALL))
    return [float(p ** (1 / order)) * brevity for order, p in enumerate(precision, 1)]


def _common(first: Words, second: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for a in first:
        diagonal = 0
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], diagonal + 1 if a == b else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> NDArray[np.float64]:
    """ROUGE-L of each image, `[N]`: F of the best precision and the best recall, which may come from two references."""
    out = []
    for caption, truths in zip(said, references, strict=True):
        common = [_common(caption, truth) for truth in truths]
        precision = max(common) / max(1, len(caption))
        recall = max(c / max(1, len(truth)) for c, truth in zip(common, truths, strict=True))
        both = precision and recall
        out.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if both else 0.0)
    return np.array(out)


@dataclass(frozen=True)
class Frequency:
    """In how many images' references an n-gram occurs, and of how many images.

    CIDEr takes this from the evaluated images, so scores of different subsets cannot be compared; pass one for all to do so.
    """

    images: int
    counts: Mapping[Gram, int]

    @classmethod
    def of(cls, references: Sequence[Sequence[Words]]) -> Frequency:
        """Count over the references of some images."""
        counts: Counter[Gram] = Counter()
        for truths in references:
            counts.update({gram for truth in truths for order in range(1, ORDERS + 1) for gram in grams(truth, order)})
        return cls(len(references), counts)

    def weights(self, words: Words, order: int) -> dict[Gram, float]:
        """Term frequency x inverse document frequency."""
        whole = math.log(max(1, self.images))
        return {g: n * (whole - math.log(max(1, self.counts.get(g, 0)))) for g, n in grams(words, order).items()}


def cider_d(
    said: Sequence[Words], references: Sequence[Sequence[Words]], frequency: Frequency | None = None
) -> NDArray[np.float64]:
    """CIDEr-D of each image, `[N]`, 0 to 10. With one image and no `frequency` it is 0 by definition.

    Args:
        said, references: see `bleu`.
        frequency: document frequencies; None = of these references, as the official code does.
    """
    known = frequency or Frequency.of(references)
    out = []
    for caption, truths in zip(said, references, strict=True):
        similar = 0.0
        for order in range(1, ORDERS + 1):
            ours = known.weights(caption, order)
            norm = math.sqrt(sum(w * w for w in ours.values()))
            for truth in truths:
                theirs = known.weights(truth, order)
                other = math.sqrt(sum(w * w for w in theirs.values()))
                dot = sum(min(w, theirs.get(g, 0.0)) * theirs.get(g, 0.0) for g, w in ours.items())
                apart = max(0, len(caption) - 1) - max(0, len(truth) - 1)
                penalty = math.exp(-(apart**2) / (2 * SIGMA**2))
                similar += penalty * (dot / (norm * other) if norm and other else dot)
        out.append(10 * similar / ORDERS / len(truths))
    return np.array(out)
