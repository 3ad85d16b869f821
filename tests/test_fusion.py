"""Merging against a plain loop."""

from __future__ import annotations

import torch

from atp.fusion import density_peaks, distances, merge_nearest, nearest_centre
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
