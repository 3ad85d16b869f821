"""How often the bound is broken, by drawing: items of a population whose true drops are known. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atp.evals.certify.pvalues import Floats, Test
from atp.evals.certify.testing import fixed_sequence


def population(drops: Sequence[float], changed: Sequence[float], size: int = 20_000) -> Floats:
    """Return drops `[settings, size]` of -1, 0, 1 with given means and shares of changed items, to within 1 / size.

    An item that one setting loses, a cheaper one tends to lose too, as with real budgets.

    Args:
        drops: true mean of each setting.
        changed: share of items that each changes, at least the drop.
        size: items.
    """
    place = (np.arange(size) + 0.5) / size
    worse = [(q + d) / 2 for d, q in zip(drops, changed, strict=True)]
    better = [(q - d) / 2 for d, q in zip(drops, changed, strict=True)]
    if any(min(w, b) < 0 or w + b > 1 for w, b in zip(worse, better, strict=True)):
        raise ValueError(f"changed is at least the drop and at most 1, got {list(changed)} for {list(drops)}")
    return np.stack([1.0 * (place < w) - 1.0 * (place > 1 - b) for w, b in zip(worse, better, strict=True)])


def splits(
    items: Floats, n: int, bound: float, level: float, test: Test, *, rounds: int = 200, seed: int = 0
) -> tuple[int, list[int]]:
    """Certify on `rounds` random draws of n items and compare with the truth.

    Args:
        items: drops `[settings, size]` of the whole population, dear settings first.
        n: items of a draw, with replacement: then they are independent and the population's means are the truth.
        bound, level, test: as `fixed_sequence` takes them.
        rounds, seed: of the drawing.

    Returns:
        In how many rounds the chosen setting's true drop was above the bound; how often each setting was chosen, none last.
    """
    rng = np.random.default_rng(seed)
    truth = items.mean(1)
    chosen, broken = [0] * (len(items) + 1), 0
    for _ in range(rounds):
        drawn = items[:, rng.integers(items.shape[1], size=n)]
        passed = [verdict.passed for verdict in fixed_sequence(list(drawn), bound, level, test)]
        last = sum(passed) - 1
        chosen[last] += 1
        broken += last >= 0 and float(truth[: last + 1].max()) > bound + 1e-12
    return broken, chosen
