"""A cache layer's memory: keys and values of a subset of the tokens, under the length of the whole sequence.

`get_seq_length` is logical (all tokens seen), so every mask and position that the model derives from it stays right; the
positions of the stored columns are remembered beside them. An update commits only what a hook announced before. Knows nothing
of methods, nor of the library whose interface it speaks: adapters mix `SubsetStore` into that library's own base class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atp.errors import AtpError


@dataclass(frozen=True)
class Columns:
    """Logical positions `[B, C]` of stored columns; `valid` `[B, C]` is False on padding, None where all are valid.

    `weight` `[B, C]` is added to the logits of a column that stands for several tokens, the logarithm of how many; None = 0.
    All layers between two sites share one object, and one reordered copy of it per beam step.
    """

    positions: Tensor
    valid: Tensor | None
    weight: Tensor | None = None
    _last: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def size(self) -> int:
        """C."""
        return self.positions.shape[1]

    @property
    def plain(self) -> bool:
        """Whether no mask is needed: every column is valid and stands for one token."""
        return self.valid is None and self.weight is None

    def select(self, index: Tensor) -> Columns:
        """Take rows of the batch."""
        if self._last.get("index") is not index:
            valid, weight = (None if part is None else part[index] for part in (self.valid, self.weight))
            self._last.update(index=index, result=Columns(self.positions[index], valid, weight))
        result: Columns = self._last["result"]
        return result

    def extend(self, first: int, count: int) -> Columns:
        """Append the positions first .. first + count - 1 to every row."""
        if count == 0:
            return self
        key = (first, count)
        if self._last.get("span") != key:
            tail = torch.arange(first, first + count, device=self.positions.device).expand(len(self.positions), -1)
            self._last.update(span=key, extended=self.join(Columns(tail, None)))
        result: Columns = self._last["extended"]
        return result

    def join(self, later: Columns) -> Columns:
        """Append other columns."""

        def both(own: Tensor | None, more: Tensor | None, fill: float) -> Tensor | None:
            if own is None and more is None:
                return None
            kind = own if own is not None else more
            assert kind is not None
            parts = zip((self, later), (own, more), strict=True)
            return torch.cat([kind.new_full(c.positions.shape, fill) if part is None else part for c, part in parts], dim=1)

        positions = torch.cat([self.positions, later.positions], dim=1)
        return Columns(positions, both(self.valid, later.valid, 1), both(self.weight, later.weight, 0))


@dataclass(frozen=True)
class Announcement:
    """What the next update brings: `seen` logical tokens of which the columns `columns` are stored (None = all)."""

    seen: int
    columns: Columns | None


class SubsetStore:
    """The behaviour of a cache layer that stores a subset; see the module."""

    is_croppable = True
    is_compileable = False
    supports_early_init = False

    def __init__(self, sliding: bool = False) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.is_initialized = False
        self.is_sliding = sliding
        self.seen = 0  # logical tokens
        self.base: Columns | None = None  # columns of the first `base.size` stored keys; None = no token is missing
        self.announced: Announcement | None = None
        self.shuffled = False  # whether rows or tokens were taken out or put elsewhere

    def adopt(self, keys: Tensor, values: Tensor) -> None:
        """Take over keys and values `[B, H, T, d]` of which none is missing."""
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device
        self.seen = keys.shape[-2]

    @property
    def stored(self) -> int:
        """Stored columns of each row, padding included."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def columns(self, batch: int, device: torch.device) -> Columns:
        """Return the positions of all stored columns."""
        if self.base is None:
            whole = torch.arange(self.stored, device=device).expand(batch, -1)
            return Columns(whole, None)
        tail = self.stored - self.base.size
        return self.base.extend(self.seen - tail, tail)

    def announce(self, seen: int, columns: Columns | None = None) -> None:
        """Say what the next update brings: `seen` logical tokens, of which `columns` (after all stored ones) are stored."""
        self.announced = Announcement(seen, columns)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append announced keys and values `[B, H, K, d]` and return all stored ones.

        Raises:
            AtpError: nobody announced the update while tokens are missing here.
        """
        notice, self.announced = self.announced, None
        count = key_states.shape[-2]
        if notice is None:
            if self.base is not None:
                raise AtpError(
                    "this cache was filled inside `atp.prune`, some of its tokens are missing and no hook is there to mask them; "
                    "continue inside the same `with atp.prune(...)` block, or call the model with past_key_values=None"
                )
            notice = Announcement(count, None)
        expected = notice.seen if notice.columns is None else notice.columns.size - self.stored
        if expected != count:
            raise AtpError(f"the cache layer expected {expected} new columns and got {count}; run one forward at a time")
        if self.keys is None or self.values is None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values, self.is_initialized = key_states, value_states, True
        else:
            self.keys = torch.cat([self.keys, key_states], dim=-2)
            self.values = torch.cat([self.values, value_states], dim=-2)
        if notice.columns is not None:
            self.base = notice.columns
        self.seen += notice.seen
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the first update initialises."""

    def get_seq_length(self) -> int:
        """Return the logical length."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return logical length and offset of the keys of the next mask."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: no maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized = False
        self.seen, self.base, self.announced, self.shuffled = 0, None, None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` logical tokens.

        Raises:
            ValueError: a positive number.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop removes the last tokens by a negative number, got {tokens_to_remove}; use {-tokens_to_remove}"
            )
        remove = min(-tokens_to_remove, self.seen)
        if remove == 0 or self.keys is None or self.values is None:
            return
        if remove == self.seen:
            self.reset()
            return
        self.shuffled = True
        tail = self.stored if self.base is None else self.stored - self.base.size
        if remove <= tail:
            self._trim(remove)
        else:
            self._crop_subset(self.seen - remove)
        self.seen -= remove

    def _crop_subset(self, length: int) -> None:
        """Drop the columns at logical positions >= length; rows that lose fewer keep masked ones."""
        assert self.keys is not None
        columns = self.columns(self.keys.shape[0], self.keys.device)
        valid = columns.positions < length
        if columns.valid is not None:
            valid &= columns.valid
        used = int((valid * torch.arange(1, columns.size + 1, device=valid.device)).max())
        self._trim(self.stored - used)
        valid = valid[:, :used]
        weight = None if columns.weight is None else columns.weight[:, :used]
        self.base = Columns(columns.positions[:, :used], None if bool(valid.all()) else valid, weight)

    def _trim(self, count: int) -> None:
        assert self.keys is not None and self.values is not None
        if count:
            self.keys, self.values = self.keys[..., :-count, :], self.values[..., :-count, :]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows of the batch, as beam search does."""
        self.shuffled = True
        if self.keys is not None and self.values is not None:
            index = beam_idx.to(self.keys.device)
            self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
            self.base = None if self.base is None else self.base.select(index)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        if self.keys is not None:
            index = torch.arange(self.keys.shape[0], device=self.keys.device).repeat_interleave(repeats)
            self.reorder_cache(index)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        self.shuffled = True
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[indices, ...], self.values[indices, ...]
            self.base = None if self.base is None else self.base.select(indices)
