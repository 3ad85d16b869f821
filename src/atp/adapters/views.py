"""Stacks as transformers builds them: towers whose layers take a mask, and decoders with rotary phases and a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from atp.adapters.base import Args, Kwargs, LayerCall, OwnView, StackView, named
from atp.budget.shape import StackShape


class Stack(StackView):
    """What towers and decoders share: layers with `self_attn.q_proj` and `self_attn.k_proj`."""

    attention = "self_attn"

    def __init__(self, config: Any, layers: Sequence[nn.Module], sizes: StackShape) -> None:
        self.config, self.layers = config, list(layers)[: sizes.layers]
        self.head_dim, self.heads = sizes.head_dim, sizes.heads
        self.scaling = getattr(getattr(self.layers[0], self.attention, None), "scaling", None) or sizes.head_dim**-0.5

    @property
    def additive_masks(self) -> bool:
        return bool(self.config._attn_implementation == "eager")

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        attention: Any = getattr(self.layers[layer], self.attention)
        query = getattr(attention, "q_norm", None) or attention.q_proj
        return query, getattr(attention, "k_norm", None) or attention.k_proj

    def mixer(self, layer: int) -> nn.Module | None:
        found: nn.Module | None = getattr(self.layers[layer], self.attention, None)
        return found

    def projected(self, which: str, output: Tensor) -> Tensor:
        return output.flatten(-2) if output.dim() == 4 else output  # norms of heads give [B, T, H, d]


class Tower(Stack):
    """A vision tower over `[P, T, D]` whose layers are called with (hidden states, attention mask)."""

    name, causal = "vision", False

    def __init__(self, config: Any, layers: Sequence[nn.Module], sizes: StackShape, prefix: int = 0) -> None:
        super().__init__(config, layers, sizes)
        self.prefix = prefix

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        return LayerCall(named(kwargs, args, "hidden_states", 0), named(kwargs, args, "attention_mask", 1))

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        rest = {name: value for name, value in kwargs.items() if name not in ("hidden_states", "hidden_state", "attention_mask")}
        return (call.hidden, call.mask), rest


class BlindTower(Tower):
    """A vision tower whose layers take no mask."""

    maskable = False

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        return LayerCall(named(kwargs, args, "hidden_states", 0), None)

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return (call.hidden, *args[1:]), rest


class Decoder(Stack):
    """Decoder layers: hidden states first, the rest by keyword."""

    name, causal, prefix = "language", True, 0

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        hidden = named(kwargs, args, "hidden_states", 0)
        return LayerCall(hidden, kwargs.get("attention_mask"), kwargs.get("position_embeddings"), kwargs.get("past_key_values"))

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        # Ids with gaps would be read as borders of packed sequences by some kernels; the phases already carry the positions.
        changed = dict(kwargs, attention_mask=call.mask)
        if "position_embeddings" in changed:
            changed["position_embeddings"] = call.phases
        if "position_ids" in changed:
            changed["position_ids"] = None
        changed.pop("hidden_states", None)
        return (call.hidden, *args[1:]), changed


class Positioned(Decoder):
    """Decoder layers that read positions besides their phases, as Ministral 3 does to scale its queries."""

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        return replace(super().read(args, kwargs), positions=kwargs.get("position_ids"))

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        args, changed = super().write(args, kwargs, call)
        return args, dict(changed, position_ids=call.positions)


class OwnDecoder(OwnView, Decoder):
    """The plain layers of a decoder whose other layers look at images across.

    Args:
        config: of the decoder.
        layers: these layers only.
        sizes: of all layers of the language model.
        places: their numbers in it.
    """

    def __init__(self, config: Any, layers: Sequence[nn.Module], sizes: StackShape, places: tuple[int, ...]) -> None:
        super().__init__(config, layers, sizes)
        self.places, self.first = places, places[0] + 1
