"""FastV, PyramidDrop, SparseVLM, DART, OccamToken, CDPruner, atp-paper against their papers' rules, as plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sample
from atp.adapters import adapt
from atp.budget.cost import whole
from atp.errors import InvalidPlan
from atp.methods.atp_paper import ATPPaper
from atp.methods.base import METHODS, Method
from atp.methods.cdpruner import CDPruner, greedy_map
from atp.methods.dart import DART
from atp.methods.occamtoken import OccamToken
from atp.plan import Site
from atp.tokens import Tokens
from tiny import model


def kept(keep: Tensor, row: int) -> list[int]:
    return [int(i) for i in keep[row].nonzero().flatten()]


def choose(method: Method, made: Tokens, count: int) -> Tensor:
    return method.select(method.score(made), made, torch.full((len(made.alive),), count))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("fastv", (2,)),
        ("pyramiddrop", (8, 16, 24)),
        ("sparsevlm", (3, 7, 16)),
        ("dart", (2,)),
        ("divprune", (0,)),
        ("cdpruner", (0,)),
        ("atp-paper", (0,)),
    ],
)
def test_default_sites_are_those_of_the_paper_on_32_layers(name: str, layers: tuple[int, ...]) -> None:
    shape = adapt(model()).shape
    shape = replace(shape, language=replace(shape.language, layers=32))
    cls = METHODS.get(name)
    assert cls.default_sites(object.__new__(cls), shape) == tuple(Site("language", at) for at in layers)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize(("removed", "count"), [(0.5, 288), (0.667, 192), (0.778, 128), (0.889, 64)])
def test_fastv_counts_and_independent_rows(name: str, removed: float, count: int) -> None:
    """R = .5, .667, .778, .889 of 576 (the authors' code, which gives input 0's choice to all)."""
    assert whole(1 - removed, 576) == count
    made = sample.tokens(side=24, batch=2)
    keep = choose(METHODS.get(name)(), made, count)
    for row in range(2):
        assert kept(keep, row) == sorted(made.rows["last"].values[row, 0].topk(count).indices.tolist())


# --- CDPruner -----------------------------------------------------------------------------------------------------------


def test_cdpruner_equals_brute_force() -> None:
    """Greedy by conditional variance, computed anew at each pick: the same 64 of 576 (as the authors' code does)."""
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(576, 96, dtype=torch.float64), dim=1)
    relevance = torch.rand(576, dtype=torch.float64) + 0.05
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    found = greedy_map(kernel[None], relevance[None], torch.ones(1, 576, dtype=torch.bool), 64)[0].tolist()
    picks: list[int] = []
    for _ in range(64):
        rest = kernel.diagonal().clone()
        if picks:
            cross = kernel[picks]
            rest -= (cross * torch.linalg.solve(kernel[picks][:, picks], cross)).sum(0)
            rest[picks] = -1
        picks.append(int(rest.argmax()))
    assert found == picks


def test_cdpruner_finds_enough_where_the_kernel_has_low_rank() -> None:
    """Asked for 16 of a kernel of rank 6 the authors' code returns 14; with constant relevance it returns 2."""
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(2, 60, 6, dtype=torch.float64), dim=2)
    relevance = torch.rand(2, 60, dtype=torch.float64)
    kernel = relevance.unsqueeze(2) * (unit @ unit.transpose(1, 2)) * relevance.unsqueeze(1)
    found = greedy_map(kernel, relevance, torch.ones(2, 60, dtype=torch.bool), 16)
    assert [len(set(row)) for row in found.tolist()] == [16, 16]
    left = relevance[0].clone()
    left[found[0, :6]] = -1
    assert sorted(found[0, 6:].tolist()) == sorted(left.topk(10).indices.tolist())
    made = sample.tokens("constant")
    assert choose(CDPruner(), made, 20).sum(1).tolist() == [20] * 3


@pytest.mark.parametrize(
    ("space", "sign", "factor"),
    [("embeddings", "auto", 1), ("joint", "auto", -1), ("joint", "plus", 1), ("embeddings", "minus", -1)],
)
def test_cdpruner_relevance(space: str, sign: str, factor: int) -> None:
    made = sample.tokens(batch=2)
    scores = CDPruner(space=space, sign=sign).score(made)
    for row in range(2):
        if space == "joint":
            assert made.joint is not None
            cosine = torch.cosine_similarity(made.joint[0][row], made.joint[1][row], dim=1)
        else:
            words = made.text.embeddings[row][made.text.asks[row]]
            cosine = torch.stack([torch.cosine_similarity(made.hidden[row], word, dim=1) for word in words]).mean(0)
        cosine = factor * cosine
        torch.testing.assert_close(scores[row], (cosine - cosine.min() + 1e-6) / (cosine.max() - cosine.min()))


# --- DART ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "quota"), [(124, [15] * 8), (128, [16] * 4 + [15] * 4), (12, [1] * 8), (3, [0] * 8)])
def test_dart_keeps_what_is_least_like_its_pivots(count: int, quota: list[int]) -> None:
    """The port keeps 4 + 8 x 15 = 124 of 128; ours gives the four left over to the first pivots."""
    made = sample.tokens(batch=2, side=14)
    keep = choose(DART(), made, count)
    for row in range(2):
        norm = made.keys[row].flatten(1).abs().sum(1)
        said = made.text.keys[row].flatten(1).abs().sum(1).masked_fill(~made.text.valid[row], 0)  # type: ignore[index]
        own, words = norm.argsort(descending=True)[:4].tolist(), said.argsort(descending=True)[:4].tolist()
        chosen = set(own[: min(4, count)])
        for pivot, number in zip(
            [made.hidden[row, i] for i in own] + [made.text.hidden[row, i] for i in words], quota, strict=True
        ):
            cosine = torch.cosine_similarity(made.hidden[row], pivot, dim=1)
            chosen |= set([i for i in cosine.argsort().tolist() if i not in chosen][:number])
        assert kept(keep, row) == sorted(chosen)


# --- OccamToken ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["vision", "language"])
def test_occamtoken_counts_nest_and_zero_keeps_all(stack: str) -> None:
    made = sample.tokens("dead", stack)
    method = OccamToken(reference="register")
    scores = method.score(made)
    before = made.alive.sum(1)
    for threshold in (0.0, 0.3, 1.0, 3.0):
        found = method.count(scores, made, threshold)
        assert found is not None and bool((found <= before).all())
        if threshold == 0:
            assert torch.equal(found, before)
        rows = made.rows["class" if stack == "vision" else "question"]
        assert rows.register is not None
        bar = threshold * (rows.register * rows.valid).sum(1) / rows.valid.sum(1)
        assert found.tolist() == [int((scores[row][made.alive[row]] >= bar[row]).sum()) for row in range(3)]
        before = found
    assert int(before.sum()) < int(made.alive.sum())


def test_occamtoken_takes_the_word_that_looks_most() -> None:
    made = sample.tokens(batch=2)
    rows = made.rows["question"]
    want = torch.stack([rows.values[row][rows.valid[row]].max(0).values for row in range(2)])
    torch.testing.assert_close(OccamToken().score(made), want)
    assert OccamToken().count(want, made, 1.0) is None


def test_occamtoken_without_register_says_what_to_do() -> None:
    made = sample.tokens(stack="vision")
    made = replace(made, rows={"class": replace(made.rows["class"], register=None)})
    with pytest.raises(InvalidPlan, match=r"vision:2 has no register; use reference='mean'"):
        OccamToken(reference="register").count(OccamToken().score(made), made, 1.0)


# --- ATP as published ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["minmax", "zscore"])
@pytest.mark.parametrize("sign", ["plus", "minus"])
@pytest.mark.parametrize("space", ["embeddings", "joint"])
def test_atp_paper_mixes_two_normalised_scores(norm: str, sign: str, space: str) -> None:
    made = sample.tokens("dead", "language", 0)
    found = ATPPaper(alpha=0.3, sign=sign, norm=norm, space=space).score(made)
    for row in range(3):
        live = made.alive[row]
        if space == "joint":
            assert made.joint is not None
            cosine = torch.cosine_similarity(made.joint[0][row], made.joint[1][row], dim=1)
        else:
            question = made.text.embeddings[row][made.text.asks[row]].mean(0)
            cosine = torch.cosine_similarity(made.hidden[row], question, dim=1)
        assert made.carried is not None
        parts = [cosine[live] * (1 if sign == "plus" else -1), made.carried[row][live].double()]
        for index, part in enumerate(parts):
            scaled = (part - part.mean()) / part.std(correction=0)
            parts[index] = (part - part.min()) / (part.max() - part.min()) if norm == "minmax" else scaled
        torch.testing.assert_close(found[row][live].double(), 0.3 * parts[0] + 0.7 * parts[1], atol=1e-6, rtol=1e-5)


def test_atp_paper_without_text_ranks_like_fastervlm_and_without_attention_like_trim() -> None:
    made = sample.tokens(layer=0)
    assert made.carried is not None and made.joint is not None
    order = ATPPaper(alpha=0).score(made).argsort(1, descending=True)
    assert torch.equal(order, made.carried.argsort(1, descending=True))
    cosine = torch.cosine_similarity(made.joint[0], made.joint[1].unsqueeze(1), dim=2)
    for sign, want in (("plus", cosine), ("minus", -cosine)):
        order = ATPPaper(alpha=1, sign=sign, space="joint").score(replace(made, carried=None)).argsort(1, descending=True)
        assert torch.equal(order, want.argsort(1, descending=True))


def test_atp_paper_wants_the_tower_in_the_block() -> None:
    with pytest.raises(InvalidPlan, match="give pixel_values inside the block, or use alpha=1"):
        ATPPaper().score(sample.tokens(layer=0, carried=None))


@pytest.mark.parametrize("name", ["cdpruner", "atp-paper"])
def test_a_joint_space_must_be_there(name: str) -> None:
    made = sample.tokens(layer=0, _joint=None)
    with pytest.raises(InvalidPlan, match=f"{name}.*space='joint' needs a text encoder.*use space='embeddings'"):
        METHODS.get(name)(space="joint").score(made)
