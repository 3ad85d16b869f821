"""Corruption error, relative robustness, contrast pairs, caught intruders: against hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest

from atp.errors import BadInput
from atp.evals.robustness.metrics import Outcomes, compare
from atp.evals.robustness.probes import caught, contrast_scores
from atp.evals.stats import paired_bootstrap


def right(count: int, of: int = 10) -> np.ndarray:
    return (np.arange(of) < count).astype(float)


def scores(clean: int, **counts: tuple[int, ...]) -> Outcomes:
    """Outcomes of ten items of which so many are right, severities 1, 2, ... of each name."""
    cells = {(name, s): right(n) for name, row in counts.items() for s, n in enumerate(row, 1)}
    return Outcomes(right(clean), cells, np.arange(10))


def test_hand_worked() -> None:
    """Unpruned errs 4 + 6 of 20 under fog and 2 + 3 under noise; pruned 5 + 9 and 3 + 4; clean 1 and 2."""
    found = compare(scores(8, fog=(5, 1), noise=(7, 6)), scores(9, fog=(6, 4), noise=(8, 7)))
    assert found.by_name["fog"].mean == pytest.approx(140)
    assert found.by_name["noise"].mean == pytest.approx(140)
    assert found.mce.mean == pytest.approx(140)
    # on top of clean: pruned 14 - 4, 7 - 4; unpruned 10 - 2, 5 - 2
    assert found.left_out == ("noise",)  # 3 errors on top in ten items are not surely more than none
    assert found.relative_mce is not None and found.relative_mce.mean == pytest.approx(125)
    # accuracy under disturbance: pruned 19 / 40 of .8, unpruned 25 / 40 of .9
    assert found.retained == (pytest.approx(100 * 0.475 / 0.8), pytest.approx(100 * 0.625 / 0.9))
    assert found.retained_gap.mean == pytest.approx(found.retained[0] - found.retained[1])
    assert found.extra_drop.mean == pytest.approx(100 * ((0.8 - 0.475) - (0.9 - 0.625)))


def test_names_count_alike_whatever_their_severities() -> None:
    found = compare(scores(9, fog=(4,), noise=(8, 8, 8)), scores(9, fog=(7,), noise=(6, 6, 6)))
    assert found.mce.mean == pytest.approx((200 + 50) / 2)
    assert found.extra_drop.mean == pytest.approx(100 * (0.3 - 0.2) / 2)


def test_a_model_against_itself() -> None:
    same = scores(9, fog=(5, 2), noise=(6, 3))
    found = compare(same, same)
    assert (found.mce.mean, found.mce.low, found.mce.high) == (100, 100, 100)
    assert (found.retained_gap.low, found.retained_gap.high, found.extra_drop.mean) == (0, 0, 0)
    assert found.verdict == "undecided"


def test_resampling_is_that_of_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(5)
    numbers = np.repeat(np.arange(30), 4)
    groups = np.array([f"image {n:02}" for n in numbers])
    flat = np.ones(120)
    ours, theirs = (Outcomes(flat, {("fog", 1): (rng.random(120) < p).astype(float)}, groups) for p in (0.5, 0.7))
    found = compare(ours, theirs)  # with clean scores of one, the retained share is the accuracy itself
    expected = paired_bootstrap(ours.disturbed["fog", 1], theirs.disturbed["fog", 1], numbers)
    for side in ("mean", "low", "high"):
        assert getattr(found.retained_gap, side) == pytest.approx(getattr(expected, side))
    assert found.extra_drop.low == pytest.approx(-expected.high)


def test_interval_covers_the_true_ratio() -> None:
    """Error rates .4 and .2: the corruption error is 200; of 60 draws about 3 intervals should miss it."""
    missed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ours, theirs = (
            Outcomes(np.ones(200), {("fog", 1): (rng.random(200) >= p).astype(float)}, np.arange(200)) for p in (0.4, 0.2)
        )
        interval = compare(ours, theirs, samples=300, seed=seed).mce
        missed += not interval.low <= 200 <= interval.high
    assert missed <= 8


def drawn(clean: float, fog: float, seed: int) -> Outcomes:
    rng = np.random.default_rng(seed)
    return Outcomes((rng.random(800) < clean).astype(float), {("fog", 1): (rng.random(800) < fog).astype(float)}, np.arange(800))


def test_verdict() -> None:
    assert compare(drawn(0.9, 0.5, 0), drawn(0.9, 0.8, 1)).verdict == "less stable"
    assert compare(drawn(0.9, 0.8, 0), drawn(0.9, 0.5, 1)).verdict == "more stable"
    assert compare(drawn(0.85, 0.8, 0), drawn(0.9, 0.5, 1)).verdict == "more stable"
    assert compare(drawn(0.9, 0.8, 0), drawn(0.9, 0.8, 1)).verdict == "undecided"
    worse_from_the_start = compare(drawn(0.5, 0.35, 0), drawn(0.9, 0.65, 1))  # loses fewer points, keeps no larger share
    assert worse_from_the_start.extra_drop.high < 0 and worse_from_the_start.verdict == "less accurate"
    better_from_the_start = compare(drawn(0.9, 0.6, 0), drawn(0.5, 0.25, 1))  # keeps a larger share, loses as many points
    assert better_from_the_start.retained_gap.low > 0 and better_from_the_start.verdict == "undecided"
    turned = compare(drawn(0.5, 0.25, 1), drawn(0.9, 0.6, 0))
    assert turned.retained_gap.high < 0 and turned.verdict == "less accurate"
    with_more_to_lose = compare(drawn(0.9, 0.65, 1), drawn(0.5, 0.35, 0))
    assert with_more_to_lose.extra_drop.low > 0 and with_more_to_lose.verdict == "undecided"
    traded = compare(drawn(0.4, 0.4, 0), drawn(0.9, 0.2, 1))  # gains 20 points in fog for 50 in clear air
    assert traded.disturbed_gap.low > 0 and traded.retained_gap.low > 0 and traded.verdict == "undecided"


@pytest.mark.parametrize(
    ("clean", "fog", "verdict"), [(0.9, 0.7, "less accurate"), (0.9, 0.4, "undecided"), (0.9, 0.2, "undecided")]
)
def test_a_model_that_always_says_the_same_is_never_more_stable(clean: float, fog: float, verdict: str) -> None:
    """It is right on the same 40 % of the items whatever is done to them, so it loses nothing."""
    constant = drawn(0.4, 0.4, 0).clean
    collapsed = Outcomes(constant, {("fog", 1): constant}, np.arange(800))
    found = compare(collapsed, drawn(clean, fog, 1))
    assert found.extra_drop.high < 0 < found.retained_gap.low  # which alone used to be called more stable
    assert found.verdict == verdict


def test_absolute_scores_stand_beside_the_relative_ones() -> None:
    found = compare(scores(8, fog=(5, 1), noise=(7, 6)), scores(9, fog=(6, 4), noise=(8, 7)))
    assert found.disturbed == (pytest.approx(47.5), pytest.approx(62.5))
    assert found.clean_gap.mean == pytest.approx(-10) and found.disturbed_gap.mean == pytest.approx(-15)
    assert found.extra_drop.mean == pytest.approx(found.clean_gap.mean - found.disturbed_gap.mean)
    assert found.sum_gap.mean == pytest.approx(-25)


def test_no_name_is_left_for_the_relative_error() -> None:
    found = compare(scores(9, fog=(9,)), scores(9, fog=(9,)))
    assert found.relative_mce is None and found.left_out == ("fog",)


@pytest.mark.parametrize(
    ("pruned", "unpruned", "match"),
    [
        (scores(9, fog=(5,)), scores(9, fog=(5, 4)), "the same disturbances; only one of them has fog 2"),
        (scores(9, fog=(5,)), scores(9, fog=(10,)), "no error under fog, so there is nothing to divide by; leave fog out"),
        (scores(0, fog=(5,)), scores(9, fog=(5,)), "the pruned model answers no clean item right"),
        (scores(9, fog=(5,)), Outcomes(right(9), {("fog", 1): right(5)}, np.arange(10) // 2), "the same items in the same order"),
    ],
)
def test_settings_must_be_comparable(pruned: Outcomes, unpruned: Outcomes, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        compare(pruned, unpruned)


@pytest.mark.parametrize(
    ("clean", "disturbed", "groups", "match"),
    [
        (right(5), {}, np.arange(10), "at least one disturbance, got none"),
        (right(5), {("fog", 1): right(5, 9)}, np.arange(10), "fog 1 has 9 scores for 10 items"),
        (right(5), {("fog", 2): 100 * right(5)}, np.arange(10), r"scores of fog 2 must lie in 0..1; divide points by 100"),
        (right(5) * np.nan, {("fog", 2): right(5)}, np.arange(10), r"scores of clean 0 must lie in 0..1"),
        (right(5), {("fog", 1): right(5)}, np.arange(9), "a group for each of at least one item, got 9 for 10 items"),
    ],
)
def test_bad_scores_are_named(
    clean: np.ndarray, disturbed: dict[tuple[str, int], np.ndarray], groups: np.ndarray, match: str
) -> None:
    with pytest.raises(BadInput, match=match):
        Outcomes(clean, disturbed, groups)


def test_contrast_pairs() -> None:
    truths = [("yes", "no"), ("red", "blue"), ("2", "3"), ("no", "yes")]
    answers = [("yes", "no"), ("red", "red"), ("1", "3"), ("yes", "yes")]
    found = contrast_scores(answers, truths)
    assert (found.original, found.changed, found.both, found.unmoved) == (50, 75, 25, 50)


def test_pairs_without_contrast_are_named() -> None:
    with pytest.raises(BadInput, match="pair 1 has the true answer 'yes' twice"):
        contrast_scores([("a", "b")] * 2, [("yes", "no"), ("yes", "yes")])
    with pytest.raises(BadInput, match="at least one, got 1 and 0"):
        contrast_scores([("a", "b")], [])


def test_caught_holds_the_place_fixed() -> None:
    """Two questions: 1 of 1 and 1 of 2 wrong tokens pruned, 0 of 1 and 1 of 2 there before; others 1 of 3 and 0 of 2."""
    replaced = [[False, True, False, False], [True, False, True, False]]
    pruned = [[True, True, False, False], [True, False, False, False]]
    places = [[False, True, False], [True, False, True, False]]
    before = [[True, False, False], [False, False, True, True]]
    found = caught(replaced, pruned, places, before, np.arange(2))
    assert (found.replaced, found.before, found.others) == (75, 25, pytest.approx(100 / 6))
    assert found.gain.mean == pytest.approx(50)


def test_caught_names_the_question_that_does_not_fit() -> None:
    with pytest.raises(
        BadInput, match=r"question 0: 2 tokens in the mask of replaced tokens \(0 set\) and 2 in the mask of pruned"
    ):
        caught([[False, False]], [[True, False]], [[True]], [[True]], np.arange(1))
    with pytest.raises(BadInput, match="as many masks of replaced tokens as of pruned ones, got 1 and 0"):
        caught([[True]], [], [[True]], [[True]], np.arange(1))
