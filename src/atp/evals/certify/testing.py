"""Learn then Test over a grid of budgets, from dear to cheap, and how many items a bound would take. Knows numbers only.

Angelopoulos, Bates, Candes, Jordan and Lei 2021, "Learn then Test", arXiv 2110.01052, Theorem 1: where every p-value is valid
and the family-wise error of the tests is at most `level`, all settings that pass keep their bound at once with probability
1 - level. Fixed-sequence testing (their Section 2.3) has that error: the order is set beforehand, each test has the whole
level, and the first failure ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atp.evals.certify.pvalues import Floats, Test

MOST = 100_000
"""Beyond so many items no number is named."""


@dataclass(frozen=True)
class Verdict:
    """One setting of the grid.

    Attributes:
        drop: observed mean.
        worse, better: items that lost and gained.
        p: of "the mean drop is at least the bound"; None = not tested, as an earlier one failed.
        passed: whether the bound is certified.
    """

    drop: float
    worse: int
    better: int
    p: float | None
    passed: bool


def fixed_sequence(grid: Sequence[Floats], bound: float, level: float, test: Test) -> list[Verdict]:
    """Test settings in their order until one fails.

    Args:
        grid: drops `[N]` of each setting, in an order that was set before any of them was seen.
        bound: most mean drop.
        level: 1 - confidence.
        test: see `pvalues`.

    Returns:
        One verdict a setting; the last that passed is the setting to take.
    """
    found: list[Verdict] = []
    going = True
    for drops in grid:
        p = test(drops, bound, level) if going else None
        going = p is not None and p <= level
        found.append(Verdict(float(drops.mean()), int((drops > 0).sum()), int((drops < 0).sum()), p, going))
    return found


def items_needed(drops: Floats, bound: float, level: float, test: Test) -> int | None:
    """Return about how many items would pass if they lost and gained as often as these; None = none up to `MOST`."""
    values, counts = np.unique(drops, return_counts=True)
    shares = counts / len(drops)

    def passes(n: int) -> bool:
        exact = n * shares
        whole = np.where(values > 0, np.ceil(exact - 1e-9), np.where(values < 0, np.floor(exact + 1e-9), 0)).astype(int)
        rest = np.zeros(max(0, n - int(whole.sum())))
        return test(np.concatenate([np.repeat(values, whole), rest]), bound, level) <= level

    if drops.mean() >= bound:
        return None
    high = 2
    while not passes(high):
        high *= 2
        if high > 2 * MOST:
            return None
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high if high <= MOST else None
