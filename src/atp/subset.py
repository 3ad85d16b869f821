"""Which rows of a sequence run in a layer, and how tensors and masks of the full sequence are cut to them.

Pure tensor code. A subset keeps the order of the sequence, so a causal sequence stays causal. Inputs that keep fewer tokens
than their neighbours in the batch are padded on the left with distinct dropped tokens, which are masked and never written back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subset:
    """The rows of `[B, T, ...]` that run.

    Attributes:
        rows: `[B, K]` int64, ascending among the valid ones.
        valid: `[B, K]` bool, False on padding; None where every row is valid.
        flat: `[B * K]` int64, the same rows in the flattened `[B * T, ...]`.
        length: T.
    """

    rows: Tensor
    valid: Tensor | None
    flat: Tensor
    length: int

    @property
    def size(self) -> int:
        """K, the rows that run of each input."""
        return self.rows.shape[1]


def build(live: Tensor, counts: Sequence[int]) -> Subset:
    """Make the subset of the live rows, right-aligned.

    Args:
        live: `[B, T]` bool.
        counts: live rows of each input, known on the host: no device sync.

    Example:
        >>> build(torch.tensor([[True, False, True]]), [2]).rows
        tensor([[0, 2]])
    """
    length = live.shape[1]
    size = max(max(counts, default=0), 1)
    # Stable: dropped rows first, then live ones, each in the order of the sequence.
    order = torch.sort(live.to(torch.uint8), dim=1, stable=True).indices
    rows = order[:, length - size :]
    valid = None if min(counts) == size else live.gather(1, rows)
    return Subset(rows, valid, numbered(rows, length), length)


def numbered(rows: Tensor, length: int) -> Tensor:
    """Number the rows through the flattened batch; a single input's are what they are."""
    if len(rows) > 1:
        rows = rows + torch.arange(len(rows), device=rows.device).unsqueeze(1) * length
    return rows.reshape(-1)


def repeat(subset: Subset, copies: int) -> Subset:
    """Repeat every input `copies` times, as beams do."""
    if copies == 1:
        return subset
    rows = subset.rows.repeat_interleave(copies, 0)
    valid = None if subset.valid is None else subset.valid.repeat_interleave(copies, 0)
    return Subset(rows, valid, numbered(rows, subset.length), subset.length)


def gather(full: Tensor, subset: Subset) -> Tensor:
    """Cut `[B, T, ...]` (or `[1, T, ...]`, shared by all inputs) to `[B, K, ...]`."""
    batch, size = subset.rows.shape
    if batch == 1:
        return full.index_select(1, subset.flat)
    tail = full.shape[2:]
    if full.shape[0] != batch:
        return full[0].index_select(0, subset.rows.reshape(-1)).view(batch, size, *tail)
    return full.reshape(-1, *tail).index_select(0, subset.flat).view(batch, size, *tail)


def take(full: Tensor, index: Tensor, dim: int = 1) -> Tensor:
    """Take of each `[T, D]` of a batch its own places `index` `[B, K]` along `dim`, 1 or 2; `[B, K, D]` or `[B, T, K]`."""
    if len(index) == 1:
        return full.index_select(dim, index[0])
    if dim == 2:
        return full.gather(2, index.unsqueeze(1).expand(-1, full.shape[1], -1))
    width = full.shape[2]  # whole rows of one matrix: an index for every number of them costs many times more
    return full.reshape(-1, width).index_select(0, numbered(index, full.shape[1])).view(*index.shape, width)


def scatter(full: Tensor, part: Tensor, subset: Subset) -> Tensor:
    """Return a copy of `[B, T, ...]` in which the subset's rows are those of `part` `[B, K, ...]`; padding changes nothing."""
    tail = full.shape[2:]
    if subset.valid is not None:
        valid = subset.valid.reshape(*subset.valid.shape, *(1 for _ in tail))
        part = torch.where(valid, part, gather(full, subset))
    if len(full) == 1:
        return full.index_copy(1, subset.flat, part.to(full.dtype))
    return full.reshape(-1, *tail).index_copy(0, subset.flat, part.reshape(-1, *tail).to(full.dtype)).view(full.shape)


def cut_mask(mask: Tensor, rows: Tensor | None, columns: Tensor | None, total: int) -> Tensor:
    """Cut a mask `[B or 1, H or 1, T, W]` to the rows that run and to the stored columns.

    Args:
        mask: bool (True = attend) or additive float. W may be smaller than `total` (sliding windows): its last column is
            the last logical position.
        rows: `[B, K]` positions in T; None = all.
        columns: `[B, C]` logical positions of the keys; None = all W.
        total: logical length of the keys.
    """
    if rows is not None:
        batch, heads, width = rows.shape[0], mask.shape[1], mask.shape[3]
        index = rows[:, None, :, None].expand(batch, heads, -1, width)
        mask = mask.expand(batch, -1, -1, -1).gather(2, index)
    if columns is None:
        return mask
    batch, heads, queries, width = columns.shape[0], mask.shape[1], mask.shape[2], mask.shape[3]
    shifted = columns - (total - width)
    index = shifted.clamp(min=0)[:, None, None, :].expand(batch, heads, queries, -1)
    mask = mask.expand(batch, -1, -1, -1).gather(3, index)
    return mask if width == total else close(mask, shifted >= 0)


def causal(queries: int, like: Tensor) -> Tensor:
    """Additive causal mask `[queries, C]` in the kind of `like` `[..., C]`; the last row is the last column."""
    width = like.shape[-1]
    return like.new_full((queries, width), torch.finfo(like.dtype).min).triu(width - queries + 1)


def weighted(mask: Tensor, weight: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """Add `weight` `[B, C]` to the logits of columns in a mask `[B, H, Q, C]`, which becomes additive; None = nothing.

    Proportional attention (Bolya et al., ICLR 2023, section 3): a key that stands for s tokens gets log s.
    """
    if weight is None or dtype is None:
        return mask
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return mask + weight[:, None, None, :].to(mask.dtype)


def cut_segments(segments: Tensor, subset: Subset) -> Tensor:
    """Move the borders `[n + 1]` of sequences packed into one to the rows that run; empty sequences vanish.

    Args:
        segments: int, ascending from 0 to T.
        subset: of the one packed sequence, without padding.
    """
    live = torch.zeros(subset.length + 1, dtype=torch.int64, device=segments.device).index_fill(0, subset.flat + 1, 1)
    borders: Tensor = torch.unique_consecutive(live.cumsum(0)[segments.long()])
    return borders.to(segments.dtype)


def close(mask: Tensor, valid: Tensor) -> Tensor:
    """Forbid the columns where `valid` `[B, C]` is False in a bool or additive mask `[B, H, Q, C]`."""
    allowed = valid[:, None, None, :]
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)


def open_rows(mask: Tensor, valid: Tensor) -> Tensor:
    """Let the padding rows (`valid` `[B, Q]` False) see everything: nobody reads them, and an empty row would be NaN."""
    padding = ~valid[:, None, :, None]
    if mask.dtype == torch.bool:
        return mask | padding
    return mask.masked_fill(padding, 0.0)


def ragged_mask(valid: Tensor, queries: int, causal: bool, dtype: torch.dtype | None) -> Tensor:
    """Build the mask that a ragged subset needs where the model itself gave none.

    Args:
        valid: `[B, C]` bool, False on padding columns.
        queries: rows that run; the last one is the last column.
        causal: whether a row sees only columns up to its own.
        dtype: None for a bool mask, else the dtype of an additive one.

    Returns:
        `[B, 1, queries, C]`, or `[B, 1, 1, C]` where all rows see the same: read as such, it costs attention nothing.
    """
    allowed = valid[:, None, None, :]
    if causal and queries > 1:
        width = valid.shape[1]
        order = torch.ones(queries, width, dtype=torch.bool, device=valid.device).tril(width - queries)
        allowed = allowed & order
        allowed = open_rows(allowed, valid[:, width - queries :])
    if dtype is None:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=valid.device).masked_fill(~allowed, torch.finfo(dtype).min)
