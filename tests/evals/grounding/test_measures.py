"""Shares, recall, pointing and GQA's score on selections whose numbers are known beforehand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from atp.evals.grounding.measures import attention, cover, drawn, expected, gqa, highest, measured, pointing
from atp.evals.tasks import gqa_rules

GRID = (2, 2)
COVERED = np.array([1.0, 0.5, 0.0, 0.1])
LEFT_HALF = [(0.0, 0.0, 0.5, 1.0)]  # patches 0 and 2


def kept(*numbers: int) -> np.ndarray:
    return np.isin(np.arange(4), numbers)


def test_cover_is_the_share_of_a_patchs_area() -> None:
    mask = np.zeros((4, 8), dtype=bool)
    mask[:2, :4] = True  # all of patch 0
    mask[0, 4:] = True  # the upper half of patch 1
    assert cover(mask, (2, 2)).tolist() == [1.0, 0.5, 0.0, 0.0]
    # the right half is all that the model sees: its upper quarter
    assert cover(mask, (2, 1), box=(4.0, 0.0, 8.0, 4.0)).tolist() == [0.5, 0.0]
    # patches that do not divide the image share its pixels
    assert cover(np.tri(3, dtype=bool), (1, 2)).tolist() == pytest.approx([(3 + 2 / 2) / 4.5, (1 + 2 / 2) / 4.5])


def test_known_selection() -> None:
    found = measured(COVERED, GRID, LEFT_HALF, kept(0, 1), np.array([0.1, 0.3, np.nan, 0.2]))
    assert found["share"] == 0.75
    assert found["recall"] == pytest.approx(1.5 / 1.6)
    assert found["pointing"] == 1.0  # patch 1 is half covered
    assert found["gqa"] == pytest.approx(0.25)  # 0.1 of the 0.4 that is kept


def test_pointing_takes_live_patches_and_means_over_equal_ones() -> None:
    scores = np.array([0.5, 0.5, 0.9, 0.1])
    assert pointing(COVERED, scores, kept(0, 1, 3)) == 1.0  # the highest has left before
    assert pointing(COVERED, scores, kept(0, 1, 2, 3)) == 0.0
    assert pointing(COVERED, np.ones(4), kept(0, 1, 2, 3)) == 0.5  # a tenth is no hit
    assert np.isnan(pointing(COVERED, None, kept(0)))
    assert np.isnan(pointing(COVERED, np.full(4, np.nan), kept(0)))


def test_nothing_kept_and_nothing_named() -> None:
    found = measured(COVERED, GRID, [], kept(), np.ones(4))
    assert np.isnan(found["share"]) and np.isnan(found["gqa"])
    assert found["recall"] == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_chance_is_the_mean_of_all_selections(count: int) -> None:
    """Without scores to weigh by, over every set of `count` patches."""
    sets = [measured(COVERED, GRID, LEFT_HALF, kept(*chosen)) for chosen in combinations(range(4), count)]
    blind = expected(COVERED, GRID, LEFT_HALF, count)
    for name in ("share", "recall", "gqa"):
        assert np.mean([found[name] for found in sets]) == pytest.approx(blind[name], abs=1e-12), name
    assert blind["pointing"] == 0.5


def test_draws_agree_with_chance() -> None:
    draws = [drawn(COVERED, GRID, LEFT_HALF, 2, np.random.default_rng(seed)) for seed in range(1500)]
    for name, value in expected(COVERED, GRID, LEFT_HALF, 2).items():
        assert np.mean([found[name] for found in draws]) == pytest.approx(value, abs=0.04), name


def test_gqa_is_the_official_rule_over_the_grid() -> None:
    """The rule's map has x first; ours are rows from the top left."""
    weights = np.random.default_rng(0).dirichlet(np.ones(9))
    regions = [(0.0, 0.1, 0.4, 0.5), (0.5, 0.0, 1.0, 0.3)]
    assert gqa(weights, (3, 3), regions) == pytest.approx(gqa_rules.grounding(regions, weights.reshape(3, 3).T), abs=1e-12)
    assert gqa(np.full(6, 1 / 6), (2, 3), [(0.0, 0.0, 1.0, 0.5)]) == pytest.approx(0.5)


def test_attention_sums_to_one_over_what_is_kept() -> None:
    assert attention(np.array([3.0, 1.0, 9.0, -5.0]), kept(0, 1, 3)).tolist() == [0.75, 0.25, 0.0, 0.0]
    assert attention(np.array([-1.0, -2.0, 0.0, 0.0]), kept(0, 1)).tolist() == [0.5, 0.5, 0.0, 0.0]
    assert attention(None, kept(2)).tolist() == [0.0, 0.0, 1.0, 0.0]


def test_highest_takes_the_earlier_of_equals() -> None:
    assert highest(np.array([0.2, 0.7, 0.7, 0.7]), 2).tolist() == [False, True, True, False]
