"""A few rows of a layer's attention, recomputed from its own projections: raters x keys, never the full square.

Pure tensor code. Knows nothing of methods or models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atp import kernels


def spread(candidates: Tensor, cap: int) -> tuple[Tensor, Tensor]:
    """Choose at most `cap` evenly spaced candidates of each row, in order, without a device sync.

    Args:
        candidates: `[B, T]` bool.
        cap: most to choose.

    Returns:
        index `[B, R]` int64 and valid `[B, R]` bool, R = min(cap, T); invalid places point anywhere.

    Example:
        >>> spread(torch.ones(1, 6, dtype=torch.bool), 2)[0]
        tensor([[2, 5]])
    """
    size = min(cap, candidates.shape[1])
    number = candidates.cumsum(1)  # from 1
    # Candidate k is chosen where floor(k * size / total) is above that of k - 1: always, if total <= size.
    chosen = candidates & (number * size % number[:, -1:].clamp(min=1) < size)
    index = torch.sort(chosen.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :size]
    return index, chosen.gather(1, index)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary phases in the half-split convention.

    Args:
        states: `[B, H, T, d]`.
        cos, sin: `[B or 1, T, d]`.
    """
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return states * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


def split_heads(states: Tensor, head_dim: int) -> Tensor:
    """`[B, T, H * d]` -> `[B, H, T, d]`."""
    return states.view(*states.shape[:-1], -1, head_dim).transpose(1, 2)


def attention_rows(queries: Tensor, keys: Tensor, allowed: Tensor | None, scaling: float, softcap: float | None = None) -> Tensor:
    """Return the softmax rows of some queries, averaged over the heads.

    Args:
        queries: `[B, H, R, d]`, rotary phases applied.
        keys: `[B, H_kv, C, d]`; H is a multiple of H_kv (grouped queries).
        allowed: bool (True = attend) or additive, broadcastable to `[B, H, R, C]`; None = all.
        scaling: factor of the products.
        softcap: bound that a tanh puts on the scaled products, None = none.

    Returns:
        `[B, R, C]` in float32, or float64 for double inputs; each row sums to 1.

    Raises:
        BadInput: the Triton kernels were asked for and cannot run here, see `atp.kernels`.
    """
    made = kernels.by_triton(queries, keys, allowed, scaling, softcap)
    if made is not None:
        return made
    batch, heads, raters, width = queries.shape
    groups = keys.shape[1]
    wide = torch.promote_types(queries.dtype, torch.float32)  # half precision overflows and ties
    grouped = queries.to(wide).reshape(batch * groups, heads // groups * raters, width)  # key heads are not repeated
    columns = keys.to(wide).transpose(-1, -2).flatten(0, 1)
    logits = torch.bmm(grouped, columns).view(batch, heads, raters, -1) * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if allowed is not None:
        if allowed.dtype == torch.bool:
            logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
        else:
            logits = logits + allowed
    return logits.softmax(-1).mean(1)
