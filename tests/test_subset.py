"""Gather, scatter and masks against plain loops."""

from __future__ import annotations

import pytest
import torch

from atp import subset
from atp.subset import build, weighted

LIVE = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 1]], dtype=torch.bool)
LOW = torch.finfo(torch.float64).min


def test_rows_are_right_aligned_and_distinct() -> None:
    made = build(LIVE, [4, 2])
    assert made.rows.tolist()[0] == [0, 2, 3, 5]
    assert made.rows[1, 2:].tolist() == [2, 5]
    assert len(set(made.rows[1].tolist())) == 4
    assert made.valid is not None
    assert made.valid.tolist() == [[True] * 4, [False, False, True, True]]
    assert build(LIVE[:, [0, 1, 2, 5]], [3, 2]).size == 3


def test_equal_counts_need_no_mask() -> None:
    made = build(LIVE[:1], [4])
    assert made.valid is None
    assert subset.gather(torch.arange(6).view(1, 6, 1), made).flatten().tolist() == [0, 2, 3, 5]


def test_scatter_undoes_gather_and_leaves_padding_alone() -> None:
    made = build(LIVE, [4, 2])
    full = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    part = subset.gather(full, made)
    assert torch.equal(subset.scatter(full, part, made), full)
    wide = subset.scatter(full, part + 1, made)
    assert torch.equal(wide[LIVE], full[LIVE] + 1)
    assert torch.equal(wide[~LIVE], full[~LIVE])
    wide.sum().backward()
    assert torch.equal(full.grad, torch.ones_like(full))


def test_shared_phases_are_gathered_for_every_row() -> None:
    made = build(LIVE, [4, 2])
    assert subset.gather(torch.arange(6.0).view(1, 6, 1), made)[..., 0].tolist() == made.rows.tolist()


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_masks_are_cut_by_rows_and_columns(additive: bool, shared: bool) -> None:
    rows = build(LIVE, [4, 2]).rows
    mask = torch.rand(1 if shared else 2, 1, 6, 6) > 0.4
    given = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, LOW) if additive else mask
    cut = subset.cut_mask(given, rows, rows, 6)
    for b in range(2):
        for q in range(4):
            for k in range(4):
                assert cut[b, 0, q, k] == given[0 if shared else b, 0, rows[b, q], rows[b, k]]


def test_columns_before_a_sliding_mask_are_closed() -> None:
    mask = torch.ones(1, 1, 1, 3, dtype=torch.bool)  # logical columns 5, 6, 7 of 8
    cut = subset.cut_mask(mask, None, torch.tensor([[0, 4, 5, 7]]), 8)
    assert cut[0, 0, 0].tolist() == [False, False, True, True]


def test_closing_and_opening() -> None:
    valid = torch.tensor([[False, True]])
    assert subset.close(torch.ones(1, 1, 2, 2, dtype=torch.bool), valid)[0, 0].tolist() == [[False, True]] * 2
    assert subset.close(torch.zeros(1, 1, 1, 2), valid)[0, 0, 0, 0] == torch.finfo(torch.float32).min
    assert subset.open_rows(torch.zeros(1, 1, 2, 2, dtype=torch.bool), valid)[0, 0].tolist() == [[True] * 2, [False] * 2]
    assert subset.open_rows(torch.full((1, 1, 2, 2), -9.0), valid)[0, 0].tolist() == [[0.0] * 2, [-9.0] * 2]


def test_ragged_masks() -> None:
    valid = torch.tensor([[False, True, True], [True, True, True]])
    causal = subset.ragged_mask(valid, 3, True, None)
    assert causal[0, 0].tolist() == [[True] * 3, [False, True, False], [False, True, True]]
    assert torch.equal(causal[1, 0], torch.ones(3, 3, dtype=torch.bool).tril())
    assert subset.ragged_mask(valid, 1, True, None).shape == (2, 1, 1, 3)
    tower = subset.ragged_mask(valid, 3, False, torch.float32)
    assert tower.dtype == torch.float32
    assert (tower[0, 0, :, 0] < -1e30).all()
    assert (tower[1] == 0).all()


def test_a_column_that_stands_for_several_counts_as_several() -> None:
    """Softmax with log s added to a logit is softmax with that column s times (proportional attention)."""
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 2, 3, dtype=torch.float64)
    sizes = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    allowed = torch.tensor([[[[True, True, False], [True, True, True]]]])
    got = (logits + weighted(allowed, sizes.log(), torch.float64)).softmax(-1)
    wide = logits.repeat_interleave(torch.tensor([1, 3, 2]), 3)
    seen = allowed.repeat_interleave(torch.tensor([1, 3, 2]), 3)
    want = wide.masked_fill(~seen, -torch.inf).softmax(-1)
    torch.testing.assert_close(got, torch.stack([want[..., 0], want[..., 1:4].sum(-1), want[..., 4:].sum(-1)], -1))
    assert weighted(allowed, None, torch.float64) is allowed
