"""DivPrune against numbers of the authors' code on CPU, fp32, and against a plain fp64 loop."""

from __future__ import annotations

import torch
from torch import Tensor

import sample
from atp.methods.divprune import DivPrune, farthest
from atp.tokens import Tokens

FIRST = [418, 39, 195, 22, 80, 42, 240, 253]  # the authors' picks: seed 0, randn(576, 64), ratio .098
SECOND = [2, 33, 6, 49, 29, 34, 51, 41]  # randn(64, 16) that follows, ratio .25


def embedded(hidden: Tensor) -> Tokens:
    alive = torch.ones(hidden.shape[:2], dtype=torch.bool)
    return sample.tokens(batch=len(hidden), alive=alive, _hidden=lambda: hidden)


def order(hidden: Tensor, count: int) -> list[int]:
    made = embedded(hidden.unsqueeze(0))
    return [int(i) for i in farthest(1 - made.likeness, made.alive, count)[0]]


def oracle(hidden: Tensor, count: int) -> list[int]:
    unit = torch.nn.functional.normalize(hidden.double(), dim=1)
    apart = 1 - unit @ unit.T
    picks = [int(apart.sort(1).values[:, 1].argmax())]  # the smallest is the distance to itself
    while len(picks) < count:
        gap = apart[picks].min(0).values
        gap[picks] = -1
        picks.append(int(gap.argmax()))
    return picks


def test_picks_are_those_of_the_authors() -> None:
    torch.manual_seed(0)
    large, small = torch.randn(576, 64), torch.randn(64, 16)
    for hidden, count, known in ((large, 56, FIRST), (small, 16, SECOND)):
        found = order(hidden, count)
        assert found[: len(known)] == known
        assert found == oracle(hidden, count)
        made = embedded(hidden.unsqueeze(0))
        keep = DivPrune().select(DivPrune().score(made), made, torch.tensor([count]))
        assert keep[0].nonzero().flatten().tolist() == sorted(found)


def test_equal_tokens_are_taken_once() -> None:
    """The authors' code takes 12 tokens of which 8 are distinct; ours agrees up to its first repetition."""
    torch.manual_seed(0)
    distinct = torch.randn(8, 16)
    hidden = distinct.repeat(4, 1)
    found = order(hidden, 12)
    assert len(set(found)) == 12
    assert sorted(i % 8 for i in found[:8]) == list(range(8))
    assert order(torch.ones(20, 4), 8) == list(range(8))


def test_bfloat16_states_are_compared_in_float32() -> None:
    """The authors compare in the model's precision, where 192 of 576 picks overlap with those in fp64 in 89."""
    torch.manual_seed(0)
    hidden = torch.randn(576, 64).to(torch.bfloat16)
    assert len(set(order(hidden, 192)) & set(oracle(hidden, 192))) >= 190
