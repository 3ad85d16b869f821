"""Lists of equal layers, as the engine runs them. Implementations are the only code that knows names of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from atp.adapters.calls import Args, Kwargs, LayerCall
from atp.subset import Subset


class StackView(ABC):
    """One list of equal layers, as the engine runs it.

    Attributes:
        name: "vision" or "language".
        layers: the modules, in order.
        head_dim, scaling: of the attention.
        causal: whether a missing mask means a causal one.
        prefix: tokens at the start of the sequence that never leave.
        first: the first site that has a layer whose rows it can read.
        maskable: whether layers take a mask; where they do not, all inputs of a batch keep the same count.
        softcap: bound that a tanh puts on the attention's logits, None = none.
    """

    name: str
    layers: Sequence[nn.Module]
    head_dim: int
    heads: int
    scaling: float
    causal: bool
    prefix: int
    first: int = 1
    maskable: bool = True
    softcap: float | None = None

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

    def mixer(self, layer: int) -> nn.Module | None:
        """Return the layer's attention, if the layer treats rows one by one everywhere else; None = not known."""
        return None

    def attend(self, args: Args, kwargs: Kwargs, change: Callable[[Tensor], Tensor]) -> tuple[Args, Kwargs]:
        """Return the arguments of a `mixer` with `change` applied to the rows that it is called with."""
        if "hidden_states" in kwargs:
            return args, dict(kwargs, hidden_states=change(kwargs["hidden_states"]))
        return (change(args[0]), *args[1:]), kwargs

    def before(self, site: int) -> int | None:
        """Return the index of the layer whose rows a site reads, None where there is none."""
        return site - 1 if site else None

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


class PlacedView(StackView):
    """Some of the layers of a language model.

    Attributes:
        places: the language layer that each of `layers` is, or at whose input it stands; sites are counted in those.
    """

    places: tuple[int, ...]

    def before(self, site: int) -> int | None:
        found = [index for index, place in enumerate(self.places) if place < site]
        return found[-1] if found else None


class CrossView(PlacedView):
    """Cross-attention layers whose keys are the visual tokens: the sequence that `read` and `write` cut is that of the keys.

    `LayerCall.hidden` is `[B, C, E]`, the images of a prompt one after the other, of width 0 where they come from a cache.

    Attributes:
        cached: whether keys are projected with the prompt only, and stored.
        lone: whether a prompt none of whose rows may look at an image looks at all of them nevertheless.
    """

    cached: bool = False
    lone: bool = False

    @abstractmethod
    def sees(self, args: Args, kwargs: Kwargs) -> Tensor:
        """Return `[B, T, C]` bool, the visual tokens that a row may look at; none for a row that is given no image."""

    @abstractmethod
    def text(self, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the rows of text `[B, T, D]` that a layer was called with."""

    @abstractmethod
    def write_text(self, args: Args, kwargs: Kwargs, states: Tensor, subset: Subset) -> tuple[Args, Kwargs]:
        """Return the layer's arguments with the text `states` `[B, K, D]`, and its gates, but no mask, cut to those rows."""


class OwnView(PlacedView):
    """The layers of a language model beside those of a `CrossView`: text attends to text."""

    def phases(self, layer: int, call: LayerCall) -> tuple[Tensor, Tensor] | None:
        """Return rotary cos and sin `[B or 1, K, d]` of the rows of a call."""
        return call.phases
