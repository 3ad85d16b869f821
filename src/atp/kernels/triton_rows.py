"""Attention rows in two passes over the keys, by Triton; the rows of single heads never lie in memory.

The first pass finds every row's maximum and sum online (Milakov and Gimelshein, arXiv 1805.02867), the second writes the mean
over the heads. Importing it needs triton. What it computes is defined by `atp.rows.attention_rows`.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

# Nothing is annotated in a kernel but constexpr: the compiler looks annotations up.
MIN = tl.constexpr(torch.finfo(torch.float32).min)
BOOL, ADDITIVE = tl.constexpr(1), tl.constexpr(2)  # kinds of mask; 0 = none


@triton.jit
def _logits(
    query, keys, mask, row, column, raters, stored, width, scaling, softcap,
    key_n, key_d, mask_r, mask_n, DEPTH: tl.constexpr, MASK: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Products of a block of one head's queries and keys, capped and masked; -inf past the last key."""
    depth = tl.arange(0, DEPTH)
    inside = column < stored
    key = tl.load(keys + column[None, :] * key_n + depth[:, None] * key_d, inside[None, :] & (depth < width)[:, None], other=0.0)
    made = tl.dot(query, key.to(query.dtype), input_precision="ieee") * scaling
    if CAPPED:  # tanh
        made = (2.0 * tl.sigmoid(2.0 * made / softcap) - 1.0) * softcap
    if MASK != 0:
        place, real = mask + row[:, None] * mask_r + column[None, :] * mask_n, (row < raters)[:, None] & inside[None, :]
        if MASK == BOOL:
            made = tl.where(tl.load(place, real, other=1) != 0, made, MIN)
        else:
            made += tl.load(place, real, other=0.0).to(tl.float32)
    return tl.where(inside[None, :], made, -float("inf"))


@triton.jit
def _query(
    queries, row, raters, width, query_r, query_d, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    depth = tl.arange(0, DEPTH)
    real = (row < raters)[:, None] & (depth < width)[None, :]
    query = tl.load(queries + row[:, None] * query_r + depth[None, :] * query_d, real, other=0.0)
    return query.to(tl.float32) if WIDEN else query


@triton.jit
def _extremes(
    queries, keys, mask, most, total, heads, share, raters, stored, width,
    scaling, softcap, query_b, query_h, query_r, query_d, key_b, key_h, key_n,
    key_d, mask_b, mask_h, mask_r, mask_n, DEPTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, MASK: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """First pass: maximum and sum of the exponentials of the rows of one head of one input."""
    unit = tl.program_id(0).to(tl.int64)
    batch, head = unit // heads, unit % heads
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    query = _query(queries + batch * query_b + head * query_h, row, raters, width, query_r, query_d, DEPTH, WIDEN)
    keys += batch * key_b + head // share * key_h
    mask += batch * mask_b + head * mask_h
    top = tl.full([ROWS], -float("inf"), tl.float32)
    summed, shift = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for start in range(0, stored, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        made = _logits(
            query, keys, mask, row, column, raters, stored, width, scaling, softcap, key_n, key_d, mask_r, mask_n, DEPTH, MASK,
            CAPPED,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(made, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # nothing seen so far
        summed = summed * tl.exp(top - base) + tl.sum(tl.exp(made - base[:, None]), 1)
        top = higher
        shift = base
    place = unit * raters + row
    tl.store(most + place, shift, row < raters)
    tl.store(total + place, summed, row < raters)


@triton.jit
def _mean(
    queries, keys, mask, most, total, out, heads, share, raters, stored,
    width, scaling, softcap, query_b, query_h, query_r, query_d, key_b, key_h,
    key_n, key_d, mask_b, mask_h, mask_r, mask_n, DEPTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, MASK: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Second pass: the mean over the heads of a block of one input's rows."""
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    summed = tl.zeros([ROWS, COLUMNS], tl.float32)
    for head in range(0, heads):
        query = _query(queries + batch * query_b + head * query_h, row, raters, width, query_r, query_d, DEPTH, WIDEN)
        made = _logits(
            query, keys + batch * key_b + head // share * key_h, mask + batch * mask_b + head * mask_h, row, column, raters,
            stored, width, scaling, softcap, key_n, key_d, mask_r, mask_n, DEPTH, MASK, CAPPED,
        )  # fmt: skip
        place = (batch * heads + head) * raters + row
        top = tl.load(most + place, row < raters, other=0.0)
        summed += tl.exp(made - top[:, None]) / tl.load(total + place, row < raters, other=1.0)[:, None]
    real = (row < raters)[:, None] & (column < stored)[None, :]
    wide = (batch * raters + row) * stored
    tl.store(out + wide[:, None] + column[None, :], summed / heads, real)


INTERPRETED = not isinstance(_mean, triton.JITFunction)
"""Whether TRITON_INTERPRET was set when this was imported: kernels then run on the host, on tensors of any device.

Its `tl.dot` takes the bits of bfloat16 for whole numbers, so blocks are widened first there.
"""


def attention_rows(queries: Tensor, keys: Tensor, allowed: Tensor | None, scaling: float, softcap: float | None = None) -> Tensor:
    """Return the softmax rows of some queries, averaged over the heads; as `atp.rows.attention_rows`, without gradients.

    Args:
        queries: `[B, H, R, d]`.
        keys: `[B, H_kv, C, d]`; H is a multiple of H_kv.
        allowed: bool (True = attend) or additive, broadcastable to `[B, H, R, C]`; None = all.
        scaling: factor of the products.
        softcap: bound that a tanh puts on the scaled products, None = none.

    Returns:
        `[B, R, C]` in float32.
    """
    batch, heads, raters, width = queries.shape
    groups, stored = keys.shape[1], keys.shape[2]
    out = torch.empty(batch, raters, stored, dtype=torch.float32, device=queries.device)
    if out.numel() == 0:
        return out
    dtype = torch.promote_types(queries.dtype, keys.dtype)
    queries, keys, kind, mask = queries.detach().to(dtype), keys.detach().to(dtype), 0, out
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if allowed is not None:
        told = allowed.dtype == torch.bool
        kind = (BOOL if told else ADDITIVE).value
        mask = (allowed.view(torch.uint8) if told else allowed.detach()).expand(batch, heads, raters, stored)
        strides = mask.stride()
    most, total = torch.empty(2, batch, heads, raters, dtype=torch.float32, device=queries.device)
    depth = max(16, triton.next_power_of_2(width))
    rows, columns = (16 if raters <= 16 else 32), (64 if depth <= 128 else 32)  # a dot wants 16; what fits in shared memory
    numbers = (heads, heads // groups, raters, stored, width, float(scaling), float(softcap or 1.0))
    strides = (*queries.stride(), *keys.stride(), *strides)
    sizes = {"DEPTH": depth, "ROWS": rows, "COLUMNS": columns, "MASK": kind, "CAPPED": softcap is not None, "WIDEN": INTERPRETED}
    above, across = triton.cdiv(raters, rows), triton.cdiv(stored, columns)
    with torch.cuda.device(queries.device) if queries.is_cuda else contextlib.nullcontext():
        _extremes[(batch * heads, above)](queries, keys, mask, most, total, *numbers, *strides, **sizes)
        _mean[(across, above, batch)](queries, keys, mask, most, total, out, *numbers, *strides, **sizes)
    return out
