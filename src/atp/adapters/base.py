"""What the engine asks of a model family. Implementations are the only code that knows names of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atp.budget.shape import ModelShape
from atp.cache import SubsetStore
from atp.subset import Subset

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@dataclass(frozen=True)
class LayerCall:
    """The arguments of one layer that pruning touches.

    Attributes:
        hidden: `[B, T, D]`.
        mask: bool or additive `[B, H or 1, Q, C]`, or None.
        phases: rotary cos and sin, `[B or 1, T, d]`, or None.
        cache: the model's cache object, or None.
        segments: borders of the sequences packed into one, `[n + 1]`, from 0 to T; None = the mask says who sees whom.
    """

    hidden: Tensor
    mask: Tensor | None
    phases: tuple[Tensor, Tensor] | None = None
    cache: Any = None
    segments: Tensor | None = None


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
    """

    ids: Tensor
    visual: Tensor
    live: Tensor | None
    candidates: int
    cached: bool
    features: Any
    extra: Any = None


class StackView(ABC):
    """One list of equal layers, as the engine runs it.

    Attributes:
        name: "vision" or "language".
        layers: the modules, in order.
        head_dim, scaling: of the attention.
        causal: whether a missing mask means a causal one.
        prefix: tokens at the start of the sequence that never leave.
        maskable: whether layers take a mask; where they do not, all inputs of a batch keep the same count.
    """

    name: str
    layers: Sequence[nn.Module]
    head_dim: int
    heads: int
    scaling: float
    causal: bool
    prefix: int
    maskable: bool = True

    @property
    @abstractmethod
    def additive_masks(self) -> bool:
        """Whether the attention in use adds its mask (eager) instead of reading a bool one."""

    @abstractmethod
    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        """Return what a layer was called with."""

    @abstractmethod
    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        """Return the layer's arguments with those of `call` in their place."""

    @abstractmethod
    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """Return the modules whose outputs are the layer's queries and keys, before rotary phases."""

    def projected(self, which: str, output: Tensor) -> Tensor:
        """Return the `queries` or `keys` `[B, T, H * d]` in the output of their projection."""
        return output

    def states(self, output: Any) -> Tensor:
        """Return the hidden states `[B, K, D]` in a layer's output."""
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states

    def restated(self, output: Any, states: Tensor) -> Any:
        """Return a layer's output with other hidden states."""
        return (states, *output[1:]) if isinstance(output, tuple) else states


class Adapter(ABC):
    """One model, seen as stacks.

    Attributes:
        model_types: values of `config.model_type` it serves.
        model: the whole model.
        shape: its sizes; those of a nominal image where images differ in size.
        vision, language: its stacks.
        grid: (height, width) of a nominal image, in tokens.
        resizable: whether the tower takes smaller images (`resize`).
        connects: what patches are to the connector. `rows`: each passes alone, so dead ones stay out; `grid`: it wants all;
            `keys`: they are looked at by queries of its own, so dead ones are no keys and visual tokens stand for no patch.
        top, base, tower, connector, text: modules whose calls the engine watches: the model with its head, the model that
            joins images and text, the vision tower, the connector, the language model without head.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    resizable: ClassVar[bool] = False
    connects: ClassVar[str] = "grid"

    model: nn.Module
    shape: ModelShape
    vision: StackView
    language: StackView
    grid: tuple[int, int]
    top: nn.Module
    base: nn.Module
    tower: nn.Module
    connector: nn.Module
    text: nn.Module

    @abstractmethod
    def prompt(self, args: Args, kwargs: Kwargs, candidates: int) -> Prompt | None:
        """Read the base model's call; None where it carries no images.

        Raises:
            UnsupportedModel: the call cannot be pruned exactly (cache kind, chunked prefill, embeddings instead of ids).
        """

    @abstractmethod
    def candidates(self, args: Args, kwargs: Kwargs) -> int:
        """Read from the top model's call how many last tokens are guesses of assisted decoding."""

    @abstractmethod
    def starts(self, kwargs: Kwargs) -> bool:
        """Whether the base model's call begins a sequence: nothing is cached."""

    @abstractmethod
    def images(self, args: Args, kwargs: Kwargs) -> Images:
        """Read the tower's call."""

    def pack(self, values: Tensor, counts: Sequence[int], extra: Any) -> list[Tensor]:
        """Lay what is known of the tower's tokens out as the visual tokens of the prompt.

        Args:
            values: `[P, N, C]`, C facts of each token of each image of the tower.
            counts: tokens of each image.
            extra: of the prompt.

        Returns:
            For each image of the prompts `[F, C]`; NaN where a visual token stands for none of the tower's.
        """
        return [values[index, :count] for index, count in enumerate(counts)]

    def narrow(self, args: Args, kwargs: Kwargs, subset: Subset) -> tuple[Args, Kwargs]:
        """Return the arguments of a connector that `connects` by keys on the live patches only."""
        raise NotImplementedError(f"the connector of {type(self).__name__} does not connect by keys")

    @abstractmethod
    def cache_layer(self, cache: Any, layer: int) -> SubsetStore | None:
        """Return the cache's layer where it stores a subset, else None."""

    @abstractmethod
    def make_cache_layer(self, cache: Any, layer: int) -> SubsetStore:
        """Put a layer that can store a subset in the place of the cache's plain one, with what it holds, and return it.

        Raises:
            UnsupportedModel: a kind of cache layer that cannot.
        """

    @abstractmethod
    def stored_keys(self, cache: Any, layer: int) -> Tensor | None:
        """Return the keys `[B, H_kv, C, d]` that a layer has stored, None where it has none."""

    @abstractmethod
    def tag(self, output: Any, value: object) -> None:
        """Attach a value to the tower's output, which travels with the features made from it."""

    @abstractmethod
    def tagged(self, features: Any) -> tuple[Any, list[int]]:
        """Return the value attached to the features' carrier, None where there is none, and each image's visual tokens."""

    @abstractmethod
    def map_states(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """Return a stack's output with `change` applied to every hidden state `[B, T, D]` in it."""

    def resized(self, args: Args, kwargs: Kwargs, change: Callable[[Tensor], Tensor]) -> tuple[Args, Kwargs]:
        """Return the tower's arguments with `change` applied to the pixels, and position embeddings interpolated."""
        raise NotImplementedError(f"{type(self).__name__} is not resizable")

    @abstractmethod
    def template_ids(self, processor: Any) -> frozenset[int]:
        """Return ids that ask no question: special tokens and the chat template rendered with an empty question.

        Without a processor (None), the special ids that the model's own configuration names.
        """


def additive(mask: Tensor | None) -> bool:
    """Whether a mask is added to the logits."""
    return mask is not None and mask.dtype != torch.bool


def named(kwargs: Mapping[str, Any], args: Args, name: str, place: int) -> Any:
    """Return an argument that may be positional."""
    return kwargs[name] if name in kwargs else (args[place] if len(args) > place else None)
