"""Mllama (Llama 3.2 Vision): a tower over the tiles of an image, and cross-attention layers among those of the language model.

Facts of transformers 5.20 - 5.23 used here: an image is always four tiles, black where it has fewer, each with a class token and
padding; patches of the tower are the keys, one for one, and are projected at the prefill only; rows in front of the first image
look at all keys alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from atp.adapters import cache_layer as caches
from atp.adapters.base import Args, CrossView, Images, Kwargs, LayerCall, Prompt, named
from atp.adapters.scattered import Scattered, live_tokens, text_shape
from atp.adapters.views import OwnDecoder, Stack, Tower
from atp.budget.shape import CrossShape, ModelShape, StackShape
from atp.errors import UnsupportedModel
from atp.subset import Subset, gather


class Mllama(Scattered):
    """`MllamaForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("mllama",)
    parts: ClassVar[tuple[str, str | None, str]] = ("vision_model", "multi_modal_projector", "language_model")
    limits: ClassVar[tuple[str, ...]] = (
        "class tokens and padding of the tower never leave it",
        "keys that no row is given (black tiles) leave with the first ones that do",
        "later turns look at the images of the first: a new image needs a new cache",
        "text is rated by the question alone: visual tokens attend to none",
    )

    def build(self) -> None:
        self.shape = shape_of(self.config)
        tower: Any = self.tower
        text: Any = self.text
        side = tower.config.image_size // tower.config.patch_size
        self.grid = (tower.config.max_num_tiles * side, side)
        layers = [*tower.transformer.layers, *tower.global_transformer.layers]
        self.vision = Tower(tower.config, layers, self.shape.vision, self.shape.prefix)
        assert self.shape.cross is not None
        self.language = Crossing(text.config, text.layers, self.shape.cross)
        places = tuple(number for number in range(self.shape.language.layers) if number not in self.shape.cross.places)
        self.own = OwnDecoder(text.config, [text.layers[place] for place in places], self.shape.language, places)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        count, tiles = pixels.shape[0] * pixels.shape[1], self.config.vision_config.max_num_tiles
        patches = self.shape.patches // tiles
        length = patches + self.shape.prefix // tiles
        device = pixels.device
        number = torch.arange(tiles, device=device).unsqueeze(1) * length + torch.arange(1, patches + 1, device=device)
        others = torch.ones(count, tiles * length, dtype=torch.bool, device=device).index_fill(1, number.flatten(), False)
        where = number.reshape(1, -1, 1).expand(count, -1, -1)
        return Images(where, (self.shape.patches,) * count, others, self.shape.prefix, (self.grid,) * count)

    def pack(self, values: Tensor, counts: Sequence[int], extra: Any) -> list[Tensor]:
        tiles = self.config.vision_config.max_num_tiles
        inside = values.reshape(values.shape[0], tiles, -1, values.shape[-1])
        first = torch.full_like(inside[:, :, :1], torch.nan)  # class tokens are keys too
        return list(torch.cat([first, inside], 2).flatten(1, 2))

    def prompt(self, args: Args, kwargs: Kwargs, candidates: int) -> Prompt | None:
        if not self.starts(kwargs) or all(kwargs.get(name) is None for name in ("pixel_values", "cross_attention_states")):
            return None
        ids = named(kwargs, args, "input_ids", 0)
        for name, given in (("input_ids", ids), ("cross_attention_mask", kwargs.get("cross_attention_mask"))):
            if given is None:
                raise UnsupportedModel(f"which words look at which image is read from {name}, but the call has none; pass {name}")
        caches.check_cache(kwargs.get("past_key_values"))
        live = live_tokens(named(kwargs, args, "attention_mask", 4), ids.shape[1], 0)
        cached = kwargs.get("use_cache") is not False
        return Prompt(ids, torch.zeros_like(ids, dtype=torch.bool), live, candidates, cached, kwargs.get("pixel_values"))

    def candidates(self, args: Args, kwargs: Kwargs) -> int:
        # Only `generate` passes a cache that is empty, and only assisted decoding asks it for more than the last logits.
        keep = kwargs.get("logits_to_keep", 0)
        assisted = kwargs.get("past_key_values") is not None and isinstance(keep, int) and keep > 1
        return keep - 1 if assisted else 0

    def tag(self, output: Any, value: object) -> None:
        """Nothing travels: images are encoded in the forward that reads them."""

    def map_states(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """Change the language model's states only: the tower collects those of its layers itself."""
        return super().map_states(output, change) if hasattr(output, "past_key_values") else output


class Crossing(CrossView, Stack):
    """The layers of the language model that are cross-attention layers."""

    name, causal, prefix, attention, cached, lone = "language", False, 0, "cross_attn", True, True

    def __init__(self, config: Any, layers: Any, cross: CrossShape) -> None:
        Stack.__init__(self, config, [layers[place] for place in cross.places], cross.stack)
        self.places, self.first = cross.places, cross.places[0] + 1

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        text: Tensor = named(kwargs, args, "hidden_states", 0)
        mask, states = kwargs["cross_attention_mask"], kwargs["cross_attention_states"]
        if states is not None:
            return LayerCall(states.reshape(text.shape[0], -1, states.shape[-1]), mask)
        return LayerCall(text.new_zeros(text.shape[0], 0 if mask is None else mask.shape[-1], 0), mask)

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        changed = dict(kwargs, cross_attention_mask=call.mask)
        if kwargs["cross_attention_states"] is not None:
            changed["cross_attention_states"] = call.hidden
        return args, changed

    def text(self, args: Args, kwargs: Kwargs) -> Tensor:
        states: Tensor = named(kwargs, args, "hidden_states", 0)
        return states

    def write_text(self, args: Args, kwargs: Kwargs, states: Tensor, subset: Subset) -> tuple[Args, Kwargs]:
        name = "full_text_row_masked_out_mask"
        rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        return (states, *args[1:]), {**rest, name: gather(kwargs[name][:, 0], subset).unsqueeze(1)}

    def sees(self, args: Args, kwargs: Kwargs) -> Tensor:
        mask, given = kwargs["cross_attention_mask"], kwargs["full_text_row_masked_out_mask"]
        found: Tensor = (mask[:, 0] > torch.finfo(mask.dtype).min / 2) & given[:, 0].to(torch.bool)
        return found

    def projected(self, which: str, output: Tensor) -> Tensor:
        return output.transpose(1, 2).flatten(-2)  # norms give [B, H, T, d]


def shape_of(config: Any) -> ModelShape:
    """Read the sizes off an `MllamaConfig`."""
    tower, text = config.vision_config, config.text_config
    patches, tiles = (tower.image_size // tower.patch_size) ** 2, tower.max_num_tiles
    length = -(-(patches + 1) // 8) * 8
    wide, heads = tower.hidden_size, tower.attention_heads
    layers = tower.num_hidden_layers + tower.num_global_layers
    places = tuple(text.cross_attention_layers)
    language = text_shape(text)
    across = replace(language, layers=len(places))
    return ModelShape(
        vision=StackShape(layers, wide, heads, heads, wide // heads, tower.intermediate_size, 2),
        patches=tiles * patches,
        prefix=tiles * (length - patches),
        patch_inputs=tower.num_channels * tower.patch_size**2,
        connector=((tower.vision_output_dim, text.hidden_size),),
        visual=tiles * (patches + 1),
        language=language,
        vocab=text.vocab_size,
        connects="grid",
        cross=CrossShape(places, across, text.hidden_size, instead=True, cached=True),
    )
