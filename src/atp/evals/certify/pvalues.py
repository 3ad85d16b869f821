"""Valid p-values for "the mean drop is at least `bound`", from independent paired drops in [-1, 1]. Knows numbers only.

A drop is the unpruned score of an item minus the pruned one. `exact` is the tightest here where scores are 0 or 1 (losses of
-1, 0, 1); `betting` takes any scores in [0, 1]; `hoeffding_bentkus` is that of Learn then Test, kept to compare with.
Which test is used has to be said before the answers are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Test = Callable[[Floats, float, float], float]
"""(drops `[N]`, bound, level) -> p; level is what p will be compared with, and only divides the work inside `exact`."""

SPENT = 0.1
"""Share of the level that `exact` spends on its limit for the changed answers: ours, fixed beforehand."""
STAKES = np.geomspace(0.01, 0.99, 48)
"""Stakes that `betting` spreads its capital over, as shares of the highest that cannot go broke: ours, fixed beforehand."""
_ROUNDING = 1e-9


def exact(drops: Floats, bound: float, level: float) -> float:
    """Test scores of 0 and 1 by the exact distribution of the sum of drops; other drops count as if rounded up, which is safe.

    Let q be the share of items whose score changes, T = worse - better and s = SPENT * level. With probability 1 - s, q is at
    most its upper limit Q (Clopper and Pearson 1934). Then `p = s + max P(T <= t)` over all mean drops >= bound and q <= Q is
    valid (Berger and Boos 1994, Lemma 1). The maximum has mean drop = bound: moving mass from +1 to 0 lowers both T and q. Along
    that line `dP(T <= t)/dq = n/2 (g(t+1) - g(t))`, g the distribution of n - 1 drops' sum. For q <= 1/2 a drop + 1 is a sum of
    two independent Bernoulli variables, so g is unimodal with its mode less than 1 from its mean (Darroch 1964): for
    t <= (n-1) bound - 2 the maximum stands at q = Q. Elsewhere p = 1 is returned, where no level in use could be met.

    Args:
        drops: `[N]`, in [-1, 1], independent.
        bound: mean drop that is tested, in (0, 1).
        level: that p will be compared with.
    """
    drops = np.ceil(_checked(drops) - _ROUNDING)
    n, worse, better = len(drops), int((drops > 0).sum()), int((drops < 0).sum())
    spent = SPENT * level
    most, total = upper_limit(worse + better, n, spent), worse - better
    if most < bound:  # fewer items change than would have to
        return spent
    if most > 0.5 or total > (n - 1) * bound - 2:
        return 1.0
    return min(1.0, spent + _sum_at_most(total, n, (most + bound) / 2, (most - bound) / 2))


def betting(drops: Floats, bound: float, level: float) -> float:
    """Test drops of any kind by capital that no mean drop >= bound lets grow.

    A stake x earns `prod(1 + x (bound - drop))`, whose mean is at most 1 under the hypothesis; so is that of an average over
    stakes that were fixed beforehand, and 1 / capital is a p-value by Markov's inequality (Waudby-Smith and Ramdas 2024,
    arXiv 2010.09686, Section 4: capital processes; ours is the mixture over constant stakes, so the items' order is nothing).

    Args: as `exact`; `level` is not used.
    """
    values, counts = np.unique(_checked(drops), return_counts=True)
    stakes = STAKES / (1 - bound)
    logs = np.log1p(stakes[:, None] * (bound - values)) @ counts
    top = float(logs.max())
    capital = top + math.log(float(np.exp(logs - top).mean()))
    return min(1.0, math.exp(-max(capital, 0.0)))


def hoeffding_bentkus(drops: Floats, bound: float, level: float) -> float:
    """Test drops of any kind by the inequality of Learn then Test, on (1 + drop) / 2 in [0, 1].

    Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv 2110.01052, Section 3.2.1. Blind to variance, so it needs tens of
    thousands of items for a bound of 0.01.

    Args: as `exact`; `level` is not used.
    """
    n, risk, limit = len(drops), float((1 + _checked(drops).mean()) / 2), (1 + bound) / 2
    low = min(risk, limit)
    apart = sum(a * math.log(a / b) for a, b in ((low, limit), (1 - low, 1 - limit)) if a > 0)
    bentkus = math.e * float(_binomial(n, limit, min(n, math.ceil(n * risk - _ROUNDING))).sum())
    return min(1.0, math.exp(-n * apart), bentkus)


TESTS: dict[str, Test] = {"exact": exact, "betting": betting, "hoeffding-bentkus": hoeffding_bentkus}
"""By the names that certificates use."""


def upper_limit(count: int, n: int, error: float) -> float:
    """Upper limit of a share, `count` of `n` seen, too low with probability `error` at most (Clopper and Pearson)."""
    if count >= n:
        return 1.0
    low, high = count / n, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if float(_binomial(n, middle, count).sum()) > error:
            low = middle
        else:
            high = middle
    return high


def _checked(drops: Floats) -> Floats:
    drops = np.asarray(drops, dtype=np.float64)
    if drops.ndim != 1 or not len(drops) or not (np.abs(drops) <= 1 + _ROUNDING).all():
        raise ValueError(f"drops are differences of scores in [0, 1], one an item, at least one; got shape {drops.shape}")
    return np.clip(drops, -1.0, 1.0)


def _sum_at_most(total: int, n: int, worse: float, better: float) -> float:
    """Probability that n drops, +1 with probability `worse` and -1 with `better`, sum up to `total` at most."""
    both = 1 + worse - better
    root = math.sqrt(max(0.0, both * both - 4 * worse))
    first, second = (_binomial(n, min(1.0, max(0.0, p)), n) for p in ((both + root) / 2, (both - root) / 2))
    rest = total + n - np.arange(n + 1)
    return float(first[rest >= 0] @ np.cumsum(second)[np.minimum(rest[rest >= 0], n)])


def _binomial(n: int, p: float, most: int) -> Floats:
    """Probabilities of 0 .. `most` successes."""
    if p <= 0 or p >= 1:
        sure = np.zeros(most + 1)
        sure[(n if p >= 1 else 0) :][:1] = 1.0
        return sure
    ones, facts = np.arange(most + 1), _logs_of_factorials(n)
    logs = facts[n] - facts[: most + 1] - facts[n - ones] + ones * math.log(p) + (n - ones) * math.log1p(-p)
    return np.asarray(np.exp(logs), dtype=np.float64)


@lru_cache(maxsize=8)
def _logs_of_factorials(n: int) -> Floats:
    return np.asarray(np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))]), dtype=np.float64)
