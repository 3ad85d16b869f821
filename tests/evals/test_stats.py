"""Paired bootstrap against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from atp.evals.stats import paired_bootstrap


def test_equal_scores_differ_by_nothing() -> None:
    scores = np.array([1.0, 0.0, 1.0, 1.0])
    found = paired_bootstrap(scores, scores, np.arange(4))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_mean_is_in_points_and_inside_its_interval() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random(500) < 0.8).astype(float), (rng.random(500) < 0.7).astype(float)
    found = paired_bootstrap(first, second, np.arange(500))
    assert found.mean == pytest.approx(100 * (first.mean() - second.mean()))
    assert found.low < found.mean < found.high
    half = 1.96 * 100 * (first - second).std() / np.sqrt(500)  # the normal interval
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)


def test_questions_of_one_image_are_resampled_together() -> None:
    first = np.repeat([1.0, 0.0] * 10, 20)  # 20 images that are right or wrong as a whole
    second = np.zeros_like(first)
    apart = paired_bootstrap(first, second, np.arange(400))
    together = paired_bootstrap(first, second, np.repeat(np.arange(20), 20))
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="equal, non-zero lengths, got 2, 1, 2"):
        paired_bootstrap(np.ones(2), np.ones(1), np.arange(2))
