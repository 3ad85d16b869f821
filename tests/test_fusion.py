"""Merging against a plain loop."""

from __future__ import annotations

import torch

from atp.fusion import merge_nearest
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
