"""What the language model of a chat is called with, turn by turn, and the call that says it all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atp.adapters.calls import Args, Kwargs, named
from atp.errors import UnsupportedModel

PLAIN = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values", "cache_position")
ANEW = "call it on the whole conversation with pixel_values and past_key_values=None, or use second_turn='keep'"


@dataclass(frozen=True)
class Chunk:
    """One call of the language model.

    Attributes:
        ids: `[B, T]`.
        states: `[B, T, D]` at the input of layer 0, visual tokens as the connector made them.
        positions: `[..., B, T]`, None where the model counts them itself.
    """

    ids: Tensor
    states: Tensor
    positions: Tensor | None


def given_ids(args: Args, kwargs: Kwargs) -> Tensor | None:
    """Return the ids that the base model is called with, None where it is given embeddings."""
    found: Tensor | None = named(kwargs, args, "input_ids", 0)
    return found


def read_chunk(ids: Tensor | None, kwargs: Kwargs) -> Chunk:
    """Read a call of the language model.

    Raises:
        UnsupportedModel: it has more than embeddings, positions and a mask of padding.
    """
    states, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
    more = [name for name, value in kwargs.items() if name not in PLAIN and isinstance(value, Tensor | list | tuple | dict)]
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        more.append("an attention_mask of its own making")
    if ids is None or states is None or more:
        lacks = f"gives it {', '.join(more)}" if more else "has no input_ids or inputs_embeds"
        raise UnsupportedModel(f"a second turn cannot be chosen anew here: the call of the language model {lacks}; {ANEW}")
    return Chunk(ids, states, kwargs.get("position_ids"))


def whole_call(chunks: Sequence[Chunk], kwargs: Kwargs) -> Kwargs:
    """Return the arguments of a call on all chunks at once; `kwargs` are those of the last, its cache is empty by now."""
    positions = [chunk.positions for chunk in chunks]
    known = [one for one in positions if one is not None]
    if known and len(known) < len(chunks):
        raise UnsupportedModel(f"some turns were called with position_ids and some without; {ANEW}")
    states = torch.cat([chunk.states for chunk in chunks], 1)
    changed = dict(kwargs, inputs_embeds=states, position_ids=torch.cat(known, -1) if known else None)
    changed.pop("cache_position", None)
    return changed


def live_places(kwargs: Kwargs, like: Tensor) -> Tensor:
    """Return `[B, T]` bool, False on padding, of a call on a whole conversation; `like` `[B, T]`."""
    mask: Any = kwargs.get("attention_mask")
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask.bool()
