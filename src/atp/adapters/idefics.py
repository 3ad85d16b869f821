"""IDEFICS, the open Flamingo: a CLIP tower, a perceiver resampler, gated cross-attention layers over its latents between Llama's.

Facts of transformers 5.20 - 5.23 used here: the pixels of a prompt are `[B, images, C, H, W]`, images that fill up a row are
never looked at; latents come back to every decoded token, which projects keys and values of all of them again. A row that may
look at no image passes its cross-attention layer's gate with nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atp.adapters.base import Args, CrossView, Images, Kwargs, LayerCall, Prompt, named
from atp.adapters.llava import equal_images
from atp.adapters.scattered import Scattered, check_attention, check_devices, live_tokens, tower_shape
from atp.adapters.views import BlindTower, OwnDecoder, Positioned, Stack
from atp.budget.shape import CrossShape, ModelShape, StackShape
from atp.errors import UnsupportedModel
from atp.subset import Subset, gather

PARTS = ("vision_model", "perceiver_resampler", "layers", "gated_cross_attn_layers")
IMAGES = ("pixel_values", "image_encoder_embeddings", "perceiver_embeddings")


class Idefics(Scattered):
    """`IdeficsForVisionText2Text` with a resampler."""

    model_types: ClassVar[tuple[str, ...]] = ("idefics",)
    connects: ClassVar[str] = "keys"
    resizable: ClassVar[bool] = True
    limits: ClassVar[tuple[str, ...]] = (
        "the resampler takes no mask, so all images of a batch keep the same count in the tower",
        "keys and values of the latents are projected once a prompt, where the model alone projects them for every token",
        "later turns look at the images of the first: a new image needs a new cache",
        "text is rated by the question alone: visual tokens attend to none",
        "the tokens that stand for an image stay where they lie behind the vocabulary, or a processor names them",
    )

    def __init__(self, model: nn.Module) -> None:
        owner: Any = model
        self.model = self.top = model
        self.config = owner.config
        self.base = self.text = owner.model
        absent = [part for part in PARTS if not hasattr(owner.model, part)]
        if absent == ["perceiver_resampler"]:
            raise UnsupportedModel(
                "this idefics model has no resampler, so its patches are the visual tokens themselves; "
                "supported: use_resampler=True, as in idefics-9b and idefics-80b"
            )
        if absent:
            raise UnsupportedModel(
                f"expected the stock idefics model, got {type(model).__name__} without {absent[0]!r}; "
                "unwrap the model first (PEFT: model.get_base_model())"
            )
        self.tower, self.connector = owner.model.vision_model, owner.model.perceiver_resampler
        check_attention(self.tower.config, self.config)
        check_devices(model)
        self.build()

    def build(self) -> None:
        self.shape = shape_of(self.config)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        self.grid = (side, side)
        tower: Any = self.tower
        text: Any = self.text
        self.vision = BlindTower(tower.config, tower.encoder.layers, self.shape.vision, self.shape.prefix)
        assert self.shape.cross is not None
        self.language = Gated(self.config, text.gated_cross_attn_layers, self.shape.cross)
        self.own = Turned(self.config, text.layers, self.shape.language, tuple(range(self.shape.language.layers)))

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        size = self.config.vision_config.patch_size
        grid = (pixels.shape[-2] // size, pixels.shape[-1] // size)
        return equal_images(pixels.shape[0], self.shape.prefix, grid, pixels.device)

    def narrow(self, args: Args, kwargs: Kwargs, subset: Subset, weight: Tensor | None) -> tuple[Args, Kwargs]:
        # The resampler multiplies queries and keys by itself, without a mask: nothing can be added to its logits.
        return (gather(args[0], subset), *args[1:]), kwargs

    def recurring(self) -> list[nn.Module]:
        looking: Any = self.language.layers
        return [one for layer in looking for one in (layer.cross_attn.k_proj, layer.cross_attn.v_proj)]

    def candidates(self, args: Args, kwargs: Kwargs) -> int:
        # Only `generate` passes a cache that is empty, and only assisted decoding asks it for more than the last logits.
        keep = kwargs.get("logits_to_keep", 0)
        assisted = kwargs.get("past_key_values") is not None and isinstance(keep, int) and keep > 1
        return keep - 1 if assisted else 0

    def prompt(self, args: Args, kwargs: Kwargs, candidates: int) -> Prompt | None:
        if not self.starts(kwargs) or all(kwargs.get(name) is None for name in IMAGES):
            return None
        ids = named(kwargs, args, "input_ids", 0)
        if ids is None:
            raise UnsupportedModel("what asks is told from the template by its id, but the call has no input_ids; pass input_ids")
        live = live_tokens(named(kwargs, args, "attention_mask", 1), ids.shape[1], 0)
        cached = kwargs.get("use_cache") is not False
        return Prompt(ids, torch.zeros_like(ids, dtype=torch.bool), live, candidates, cached, None)

    def marks(self) -> frozenset[int]:
        first = self.config.vocab_size  # an image's token and what is around it; elsewhere a processor names them
        return frozenset(range(first, first + self.config.additional_vocab_size))

    def tag(self, output: Any, value: object) -> None:
        """Nothing travels: latents, not patches, reach the language model."""

    def template_ids(self, processor: Any) -> frozenset[int]:
        ids = {self.config.bos_token_id, self.config.eos_token_id, self.config.pad_token_id}
        if processor is not None:
            ids |= set(getattr(processor, "tokenizer", processor).all_special_ids)
        return frozenset(int(one) for each in ids if each is not None for one in (each if isinstance(each, list) else [each]))


class Gated(CrossView, Stack):
    """The gated cross-attention layers."""

    name, causal, prefix, attention = "language", False, 0, "cross_attn"

    def __init__(self, config: Any, layers: Any, cross: CrossShape) -> None:
        Stack.__init__(self, config, layers, cross.stack)
        self.places, self.first = cross.places, cross.places[0] + 1

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        return LayerCall(named(kwargs, args, "image_hidden_states", 2), named(kwargs, args, "image_attention_mask", 3))

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        rest = {name: value for name, value in kwargs.items() if name != "image_hidden_states"}
        return (*args[:2], call.hidden, *args[3:]), dict(rest, image_attention_mask=call.mask)

    def text(self, args: Args, kwargs: Kwargs) -> Tensor:
        states: Tensor = named(kwargs, args, "hidden_states", 0)
        return states

    def write_text(self, args: Args, kwargs: Kwargs, states: Tensor, subset: Subset) -> tuple[Args, Kwargs]:
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return (states, *args[1:]), dict(rest, cross_attention_gate=gather(kwargs["cross_attention_gate"], subset))

    def sees(self, args: Args, kwargs: Kwargs) -> Tensor:
        mask = self.read(args, kwargs).mask
        assert mask is not None
        return mask[:, 0] > torch.finfo(mask.dtype).min / 2

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        attention: Any = getattr(self.layers[layer], self.attention)
        if attention.qk_layer_norms:
            return attention.q_layer_norm, attention.k_layer_norm
        return attention.q_proj, attention.k_proj

    def projected(self, which: str, output: Tensor) -> Tensor:
        return output.transpose(1, 2).flatten(-2) if output.dim() == 4 else output  # norms give [B, H, T, d]


class Turned(Positioned, OwnDecoder):
    """The layers between them, whose attention turns positions into phases itself."""

    def phases(self, layer: int, call: LayerCall) -> tuple[Tensor, Tensor] | None:
        attention: Any = getattr(self.layers[layer], self.attention)
        cos, sin = attention.rotary_emb(call.hidden, call.positions)
        return cos, sin


def resampler_flops(config: Any) -> tuple[float, float]:
    """FLOPs of the resampler for each patch, and for an image."""
    part, width = config.perceiver_config, config.vision_config.embed_dim
    latents, wide = part.resampler_n_latents, part.resampler_n_heads * part.resampler_head_dim
    key = 4.0 * width * wide + 4.0 * latents * wide
    query = 8.0 * latents * width * wide + 4.0 * latents * latents * wide + 16.0 * latents * width * width
    return part.resampler_depth * key, part.resampler_depth * query


def shape_of(config: Any) -> ModelShape:
    """Read the sizes off an `IdeficsConfig`."""
    tower, heads = config.vision_config, config.num_attention_heads
    side = tower.image_size // tower.patch_size
    key, query = resampler_flops(config)
    layers, wide = config.num_hidden_layers, config.hidden_size
    text = StackShape(layers, wide, heads, heads, wide // heads, config.intermediate_size, 3)
    places = tuple(range(0, layers, config.cross_layer_interval))
    cross = StackShape(len(places), wide, heads, heads, wide // heads, config.intermediate_size, 3)
    return ModelShape(
        vision=tower_shape(tower),
        patches=side * side,
        prefix=1,
        patch_inputs=tower.num_channels * tower.patch_size**2,
        connector=(),
        visual=config.perceiver_config.resampler_n_latents,
        language=text,
        vocab=config.vocab_size + config.additional_vocab_size,
        connects="keys",
        key_flops=key,
        query_flops=query,
        cross=CrossShape(places, cross, tower.embed_dim),
    )
