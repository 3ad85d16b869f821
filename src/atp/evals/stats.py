"""Paired statistics over items. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A mean difference in points (0-100) with its percentile bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired_bootstrap(
    first: NDArray[np.floating], second: NDArray[np.floating], groups: NDArray[np.integer], samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of `first - second` over the same items, with a 95 % interval from resampling whole groups.

    Questions about one image are not independent, so images are resampled, not questions.

    Args:
        first, second: score of every item, `[N]`, 0..1.
        groups: image number of every item, `[N]`.
        samples: bootstrap replicates.
        seed: of the resampling.

    Raises:
        ValueError: the three have different lengths or are empty.
    """
    if not len(first) == len(second) == len(groups) or not len(first):
        raise ValueError(f"paired scores need equal, non-zero lengths, got {len(first)}, {len(second)}, {len(groups)}")
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(first, float) - np.asarray(second, float))
    sizes = np.bincount(index).astype(float)
    draws = np.random.default_rng(seed).integers(len(sums), size=(samples, len(sums)))
    means = 100 * sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(100 * sums.sum() / sizes.sum()), float(low), float(high))
