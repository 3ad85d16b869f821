"""Scores on plain tensors: what each method prefers, and that no row knows another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tiny
from atp.adapters import adapt
from atp.errors import InvalidPlan, UnknownMethod
from atp.methods.atp import ATP, received
from atp.methods.base import relative, spelled, top
from atp.methods.controls import Random, Uniform
from atp.methods.fastv import FastV
from atp.methods.resize import places, smaller_grid
from atp.plan import Site
from atp.tokens import RATERS, Rows, Tokens

SIDE = 14
N = SIDE * SIDE


def some_rows(batch: int, raters: int, count: int, causal: bool = False) -> Rows:
    sees = torch.ones(batch, raters, count, dtype=torch.bool)
    if causal:
        sees = torch.arange(count) <= torch.linspace(0, count - 1, raters).long().unsqueeze(1)
        sees = sees.expand(batch, -1, -1)
    values = torch.rand(batch, raters, count, dtype=torch.float64).masked_fill(~sees, 0)
    return Rows(values, torch.ones(batch, raters, dtype=torch.bool), sees)


def tokens(batch: int = 2, stack: str = "language", layer: int = 2, side: int = SIDE, **changes: object) -> Tokens:
    count = side * side
    number = torch.arange(count)
    fields: dict[str, object] = {
        "stack": stack,
        "layer": layer,
        "alive": torch.ones(batch, count, dtype=torch.bool),
        "started": (count,) * batch,
        "position": torch.stack([number // side, number % side], 1),
        "image": torch.zeros(count, dtype=torch.int64),
        "grid": (side, side),
        "rows": {kind: some_rows(batch, 1 if kind in ("last", "class") else 5, count) for kind in RATERS},
    }
    return Tokens(**(fields | changes))  # type: ignore[arg-type]


def test_top_takes_the_highest_live_scores_and_breaks_ties_to_the_left() -> None:
    scores = torch.tensor([[1.0, 5.0, 5.0, 5.0, 0.0], [9.0, 1.0, 2.0, 3.0, 4.0]])
    alive = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], dtype=torch.bool)
    keep = top(scores, alive, torch.tensor([2, 3]))
    assert keep.int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 1]]


def test_relative_has_mean_one_over_live_tokens() -> None:
    alive = torch.tensor([[True, True, False]])
    assert relative(torch.tensor([[1.0, 3.0, 99.0]]), alive).tolist() == [[0.5, 1.5, 0.0]]
    assert relative(torch.zeros(1, 3), alive).tolist() == [[0.0] * 3]


def test_random_is_uniform_reproducible_and_differs_by_seed_layer_and_stack() -> None:
    score = Random().score(tokens())[0]
    assert abs(float(score.mean()) - 0.5) < 0.05
    assert abs(float(score.std()) - 12**-0.5) < 0.03
    assert len(score.unique()) == N
    assert torch.equal(score, Random().score(tokens(1))[0])
    others = [Random(seed=1).score(tokens())[0], Random().score(tokens(layer=3))[0], Random().score(tokens(stack="vision"))[0]]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([score, other]))[0, 1])) < 0.25


@pytest.mark.parametrize("count", [98, 49, 28, 12])
def test_uniform_leaves_no_hole_in_the_grid(count: int) -> None:
    made = tokens(1)
    keep = Uniform().select(Uniform().score(made), made, torch.tensor([count]))[0].view(SIDE, SIDE)
    assert int(keep.sum()) == count
    kept = keep.nonzero().double()
    every = torch.ones(SIDE, SIDE).nonzero().double()
    gap = torch.cdist(every, kept).min(1).values.max()
    assert gap <= 2.2 * math.sqrt(N / count)
    quadrants = [int(keep[a : a + 7, b : b + 7].sum()) for a in (0, 7) for b in (0, 7)]
    assert max(quadrants) - min(quadrants) <= max(2, 0.25 * count)


def test_uniform_keeps_the_class_token() -> None:
    position = torch.tensor([[-1, -1], [0, 0], [0, 1]])
    alive = torch.ones(1, 3, dtype=torch.bool)
    scores = Uniform().score(tokens(1, alive=alive, position=position))
    assert scores[0].argmax() == 0


def test_fastv_ranks_by_the_last_row_and_sits_at_layer_two() -> None:
    made = tokens()
    assert torch.equal(FastV().score(made), made.rows["last"].values[:, 0])
    assert FastV().default_sites(adapt(tiny.model()).shape) == (Site("language", 2),)


def test_atp_mixes_question_and_image() -> None:
    made = tokens()
    inter = relative(made.rows["question"].mean(), made.alive)
    intra = relative(received(made.rows["visual"]), made.alive)
    torch.testing.assert_close(ATP(alpha=0.3).score(made), 0.3 * inter + 0.7 * intra)
    torch.testing.assert_close(ATP(alpha=0.3).score(made).mean(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(ATP(alpha=0.3, intra="none").score(tokens(rows={"question": made.rows["question"]})), inter)
    assert ATP(intra="none").raters("language") == ATP(alpha=1).raters("language") == ("question",)
    carried = torch.rand(2, N)
    carried[:, 5] = torch.nan
    score = ATP(alpha=0.0, intra="carried").score(tokens(carried=carried, rows=made.rows))
    torch.testing.assert_close(score, relative(torch.where(carried.isnan(), 1.0, carried), made.alive), check_dtype=False)
    torch.testing.assert_close(ATP(alpha=0.0, intra="carried").score(made), intra)


def test_atp_in_the_tower_takes_the_class_row_or_else_what_is_received() -> None:
    made = tokens(stack="vision")
    torch.testing.assert_close(ATP().score(made), relative(made.rows["class"].mean(), made.alive))
    bare = tokens(stack="vision", rows={"visual": made.rows["visual"]})
    torch.testing.assert_close(ATP().score(bare), relative(received(made.rows["visual"]), made.alive))


def test_received_attention_does_not_favour_early_tokens() -> None:
    """Under a causal mask a flat row gives early tokens more raters and larger shares; neither may count."""
    sees = torch.ones(1, 8, 64, dtype=torch.bool).tril(diagonal=7)
    sees = (torch.arange(64) <= torch.arange(7, 64, 8).unsqueeze(1)).unsqueeze(0)
    flat = sees / sees.sum(2, keepdim=True)
    got: Tensor = received(Rows(flat, torch.ones(1, 8, dtype=torch.bool), sees))
    torch.testing.assert_close(got, torch.ones(1, 64))


def test_the_smaller_grid_and_its_places() -> None:
    assert [smaller_grid(14, keep) for keep in (1.0, 49 / 196, 0.3, 0.0001)] == [14, 7, 8, 1]
    for small in range(1, 15):
        where = places(14, small)
        assert len(set(where)) == small * small
        for index, place in enumerate(where):
            for axis, cell in ((place // 14, index // small), (place % 14, index % small)):
                assert abs((axis + 0.5) / 14 - (cell + 0.5) / small) <= 0.5 / 14 + 1e-9


@pytest.mark.parametrize(("options", "match"), [({"alpha": -0.1}, "share"), ({"alpha": True}, "share"), ({"intra": 1}, "one of")])
def test_bad_options(options: dict[str, object], match: str) -> None:
    with pytest.raises(InvalidPlan, match=match):
        ATP(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("coverage", [0.0, 0.3, 1.0])
def test_atp_covers_the_image_with_a_share_of_what_stays(coverage: float) -> None:
    made, counts = tokens(2, "vision"), torch.tensor([40, 7])
    scores = torch.rand(2, N, generator=torch.Generator().manual_seed(0))
    asked = tokens(2, "language")
    assert torch.equal(ATP(coverage=coverage).select(scores, asked, counts), top(scores, asked.alive, counts))
    keep = ATP(coverage=coverage, merge=False).select(scores, made, counts)
    assert keep.sum(1).tolist() == [40, 7]
    spread = [int(40 * coverage), int(7 * coverage)]
    best = top(scores, made.alive, counts - torch.tensor(spread))
    assert bool((keep | ~best).all()), "the best scores stay"
    if coverage == 0.0:
        assert torch.equal(keep, top(scores, made.alive, counts))
    if coverage == 1.0:
        assert torch.equal(keep, Uniform().select(Uniform().score(made), made, counts))
    if coverage == 0.3:
        quarters = (keep & ~best)[0].view(2, SIDE // 2, 2, SIDE // 2).sum((1, 3))
        assert quarters.min() >= 2, "every quarter of the image has some"


@pytest.mark.parametrize("coverage", [-0.1, 1.5, True, "much"])
def test_a_coverage_that_is_no_share(coverage: object) -> None:
    with pytest.raises(InvalidPlan, match=r"coverage is a share in .0, 1., got"):
        ATP(coverage=coverage)  # type: ignore[arg-type]


def test_atp_merges_like_tome_but_what_is_salient_goes_later() -> None:
    """Four patches in two equal pairs: the odd one of the less salient pair leaves; without protection, the first."""
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]).unsqueeze(2)
    alive = torch.ones(1, 4, dtype=torch.bool)
    made = Tokens(
        "vision", 2, alive, (4,), torch.zeros(1, 4, 2, dtype=torch.int64), torch.zeros(1, 4), (2, 2), _keys=lambda: keys
    )
    method, counts = ATP(protect=0.5), torch.tensor([3])
    first, last = torch.tensor([[1.0, 2.0, 1.0, 0.5]]), torch.tensor([[1.0, 0.5, 1.0, 2.0]])
    assert method.select(first, made, counts).tolist() == [[True, True, True, False]]
    assert method.select(last, made, counts).tolist() == [[True, False, True, True]]
    assert ATP(protect=0.0).select(first, made, counts).tolist() == [[True, False, True, True]]
    cost = method.measure(first, made)
    assert cost is not None
    torch.testing.assert_close(
        cost, torch.tensor([[3 + 2 * math.log(1e3), 0.5 * math.log(2e3), 3 + 2 * math.log(1e3), 0.5 * math.log(500)]])
    )
    hidden, keep = torch.tensor([[[1.0], [3.0], [5.0], [9.0]]]), torch.tensor([[True, True, True, False]])
    fused, sizes = method.fuse(hidden, keep, first, made)
    assert fused[0, :3, 0].tolist() == [1.0, 3.0, 7.0]
    assert sizes is not None and sizes[0, :3].tolist() == [1.0, 1.0, 2.0]
    assert ATP(merge=False).measure(first, made) is None and not ATP(merge=False).merges("vision")
    assert not method.merges("language")


def test_a_method_is_spelled_with_options() -> None:
    assert spelled("atp") == ("atp", {})
    assert spelled("tome:proportional=all") == ("tome", {"proportional": "all"})
    assert spelled("atp:merge=false+alpha=0.7") == ("atp", {"merge": False, "alpha": 0.7})
    assert spelled("fastv:sites=language:2/language:4") == ("fastv", {"sites": "language:2/language:4"})


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("nope:alpha=1", UnknownMethod, "nope"),
        ("atp:beta=1", InvalidPlan, r"'beta=1' is no option of 'atp', expected option=value with one of alpha, .*proportional"),
        ("atp:alpha", InvalidPlan, "'alpha' is no option"),
        ("atp:alpha=2", InvalidPlan, "alpha is a share"),
    ],
)
def test_a_method_is_misspelled(text: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        spelled(text)
