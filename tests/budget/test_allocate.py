"""allocate.py against a plain loop over rows, and its edges: ties, bounds, dtypes, padding, bad scores."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from atp.budget.allocate import allocate, fixed_counts
from atp.errors import AtpError, InvalidPlan
from atp.plan import Site, Step

SITE = Site("language", 3)


def adaptive(threshold: float, floor: float = 0.0, ceiling: float = 1.0) -> Step:
    return Step(SITE, 0.5, threshold, floor, ceiling)


def by_loop(scores: Tensor, alive: Tensor, step: Step, started: Tensor) -> list[int]:
    counts = []
    for row, live, total in zip(scores.double().tolist(), alive.tolist(), started.tolist(), strict=True):
        values = [value for value, is_live in zip(row, live, strict=True) if is_live]
        if not values:
            counts.append(0)
            continue
        bar = (step.threshold or 0.0) * math.fsum(values) / len(values)
        kept = sum(value >= bar * (1 - 1e-6) for value in values)
        kept = max(math.ceil(step.floor * total - 1e-6), kept)
        kept = min(math.floor(step.ceiling * total + 1e-6), kept)
        counts.append(min(len(values), max(1, kept)))
    return counts


@pytest.mark.parametrize("seed", range(40))
def test_equals_a_loop(seed: int) -> None:
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = draw.randint(1, 6), draw.randint(1, 60)
    scores = torch.rand(rows, columns, generator=generator).pow(draw.choice([1, 4]))
    if draw.random() < 0.3:
        scores = (scores * 3).round()  # ties and zeros
    alive = torch.rand(rows, columns, generator=generator) < draw.choice([0.3, 0.8, 1.0])
    started = alive.sum(1) + torch.randint(0, 10, (rows,), generator=generator)
    floor = draw.choice([0.0, 0.02, 0.3])
    step = adaptive(draw.choice([0.0, 0.5, 1.0, 1.7, 5.0]), floor, draw.choice([max(floor, 0.4), 1.0]))
    assert allocate(scores, alive, step, started).tolist() == by_loop(scores, alive, step, started)


@pytest.mark.parametrize("seed", range(10))
def test_rows_and_padding_do_not_matter(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(5, 40, generator=generator)
    alive = torch.rand(5, 40, generator=generator) < 0.7
    started = torch.full((5,), 40)
    together = allocate(scores, alive, adaptive(1.1), started)
    padded = torch.nn.functional.pad(scores, (0, 300), value=float("nan"))
    wide = allocate(padded, torch.nn.functional.pad(alive, (0, 300), value=False), adaptive(1.1), started)
    assert torch.equal(together, wide)
    for row in range(5):
        alone = allocate(
            scores[row, alive[row]][None], torch.ones(1, int(alive[row].sum()), dtype=torch.bool), adaptive(1.1), started[:1]
        )
        assert alone.tolist() == together[row : row + 1].tolist()


@pytest.mark.parametrize("seed", range(10))
def test_fixed_is_the_same_on_host_and_device(seed: int) -> None:
    draw = random.Random(seed)
    started = [draw.randint(0, 600) for _ in range(50)]
    alive = [draw.randint(0, n) for n in started]
    step = Step(SITE, draw.choice([0.0, 0.1, 0.25, 0.5, 7 / 13, draw.random(), 1.0]))
    mask = torch.arange(600)[None] < torch.tensor(alive)[:, None]
    tensor = allocate(torch.rand(50, 600), mask, step, torch.tensor(started))
    assert tensor.tolist() == fixed_counts(step, started, alive)
    assert tensor.dtype == torch.int64


def test_edges() -> None:
    ones, alive, started = torch.full((1, 10), 0.1), torch.ones(1, 10, dtype=torch.bool), torch.tensor([10])
    assert allocate(ones, alive, adaptive(1.0), started).tolist() == [10]  # equal scores lie on the bar, not below
    assert allocate(ones, alive, adaptive(1.5), started).tolist() == [1]  # never none
    assert allocate(ones, alive, adaptive(1.5, floor=0.25), started).tolist() == [3]
    assert allocate(ones, alive, adaptive(0.0, ceiling=0.45), started).tolist() == [4]
    assert allocate(ones * 0, alive, adaptive(2.0), started).tolist() == [10]  # zeros say nothing: keep all
    assert allocate(ones, ~alive, adaptive(1.0), started).tolist() == [0]
    few = torch.arange(10)[None] < 2
    assert allocate(ones, few, adaptive(9.0, floor=0.5), started).tolist() == [2]  # the floor cannot revive the dead


@pytest.mark.parametrize("columns", range(1, 30))
def test_equal_doubles_lie_on_their_rounded_mean(columns: int) -> None:
    scores = torch.full((1, columns), 0.1, dtype=torch.float64)  # three of them have a mean above 0.1
    alive = torch.ones(1, columns, dtype=torch.bool)
    assert allocate(scores, alive, adaptive(1.0), torch.tensor([columns])).tolist() == [columns]


def test_half_precision_neither_overflows_nor_underflows() -> None:
    big = torch.full((1, 4096), 60000.0, dtype=torch.float16)
    big[0, :7] = 30000.0
    started = torch.tensor([4096])
    assert allocate(big, torch.ones(1, 4096, dtype=torch.bool), adaptive(0.9), started).tolist() == [4089]
    tiny = torch.full((1, 4096), 6e-8, dtype=torch.float16)
    tiny[0, :7] = 1e-3
    assert allocate(tiny, torch.ones(1, 4096, dtype=torch.bool), adaptive(1.0), started).tolist() == [7]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_refused_and_named(value: float) -> None:
    scores, alive = torch.rand(3, 8), torch.ones(3, 8, dtype=torch.bool)
    scores[1, 2] = value
    with pytest.raises(AtpError, match=r"step at language:3: the scores of input \[1\] are NaN or infinite.*bfloat16"):
        allocate(scores, alive, adaptive(1.0), torch.full((3,), 8))
    alive[1, 2] = False
    assert allocate(scores, alive, adaptive(0.0), torch.full((3,), 8)).tolist() == [8, 7, 8]


def test_negative_scores_are_refused() -> None:
    with pytest.raises(InvalidPlan, match=r"needs scores >= 0, got -0.5; return e.g. `scores.softmax\(-1\)`"):
        allocate(torch.tensor([[1.0, -0.5]]), torch.ones(1, 2, dtype=torch.bool), adaptive(1.0), torch.tensor([2]))
    fixed = allocate(torch.tensor([[1.0, -0.5]]), torch.ones(1, 2, dtype=torch.bool), Step(SITE, 0.5), torch.tensor([2]))
    assert fixed.tolist() == [1]


def test_shapes_are_checked() -> None:
    with pytest.raises(AtpError, match=r"expects scores \[B, M\].* got \[4\], bool \[4\] and \[1\]"):
        allocate(torch.rand(4), torch.ones(4, dtype=torch.bool), adaptive(1.0), torch.tensor([4]))
    with pytest.raises(AtpError, match=r"got \[1, 4\], int64 \[1, 4\] and \[1\]"):
        allocate(torch.rand(1, 4), torch.ones(1, 4, dtype=torch.int64), adaptive(1.0), torch.tensor([4]))
