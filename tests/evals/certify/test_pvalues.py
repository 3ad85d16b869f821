"""pvalues.py and testing.py: exact known answers, validity over the whole hypothesis, and what breaks it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from atp.evals.certify.pvalues import SPENT, TESTS, Floats, betting, exact, hoeffding_bentkus, upper_limit
from atp.evals.certify.simulate import population, splits
from atp.evals.certify.testing import fixed_sequence, items_needed

LEVEL = 0.05


def drops(n: int, worse: int, better: int) -> Floats:
    return np.array([1.0] * worse + [-1.0] * better + [0.0] * (n - worse - better))


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 10), (9, 10), (40, 2000), (0, 527)])
@pytest.mark.parametrize("error", [0.005, 0.05])
def test_the_limit_is_that_of_clopper_and_pearson(count: int, n: int, error: float) -> None:
    assert upper_limit(count, n, error) == pytest.approx(stats.beta.ppf(1 - error, count + 1, n - count), rel=1e-9)
    assert upper_limit(n, n, error) == 1.0


def test_exact_equals_the_multinomial_sum() -> None:
    n, bound, worse, better = 60, 0.2, 3, 2
    most = stats.beta.ppf(1 - SPENT * LEVEL, worse + better + 1, n - worse - better)
    up, down = (most + bound) / 2, (most - bound) / 2
    below = sum(
        stats.multinomial.pmf([a, b, n - a - b], n, [up, down, 1 - up - down])
        for a, b in itertools.product(range(n + 1), repeat=2)
        if a + b <= n and a - b <= worse - better
    )
    assert exact(drops(n, worse, better), bound, LEVEL) == pytest.approx(below + SPENT * LEVEL, rel=1e-9)


def test_exact_where_nothing_changes() -> None:
    least = math.ceil(math.log(SPENT * LEVEL) / math.log(0.99))  # 1 - s^(1/n) < 0.01
    assert least == 528
    assert exact(drops(least, 0, 0), 0.01, LEVEL) == SPENT * LEVEL
    assert exact(drops(20, 10, 10), 0.3, LEVEL) == 1.0  # more than half may change: no claim
    assert exact(drops(1000, 20, 10), 0.01, LEVEL) == 1.0  # the drop is the bound


def test_betting_is_one_over_the_mean_capital() -> None:
    stakes = np.geomspace(0.01, 0.99, 48) / 0.98
    capital = np.mean((1 - stakes * 0.98) ** 2 * (1 + stakes * 0.02) ** 96 * (1 + stakes * 1.02) ** 2)
    assert betting(drops(100, 2, 2), 0.02, LEVEL) == pytest.approx(1 / max(1.0, capital))
    half = np.array([0.5, -0.3, 0.0])
    capital = np.mean((1 - stakes * 0.48) * (1 + stakes * 0.32) * (1 + stakes * 0.02))
    assert betting(half, 0.02, LEVEL) == pytest.approx(min(1.0, 1 / capital))


def test_hoeffding_bentkus_by_its_formula() -> None:
    n, limit = 4000, 0.55
    risk = (1 + 100 / n) / 2
    apart = risk * math.log(risk / limit) + (1 - risk) * math.log((1 - risk) / (1 - limit))
    bentkus = math.e * stats.binom.cdf(math.ceil(n * risk), n, limit)
    expected = min(math.exp(-n * apart), bentkus)
    assert hoeffding_bentkus(drops(n, 200, 100), 0.1, LEVEL) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", sorted(TESTS))
@pytest.mark.parametrize("bad", [[], [1.5], [math.nan], [[0.0]]])
def test_what_is_no_drop_is_refused(name: str, bad: list[float]) -> None:
    with pytest.raises(ValueError, match="one an item"):
        TESTS[name](np.array(bad), 0.01, LEVEL)


@pytest.mark.parametrize("test", sorted(TESTS))
def test_valid_over_the_whole_hypothesis(test: str) -> None:
    """No sampling: every outcome of 24 items, at mean drops on and above the bound and any share of changes."""
    n, bound = 24, 0.3
    passing = [
        (a, b)
        for a, b in itertools.product(range(n + 1), repeat=2)
        if a + b <= n and TESTS[test](drops(n, a, b), bound, LEVEL) <= LEVEL
    ]
    assert passing, "a test that never passes would be valid and useless"
    for drop, changed in itertools.product((0.3, 0.32, 0.4), (0.4, 0.5, 0.7, 1.0)):
        up, down = (changed + drop) / 2, (changed - drop) / 2
        outcomes = np.array([[a, b, n - a - b] for a, b in passing])
        assert stats.multinomial.pmf(outcomes, n, [up, down, 1 - up - down]).sum() <= LEVEL
    lone = np.array([[a, b, n - a - b] for a, b in passing])
    assert stats.multinomial.pmf(lone, n, [0.3, 0.0, 0.7]).sum() <= LEVEL  # nothing ever gains


def test_exact_is_the_tightest_for_right_and_wrong() -> None:
    for n, worse, better in ((1500, 12, 9), (3000, 60, 55), (1000, 4, 4)):
        found = [TESTS[name](drops(n, worse, better), 0.01, LEVEL) for name in ("exact", "betting", "hoeffding-bentkus")]
        assert found == sorted(found)


def test_the_sequence_stops_at_the_first_failure() -> None:
    good, bad = drops(2000, 5, 5), drops(2000, 60, 5)
    verdicts = fixed_sequence([good, bad, good], 0.01, LEVEL, exact)
    assert [one.passed for one in verdicts] == [True, False, False]
    assert verdicts[2].p is None
    assert (verdicts[1].worse, verdicts[1].better, verdicts[1].drop) == (60, 5, pytest.approx(0.0275))


@pytest.mark.parametrize("test", ["exact", "betting"])
def test_items_needed_pass_and_a_few_less_do_not(test: str) -> None:
    seen = drops(200, 3, 2)
    n = items_needed(seen, 0.01, LEVEL, TESTS[test])
    assert n is not None and n > 400
    scaled = drops(n, math.ceil(n * 0.015), math.floor(n * 0.01))
    assert TESTS[test](scaled, 0.01, LEVEL) <= LEVEL
    less = int(0.9 * n)
    assert TESTS[test](drops(less, math.ceil(less * 0.015), math.floor(less * 0.01)), 0.01, LEVEL) > LEVEL
    assert items_needed(drops(200, 4, 2), 0.01, LEVEL, TESTS[test]) is None  # as bad as the bound: no number helps
    assert items_needed(drops(528, 0, 0), 0.01, LEVEL, exact) == 408


# --- 200 random splits ------------------------------------------------------------------------------------------------

ROUNDS = 200
ALLOWED = int(stats.binom.ppf(0.999, ROUNDS, LEVEL))
"""A procedure that breaks its bound with probability 5 % exactly shows more than this in 200 rounds one time in 1000."""
GRIDS = {
    "at the bound": ([0.0101], [0.03]),
    "just above, many changes": ([0.0101], [0.2]),
    "good then bad": ([0.0, 0.004, 0.011, 0.03], [0.01, 0.02, 0.04, 0.08]),
    "all bad": ([0.0101, 0.0105, 0.011, 0.012], [0.02, 0.03, 0.04, 0.05]),
}


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("test", ["exact", "betting"])
def test_the_bound_is_broken_in_at_most_five_percent(grid: str, test: str) -> None:
    items = population(*GRIDS[grid])
    assert items.mean(1) == pytest.approx(GRIDS[grid][0], abs=1e-4)
    broken, chosen = splits(items, 1000, 0.01, LEVEL, TESTS[test], rounds=ROUNDS)
    assert sum(chosen) == ROUNDS
    assert broken <= ALLOWED


def test_good_settings_are_found() -> None:
    items = population([0.0, 0.001, 0.03], [0.01, 0.01, 0.08])
    broken, chosen = splits(items, 2000, 0.01, LEVEL, exact, rounds=50)
    assert broken == 0
    assert chosen[1] >= 45


def normal(given: Floats, bound: float, level: float) -> float:
    """The planted fault: the normal approximation, certain of everything where nothing was seen to change."""
    spread = given.std() / math.sqrt(len(given))
    return float(stats.norm.cdf((given.mean() - bound) / spread)) if spread else float(given.mean() >= bound)


def test_a_normal_approximation_on_few_items_breaks_it() -> None:
    items = population([0.03], [0.03])
    assert splits(items, 40, 0.01, LEVEL, normal, rounds=ROUNDS)[0] > 2 * ALLOWED  # no change seen: 0.97^40 = 30 %
    assert splits(items, 40, 0.01, LEVEL, exact, rounds=ROUNDS)[0] <= ALLOWED


def test_peeking_over_the_grid_breaks_it() -> None:
    """Take the cheapest setting that passes, wherever it stands: every bad setting has its own try."""
    rng = np.random.default_rng(0)
    peeked = fixed = 0
    for _ in range(ROUNDS):
        counts = rng.multinomial(2000, [0.0151, 0.005, 0.9799], size=8)  # eight settings, true drop 0.0101
        grid = [drops(2000, worse, better) for worse, better, _ in counts]
        fixed += fixed_sequence(grid, 0.01, LEVEL, exact)[0].passed
        peeked += any(exact(one, 0.01, LEVEL) <= LEVEL for one in grid)
    assert fixed <= ALLOWED
    assert peeked > 1.5 * ALLOWED
