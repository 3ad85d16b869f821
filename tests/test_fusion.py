"""Merging against a plain loop."""

from __future__ import annotations

import pytest
import torch

from atp.fusion import Crowd, density_peaks, distances, halve, match, matching_flops, merge_nearest, nearest_centre
from atp.subset import build


def test_dropped_tokens_go_to_their_nearest_survivor() -> None:
    torch.manual_seed(0)
    live = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 1, 0, 1]], dtype=torch.bool)
    dropped = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    full = torch.randn(2, 5, 3, dtype=torch.float64)
    made = merge_nearest(full, build(live, [3, 2]), dropped)
    for row, kept in enumerate(([0, 2, 4], [2, 4])):
        groups: dict[int, list[int]] = {k: [k] for k in kept}
        for gone in dropped[row].nonzero().flatten().tolist():
            groups[max(kept, key=lambda k: float(torch.cosine_similarity(full[row, gone], full[row, k], 0)))].append(gone)
        want = torch.stack([full[row, members].mean(0) for members in groups.values()])
        torch.testing.assert_close(made[row, -len(kept) :], want)


def test_nothing_dropped_is_a_gather() -> None:
    full = torch.randn(1, 4, 2)
    subset = build(torch.tensor([[True, False, True, True]]), [3])
    assert torch.equal(merge_nearest(full, subset, torch.zeros(1, 4, dtype=torch.bool)), full[:, [0, 2, 3]])


def test_density_peaks_find_separate_blobs() -> None:
    """Three blobs of ten points: the clusters' means are the blobs' (the authors' code, 2e-5)."""
    torch.manual_seed(0)
    blobs = 20 * torch.randn(3, 1, 16) + 0.1 * torch.randn(3, 10, 16)
    points = blobs.reshape(1, 30, 16)[:, torch.randperm(30)]
    apart = distances(points)
    centres = density_peaks(apart / 4, torch.ones(1, 30, dtype=torch.bool), torch.tensor([3]))
    into = nearest_centre(apart, centres)[0]
    means = sorted(points[0, into == c].mean(0).tolist() for c in centres[0].nonzero().flatten())
    torch.testing.assert_close(torch.tensor(means), torch.tensor(sorted(blobs.mean(1).tolist())), atol=2e-5, rtol=0)


def test_distances_are_those_of_torch_and_invalid_points_are_no_centres() -> None:
    points = torch.randn(2, 12, 5, dtype=torch.float64)
    apart = distances(points)
    torch.testing.assert_close(apart, torch.cdist(points, points))
    valid = torch.arange(12) < torch.tensor([[7], [12]])
    centres = density_peaks(apart, valid, torch.tensor([7, 3]))
    assert centres.sum(1).tolist() == [7, 3]
    assert not (centres & ~valid).any()
    alone = density_peaks(apart[:1, :7, :7], valid[:1, :7], torch.tensor([7]))
    assert torch.equal(alone[0], centres[0, :7])


def paired(unit: torch.Tensor, alive: list[int], count: int, ease: list[float], window: int) -> tuple[list[int], dict[int, int]]:
    """Who stays, and who went where: rounds over one row, in plain loops."""
    into = {i: i for i in alive}
    while len(alive) > count:
        even, odd = alive[0::2], alive[1::2]
        best = {}
        for rank, i in enumerate(odd):
            near = even[rank // window * window :][:window]
            best[i] = max(near, key=lambda j: float(unit[i] @ unit[j]))
        goes = sorted(odd, key=lambda i: -(float(unit[i] @ unit[best[i]]) + ease[i]))[: len(alive) - count]
        into = {i: best.get(to, to) if to in goes else to for i, to in into.items()}
        alive = [i for i in alive if i not in goes]
    return alive, into


@pytest.mark.parametrize("window", [None, 2, 4])
@pytest.mark.parametrize("counts", [(9, 7), (5, 5), (1, 2)])
def test_matching_is_that_of_plain_loops(counts: tuple[int, int], window: int | None) -> None:
    torch.manual_seed(1)
    unit = torch.nn.functional.normalize(torch.randn(2, 17, 4, dtype=torch.float64), dim=-1)
    alive, ease = torch.ones(2, 17, dtype=torch.bool), torch.rand(2, 17, dtype=torch.float64)
    alive[0, [0, 3, 4, 11]] = alive[1, [1, 2, 16, 9, 10]] = False
    for crowd in (None, Crowd((13, 12)), Crowd((13, 12), counts)):
        made = match(unit, alive, torch.tensor(counts), ease, crowd, window)
        for row in range(2):
            there = alive[row].nonzero().flatten().tolist()
            stay, into = paired(unit[row], there, counts[row], ease[row].tolist(), window or 17)
            assert made.keep[row].nonzero().flatten().tolist() == stay
            assert {i: int(made.into[row, i]) for i in there} == into


def test_halves_tell_the_nearest_of_the_other_half() -> None:
    torch.manual_seed(2)
    unit = torch.nn.functional.normalize(torch.randn(1, 9, 3, dtype=torch.float64), dim=-1)
    alive = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0, 1]], dtype=torch.bool)
    halves = halve(unit, alive, Crowd((7,)))
    even, odd = [0, 3, 5, 8], [1, 4, 6]
    likeness = unit[0] @ unit[0].T
    assert halves.odd.tolist() == [odd] and halves.even.tolist() == [even]
    torch.testing.assert_close(halves.best[0], likeness[odd][:, even].amax(1))
    torch.testing.assert_close(halves.found()[0], likeness[odd][:, even].amax(0))
    assert halves.partner[0].tolist() == [even[i] for i in likeness[odd][:, even].argmax(1).tolist()]


def test_work_of_matching() -> None:
    """10 -> 5 -> 3: 5 x 5 products, then 2 x 3; a window of 2 compares with 2 each."""
    assert matching_flops(10, 3, 1) == 2 * (5 * 5 + 2 * 3)
    assert matching_flops(10, 3, 4, window=2) == 2 * 4 * (5 * 2 + 2 * 2)
    assert matching_flops(10, 10, 4) == 0
