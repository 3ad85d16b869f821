"""FasterVLM, VisPruner, EViT, VisionZip, ToMe, PruMerge against their papers' rules, written out as plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sample
from atp.adapters import adapt
from atp.methods.base import METHODS, Method, received
from atp.methods.evit import EViT
from atp.methods.prumerge import PruMerge, neighbours, outliers
from atp.methods.tome import ToMe
from atp.methods.visionzip import VisionZip
from atp.methods.vispruner import VisPruner
from atp.plan import Site
from atp.tokens import Rows, Tokens
from tiny import model


def tower(batch: int = 2, side: int = 14, width: int = 64, heads: int = 4, seed: int = 0) -> Tokens:
    return sample.tokens(stack="vision", batch=batch, side=side, width=width, heads=heads, seed=seed)


def run(method: Method, made: Tokens, count: int) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.full((len(made.alive),), count)
    scores = method.score(made)
    keep = method.select(scores, made, counts)
    return scores, keep, method.fuse(made.hidden, keep, scores, made)[0]


def kept(keep: Tensor, row: int) -> list[int]:
    return [int(i) for i in keep[row].nonzero().flatten()]


@pytest.mark.parametrize("name", ["fastervlm", "vispruner", "visionzip", "prumerge"])
def test_they_act_on_what_llava_takes_its_features_from(name: str) -> None:
    """A tower of 24 layers: the input of layer 23 is the output of 22, `hidden_states[-2]`."""
    shape = adapt(model()).shape
    shape = replace(shape, vision=replace(shape.vision, layers=24))
    assert METHODS.get(name)().default_sites(shape) == (Site("vision", 23),)


@pytest.mark.parametrize("name", ["fastervlm", "vispruner", "visionzip", "evit", "prumerge", "occamtoken", "atp-paper"])
def test_the_score_is_the_class_row_or_what_is_received(name: str) -> None:
    made = tower()
    torch.testing.assert_close(METHODS.get(name)().score(made), made.rows["class"].values[:, 0])
    bare = sample.tokens(stack="vision", cls=False)
    torch.testing.assert_close(METHODS.get(name)().score(bare), received(bare.rows["visual"]))


@pytest.mark.parametrize(("count", "share"), [(64, 0.5), (33, 0.5), (40, 0.8), (20, 0.0), (20, 1.0)])
def test_vispruner_thins_the_rest_in_rounds(count: int, share: float) -> None:
    made = tower(side=12)
    scores, keep, _ = run(VisPruner(important=share), made, count)
    for row in range(2):
        unit = torch.nn.functional.normalize(made.hidden[row], dim=1)
        likeness = (unit @ unit.T).tolist()
        order = scores[row].argsort(descending=True).tolist()
        best, rest = order[: int(count * share)], order[int(count * share) :]
        while len(rest) > count - len(best):
            even, odd = rest[::2], rest[1::2]
            close = {i: max((likeness[i][j] for j in odd), default=0) for i in even}
            gone = sorted(even, key=lambda i: -close[i])[: min(8, len(rest) - count + len(best))]
            rest = [i for i in rest if i not in gone]
        assert kept(keep, row) == sorted(best + rest)


def test_evit_fuses_with_raw_attention() -> None:
    """196 patches at keep rate .7 are 138 and the fused one (with the class token 197 -> 140, the authors' block)."""
    made = tower()
    count = math.ceil(0.7 * 196) + 1
    assert count == 139
    scores, keep, fused = run(EViT(), made, count)
    for row in range(2):
        order = scores[row].argsort(descending=True).tolist()
        assert kept(keep, row) == sorted(order[:139])
        want = sum(scores[row, i] * made.hidden[row, i] for i in order[138:])
        torch.testing.assert_close(fused[row, order[138]], want)
        torch.testing.assert_close(fused[row, order[:138]], made.hidden[row, order[:138]])
    assert float(scores.sum(1).max()) <= 1 + 1e-9


@pytest.mark.parametrize(("count", "targets"), [(64, 10), (128, 20), (192, 30)])
def test_visionzip_splits_the_budget_as_the_authors(count: int, targets: int) -> None:
    alive, scores = torch.ones(1, 576, dtype=torch.bool), torch.rand(1, 576)
    assert int(VisionZip().dominant(scores, alive, torch.tensor([count])).sum()) == count - targets


@pytest.mark.parametrize("count", [64, 20, 195])
def test_visionzip_adds_the_mean_of_its_members_to_a_target(count: int) -> None:
    made = tower()
    scores, keep, fused = run(VisionZip(), made, count)
    share = int(count * 5 / 32 + 0.5)
    for row in range(2):
        best = scores[row].argsort(descending=True).tolist()[: count - share]
        rest = [i for i in range(196) if i not in best]
        targets = rest[:: max(1, len(rest) // share)][:share]
        assert kept(keep, row) == sorted(best + targets)
        metric = torch.nn.functional.normalize(made.keys[row].mean(1), dim=-1)
        likeness = (metric @ metric.T).tolist()
        groups: dict[int, list[int]] = {t: [] for t in targets}
        for i in rest:
            if i not in targets:
                groups[max(targets, key=lambda t: likeness[i][t])].append(i)
        for t, members in groups.items():
            want = made.hidden[row, t] + (made.hidden[row, members].mean(0) if members else 0)
            torch.testing.assert_close(fused[row, t], want)
        torch.testing.assert_close(fused[row, best], made.hidden[row, best])


def test_tome_merges_as_the_authors_with_a_class_token() -> None:
    """r = 16 of 197: 181 are left, sizes sum to 197, sum of size x state is conserved (their code; here without class token)."""
    made = tower()
    scores, keep, fused = run(ToMe(), made, 180)
    sizes = ToMe().fuse(made.hidden, keep, scores, made)[1]
    assert (sizes * keep).sum(1).tolist() == [196, 196]
    torch.testing.assert_close((fused * (sizes * keep).unsqueeze(-1)).sum(1), made.hidden.sum(1))
    for row in range(2):
        metric = torch.nn.functional.normalize(made.keys[row].mean(1), dim=-1)
        likeness = (metric @ metric.T).tolist()
        a, b = range(1, 196, 2), range(0, 196, 2)  # the class token is the first of set a
        pairs = {i: max(b, key=lambda j: likeness[i][j]) for i in a}
        gone = sorted(a, key=lambda i: -likeness[i][pairs[i]])[:16]
        assert kept(keep, row) == [i for i in range(196) if i not in gone]
        for j in b:
            members = [j] + [i for i in gone if pairs[i] == j]
            torch.testing.assert_close(fused[row, j], made.hidden[row, members].mean(0))


def test_tome_weighs_by_size_and_merges_on_in_rounds() -> None:
    made = tower(side=4)
    made = replace(made, sizes=torch.rand(2, 16, dtype=torch.float64) * 5 + 1)
    assert made.sizes is not None
    for count in (8, 5, 1):
        scores, keep, fused = run(ToMe(), made, count)
        sizes = ToMe().fuse(made.hidden, keep, scores, made)[1]
        torch.testing.assert_close((sizes * keep).sum(1), made.sizes.sum(1))
        heavy = (made.hidden * made.sizes.unsqueeze(-1)).sum(1)
        torch.testing.assert_close((fused * (sizes * keep).unsqueeze(-1)).sum(1), heavy)
    assert kept(keep, 0) == [0]


def test_tome_halves_at_most_in_one_round() -> None:
    """As many as possible leave 99 of 197, the class token included (the authors' code)."""
    made = tower()
    matching = made.matched(torch.tensor([98, 98]))
    assert kept(matching.keep, 0) == list(range(0, 196, 2))
    assert bool(matching.keep.gather(1, matching.into).all())


def test_outliers_are_those_above_the_upper_fence() -> None:
    """[1..8, 100, 200] -> ratio .2, a constant vector -> 0 (the authors' code)."""
    scores = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 100, 200], [3.0] * 10])
    assert outliers(scores, torch.ones(2, 10, dtype=torch.bool)).tolist() == [2, 0]
    wide = torch.cat([scores, torch.full((2, 3), 1e6)], 1)
    assert outliers(wide, torch.arange(13).expand(2, -1) < 10).tolist() == [2, 0]


def test_prumerge_counts_its_outliers_image_by_image() -> None:
    made = sample.tokens(stack="vision", side=24)
    scores = torch.rand(3, 576)
    scores[0, :20], scores[1, :70] = 50, 50
    rows = {"class": Rows(scores.unsqueeze(1), torch.ones(3, 1, dtype=torch.bool), torch.ones(3, 1, 576, dtype=torch.bool))}
    made = replace(made, rows=rows)
    assert PruMerge(grid=0).count(scores, made, 1.0).tolist() == [21, 71, 1]
    assert PruMerge().count(scores, made, 1.0).tolist() == [41, 141, 1]
    assert PruMerge().count(scores, made, 0.5).tolist() == [21, 71, 1]
    assert PruMerge(grid=0.75).count(scores, made, 1.0).tolist() == [81, 281, 1]


@pytest.mark.parametrize("count", [73, 145, 129, 65, 2, 195])
@pytest.mark.parametrize("grid", [0, 0.5, 0.75])
def test_prumerge_adds_neighbours_and_one_token_of_the_rest(count: int, grid: float) -> None:
    """At 1/8 the authors keep 72 and the extra one, 73; with the grid 145, 129, 65 at 1/8, 1/9, 1/18 of 576."""
    made = tower(side=14)
    scores, keep, fused = run(PruMerge(grid=grid), made, count)
    method, alive, counts = PruMerge(grid=grid), made.alive, torch.full((2,), count)
    picks = method.picks(scores, alive, counts)
    for row in range(2):
        chosen = kept(picks, row)
        assert len(chosen) == count - 1
        best = scores[row].argsort(descending=True).tolist()
        number = count - 1 - int((count - 1) * grid)
        assert set(best[:number]) <= set(chosen)
        left = [i for i in best if i not in chosen]
        assert kept(keep, row) == sorted([*chosen, left[0]])
        keys = torch.nn.functional.normalize(made.keys[row].flatten(1), dim=-1)
        likeness = (keys @ keys.T).tolist()
        for i in chosen[:3]:
            near = sorted((j for j in range(196) if j != i), key=lambda j: -likeness[i][j])[:32]
            want = made.hidden[row, i] + sum(scores[row, j] * made.hidden[row, j] for j in near)
            torch.testing.assert_close(fused[row, i], want)
        torch.testing.assert_close(fused[row, left[0]], sum(scores[row, j] * made.hidden[row, j] for j in left))


def test_prumerge_grid_is_even() -> None:
    scores = torch.zeros(1, 576)
    picks = PruMerge().picks(scores, torch.ones(1, 576, dtype=torch.bool), torch.tensor([65]))
    gaps = picks[0, 32:].nonzero().flatten().diff()
    assert int(gaps.min()) >= 16 and int(gaps.max()) <= 18


def test_neighbours_are_live_and_never_oneself() -> None:
    alive = torch.rand(2, 50) < 0.5
    near = neighbours(torch.zeros(2, 50, 4), alive, torch.arange(50).expand(2, -1))
    assert not near.diagonal(dim1=1, dim2=2).any()
    assert near.sum(2).amax() <= 32
    assert not (near & ~alive.unsqueeze(1)).any()
