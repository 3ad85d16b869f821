"""What the calls of a model say: of a layer, of the tower, of the model that joins images and text. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atp.errors import BadInput

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
OLDER = {"hidden_states": "hidden_state"}
"""Names of arguments before transformers 5.23: layers of Mllama's tower."""
Listener = Callable[[nn.Module, Args, Kwargs], None]


@dataclass(frozen=True)
class LayerCall:
    """The arguments of one layer that pruning touches.

    Attributes:
        hidden: `[B, T, D]`.
        mask: bool or additive `[B, H or 1, Q, C]`, or None.
        phases: rotary cos and sin, `[B or 1, T, d]`, or None.
        cache: the model's cache object, or None.
        segments: borders of the sequences packed into one, `[n + 1]`, from 0 to T; None = the mask says who sees whom.
        positions: `[B or 1, T]`, where the layer reads them besides its phases, or None.
        bias: what distances add to the logits, `[1, H, T, T]`; None = nothing.
    """

    hidden: Tensor
    mask: Tensor | None
    phases: tuple[Tensor, Tensor] | None = None
    cache: Any = None
    segments: Tensor | None = None
    positions: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Images:
    """The images of one call of the tower.

    A token is what leaves as one: the group of g patches that becomes one visual token (1 where patches stay apart).

    Attributes:
        where: `[P, N, g]` places of each token's patches in the sequence; any place where an image has fewer tokens.
        counts: tokens of each image; N is the largest.
        others: `[S, T]` bool, places that never leave (class token).
        prefix: how many of them an image has.
        grids: (height, width) of each image, in tokens.
        packed: whether one sequence (S = 1) holds all images, instead of one each.
    """

    where: Tensor
    counts: tuple[int, ...]
    others: Tensor
    prefix: int
    grids: tuple[tuple[int, int], ...]
    packed: bool = False


@dataclass(frozen=True)
class Source:
    """Visual tokens that one call of the tower made: those of the images, those of the videos.

    Attributes:
        visual: `[B, T]` bool, their places in the prompts.
        features: the object that carries features encoded before this call, or None where the call has pixels.
    """

    visual: Tensor
    features: Any


@dataclass(frozen=True)
class Prompt:
    """What the engine knows of a forward that carries images.

    Attributes:
        ids: `[B, T]` token ids.
        visual: `[B, T]` bool, the places of visual tokens.
        live: `[B, T]` bool, False on padding; None where there is none.
        candidates: last tokens that are guesses of assisted decoding, not prompt.
        cached: whether keys are stored for later calls.
        features: the object that carries features encoded before this call, or None where the call has pixels.
        extra: what `Adapter.pack` needs besides (sizes of any-resolution images), or None.
        sources: the visual tokens by the call of the tower that makes them, in the order of the calls; () = one call for all.
    """

    ids: Tensor
    visual: Tensor
    live: Tensor | None
    candidates: int
    cached: bool
    features: Any
    extra: Any = None
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.ids.shape[0] == 0:
            raise BadInput(f"the batch is empty: input_ids has the shape {list(self.ids.shape)}, expected at least one prompt")


def additive(mask: Tensor | None) -> bool:
    """Whether a mask is added to the logits."""
    return mask is not None and mask.dtype != torch.bool


def named(kwargs: Mapping[str, Any], args: Args, name: str, place: int) -> Any:
    """Return an argument that may be positional, or have the name it had before transformers 5.23."""
    name = name if name in kwargs else OLDER.get(name, name)
    return kwargs[name] if name in kwargs else (args[place] if len(args) > place else None)
