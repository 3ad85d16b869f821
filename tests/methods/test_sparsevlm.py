"""SparseVLM against the numbers of the authors' code and its rules, written out as plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sample
from atp.methods.base import Method
from atp.methods.sparsevlm import SparseVLM, clusters, raters, without_clusters
from atp.tokens import Rows, Tokens


def kept(keep: Tensor, row: int) -> list[int]:
    return [int(i) for i in keep[row].nonzero().flatten()]


def choose(method: Method, made: Tokens, count: int) -> Tensor:
    return method.select(method.score(made), made, torch.full((len(made.alive),), count))


def rated(batch: int, words: int, count: int = 576) -> Tokens:
    """Tokens whose words are all raters: equal embeddings, so none is above the mean."""
    torch.manual_seed(0)
    values = (2 * torch.randn(batch, 8, words, count)).softmax(-1).mean(1)
    seen = torch.ones(batch, words, count, dtype=torch.bool)
    rows = {"question": Rows(values, torch.ones(batch, words, dtype=torch.bool), seen, torch.ones(batch, words, 16))}
    return replace(sample.tokens(batch=batch, side=24), rows=rows)


def test_sparsevlm_ranks_by_the_mean_row_on_any_batch() -> None:
    """300 of 576 by 25 rater rows; with two inputs the authors' masks sum to [300, 0] instead of 300 each."""
    made = rated(2, 25)
    scores = SparseVLM().score(made)
    torch.testing.assert_close(scores, made.rows["question"].values.mean(1))
    keep = choose(SparseVLM(recycle=False), made, 300)
    for row in range(2):
        assert kept(keep, row) == sorted(scores[row].topk(300).indices.tolist())


def test_sparsevlm_raters_are_above_the_mean() -> None:
    made = sample.tokens(batch=2, side=6)
    rows = made.rows["question"]
    assert rows.embeddings is not None
    chosen = raters(rows, made)
    for row in range(2):
        count = int(rows.valid[row].sum())
        share = (made.embeddings[row] @ rows.embeddings[row, :count].T).softmax(1).mean(0)
        assert chosen[row, :count].tolist() == (share > share.mean()).tolist()
        assert not chosen[row, count:].any()
        want = rows.values[row, :count][share > share.mean()].mean(0)
        torch.testing.assert_close(SparseVLM().score(made)[row], want)


@pytest.mark.parametrize(("words", "count"), [(3, 40), (10, 135), (25, 337), (40, 540), (60, 575)])
def test_sparsevlm_rank_rule_counts_words(words: int, count: int) -> None:
    """int(13.5 x raters), at most 575 (version 1.0 of the authors' code on 8 heads and 576 tokens)."""
    made = rated(1, words)
    method = SparseVLM(rank=True, recycle=False)
    found = method.count(method.score(made), made, 13.5)
    assert found is not None and found.tolist() == [count]
    assert SparseVLM().count(method.score(made), made, 13.5) is None


def test_sparsevlm_rank_rule_sees_a_repeated_word() -> None:
    """25 rows of which two are equal have rank 24: 324 tokens (the authors' code)."""
    made = rated(1, 25)
    made.rows["question"].values[0, 7] = made.rows["question"].values[0, 3]
    method = SparseVLM(rank=True, recycle=False)
    found = method.count(method.score(made), made, 13.5)
    assert found is not None and found.tolist() == [324]


@pytest.mark.parametrize(
    ("lists", "with_clusters"),
    [
        ((300, 200, 110), (309, 204, 113)),
        ((303, 110, 36), (312, 117, 39)),
        ((238, 48, 26), (249, 55, 27)),
        ((66, 30, 17), (82, 32, 18)),
    ],
)
def test_sparsevlm_stage_counts_with_recycling(lists: tuple[int, ...], with_clusters: tuple[int, ...]) -> None:
    """The authors' lists for 192, 128, 96, 64 tokens, and what their rules make of them."""
    alive = 576
    for alone, total in zip(lists, with_clusters, strict=True):
        assert alone + int(clusters(torch.tensor(alive - alone))) == total
        found = int(without_clusters(torch.tensor([alive]), torch.tensor([total]), 576))
        assert found + int(clusters(torch.tensor(alive - found))) == total and found >= alone
        alive = total


def test_every_count_can_be_split_into_tokens_and_clusters() -> None:
    for alive in (1, 2, 9, 60, 576):
        counts = torch.arange(1, alive + 1)
        found = without_clusters(torch.full_like(counts, alive), counts, 576)
        for count, alone in zip(counts.tolist(), found.tolist(), strict=True):
            extra = int(clusters(torch.tensor(alive - alone)))
            assert alone + extra == count or alone == count


def authors_clusters(points: Tensor, count: int) -> list[int]:
    """DPC-kNN centres as the paper's rules have them, without noise."""
    apart = torch.cdist(points, points) / points.shape[1] ** 0.5
    density = (-apart.topk(count, largest=False).values.square().mean(1)).exp()
    peak = []
    for i in range(len(points)):
        denser = [float(apart[i, j]) for j in range(len(points)) if density[j] > density[i]]
        peak.append(float(density[i]) * (min(denser) if denser else float(apart.max())))
    return sorted(sorted(range(len(points)), key=lambda i: -peak[i])[:count])


def test_sparsevlm_recycles_clusters_of_the_best_that_leave() -> None:
    made = sample.tokens(batch=2, side=12, width=64)
    method, count = SparseVLM(), 60
    scores = method.score(made)
    keep = choose(method, made, count)
    fused, _ = method.fuse(made.hidden, keep, scores, made)
    alone = next(k for k in range(60, 0, -1) if k + int(clusters(torch.tensor(144 - k))) == count)
    for row in range(2):
        order = scores[row].argsort(descending=True).tolist()
        best, pool = order[:alone], order[alone : alone + 3 * (144 - alone) // 10 + 1]
        points = made.hidden[row, pool]
        centres = [pool[i] for i in authors_clusters(points, count - alone)]
        assert kept(keep, row) == sorted(best + centres)
        own = {i: min(centres, key=lambda c: float((made.hidden[row, i] - made.hidden[row, c]).norm())) for i in pool}
        for c in centres:
            members = [i for i in pool if own[i] == c]
            torch.testing.assert_close(fused[row, c], made.hidden[row, members].mean(0))
        torch.testing.assert_close(fused[row, best], made.hidden[row, best])
