"""T5 as the language model of a VLM: visual tokens are rows of its encoder, and keys of its decoder.

Facts of transformers 5.20 - 5.23 used here: the first block makes the distances' bias and hands it on in its output; `generate`
calls the encoder by itself, then the decoder with its output and the prompt's mask at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from atp.adapters import cache_layer as caches
from atp.adapters.base import Args, Kwargs, LayerCall
from atp.adapters.views import Stack
from atp.budget.shape import StackShape
from atp.errors import UnsupportedModel
from atp.subset import Subset, gather


class Encoder(Stack):
    """The encoder's blocks: (states, mask, bias), all positional; each returns (states, bias, None)."""

    name, causal, prefix = "language", False, 0

    def __init__(self, config: Any, layers: Sequence[nn.Module], sizes: StackShape) -> None:
        super().__init__(config, layers, sizes)
        self.scaling = 1.0
        self._bias: Tensor | None = None

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        states, mask, bias = args[:3]
        if bias is None:
            first: Any = self._attention(0)
            bias = first.compute_bias(states.shape[1], states.shape[1], device=states.device)
        self._bias = bias
        return LayerCall(states, mask, bias=bias)

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        return (call.hidden, call.mask, call.bias, *args[3:]), kwargs

    def restated(self, output: Any, states: Tensor) -> Any:
        return (states, self._bias, *output[2:])  # the next block cuts the whole bias for itself

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        attention: Any = self._attention(layer)
        return attention.q, attention.k

    def _attention(self, layer: int) -> nn.Module:
        block: Any = self.layers[layer]
        found: nn.Module = block.layer[0].SelfAttention
        return found


def t5_shapes(text: Any) -> tuple[StackShape, StackShape]:
    """Read the sizes of encoder and decoder off a `T5Config`."""
    matrices = 3 if text.is_gated_act else 2
    sizes = (text.d_model, text.num_heads, text.num_heads, text.d_kv, text.d_ff, matrices)
    return StackShape(text.num_layers, *sizes), StackShape(text.num_decoder_layers, *sizes)


def decoder_keys(kwargs: Kwargs) -> tuple[Tensor | None, tuple[int, int]]:
    """Read the decoder's call: the encoder's output, its own batch and length."""
    given = kwargs.get("input_ids")
    given = kwargs["inputs_embeds"] if given is None else given
    return kwargs.get("encoder_hidden_states"), (given.shape[0], given.shape[1])


def cut_decoder_keys(kwargs: Kwargs, subset: Subset) -> Kwargs:
    """Return the decoder's arguments with the live rows of the encoder's output only.

    Raises:
        UnsupportedModel: a cache that cannot store a subset, a mask that was cut.
    """
    cache = kwargs.get("past_key_values")
    caches.check_cache(getattr(cache, "cross_attention_cache", cache))
    changed = dict(kwargs, encoder_hidden_states=gather(kwargs["encoder_hidden_states"], subset))
    mask = kwargs.get("encoder_attention_mask")
    if mask is not None and mask.shape[1] != subset.length:
        raise UnsupportedModel(
            f"the decoder's mask has {mask.shape[1]} places for {subset.length} tokens of the encoder, as chunked prefill cuts "
            "it; call generate with prefill_chunk_size=None"
        )
    if mask is not None:
        mask = gather(mask, subset)
        mask = mask if subset.valid is None else mask.masked_fill(~subset.valid, 0)
    elif subset.valid is not None:
        mask = subset.valid.long()
    changed["encoder_attention_mask"] = mask
    return changed
