"""A causal mask that attention reads in blocks of queries, so that what comes after a block is not computed. Pure tensor code.

Without a mask attention knows that a sequence is causal and computes half of the square. Merged tokens, which weigh more than
one, and padding need a mask, and with one it computes all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from atp.tracing import traced

SHORTEST, LONG = 256, 768
"""Sequences up to the first are not cut; from the second on a CPU's attention is best in larger blocks (dev/LOG.md)."""


def block_of(length: int) -> int:
    """Queries of a block."""
    return 64 if length < LONG else 256


class CausalMask(Tensor):
    """A mask `[B, H, L, L]` that hides all later tokens; a usual tensor to everything but attention."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run attention in blocks, and all else on the usual tensor."""
        given = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func is scaled_dot_product_attention and _square(given, *args):
                return _in_blocks(given.pop("attn_mask"), given, *args)
            return func(*args, **given)


def blocked(mask: Tensor, causal: bool) -> Tensor:
    """Return the same mask, to be read in blocks where it is `causal`, as `hides_later` says, and that is faster.

    Args:
        mask: `[B, H, Q, C]`, boolean or additive.
        causal: whether all rows that matter hide all later tokens; those of padding may see anything.
    """
    return mask.as_subclass(CausalMask) if causal and _long(mask) else mask


def hides_later(mask: Tensor, valid: Tensor | None = None) -> bool:
    """Whether a mask is long enough for blocks, and none of its rows sees a column behind its own.

    Args:
        mask: `[B, H, Q, C]`, boolean or additive.
        valid: `[B, Q]` bool, the rows that matter; None = all.
    """
    if not _long(mask):
        return False
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    later = seen.triu(1) if valid is None else seen.triu(1) & valid[:, None, :, None]
    return not bool(later.any())


def _long(mask: Tensor) -> bool:
    """Whether it is square, and so large that blocks are faster."""
    queries, columns = mask.shape[-2:]
    return queries == columns and queries > SHORTEST and mask.device.type == "cpu" and not traced()


def _square(given: Mapping[str, Any], *states: Any) -> bool:
    """Whether queries, keys and values are as many as the mask has rows, and nothing random is drawn."""
    mask = given.get("attn_mask")
    lengths = {each.shape[-2] for each in states if isinstance(each, Tensor)}
    return len(states) == 3 and mask is not None and lengths == {mask.shape[-1]} and not given.get("dropout_p")


def _in_blocks(mask: Tensor, given: Mapping[str, Any], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with each block of queries to the keys up to its end."""
    parts, length = [], query.shape[-2]
    for start in range(0, length, block_of(length)):
        end = min(start + block_of(length), length)
        seen = key[..., :end, :], value[..., :end, :]
        parts.append(scaled_dot_product_attention(query[..., start:end, :], *seen, attn_mask=mask[..., start:end, :end], **given))
    return torch.cat(parts, dim=-2)
