"""LLaVA: a CLIP or SigLIP tower, a two-layer connector, a Llama, Qwen2 or Mistral language model.

Facts of transformers 5.20 - 5.23 used here: decoder layers take hidden states first and the rest by keyword; encoder layers of
the towers take (hidden states, attention mask); `generate` encodes images before its first forward and passes
`mm_encoder_outputs`, whose object is the tower's own output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atp.adapters import cache_layer as caches
from atp.adapters.base import Adapter, Args, Kwargs, LayerCall, Prompt, StackView, named
from atp.budget.shape import ModelShape, StackShape
from atp.cache import SubsetStore
from atp.errors import BadInput, UnsupportedModel

TOWERS = ("clip_vision_model", "siglip_vision_model")
TEXTS = ("llama", "qwen2", "mistral")
ATTENTION = ("sdpa", "eager")
TAG = "_atp_tower"


class _Stack(StackView):
    """What towers and decoders share."""

    def __init__(self, config: Any, layers: nn.ModuleList, sizes: StackShape) -> None:
        self.config, self.layers = config, list(layers)[: sizes.layers]
        self.head_dim, self.heads = sizes.head_dim, sizes.heads
        self.scaling = sizes.head_dim**-0.5

    @property
    def additive_masks(self) -> bool:
        return bool(self.config._attn_implementation == "eager")

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        attention: Any = self.layers[layer].self_attn
        return attention.q_proj, attention.k_proj


class _Tower(_Stack):
    name, causal = "vision", False

    def __init__(self, config: Any, layers: nn.ModuleList, sizes: StackShape, prefix: int) -> None:
        super().__init__(config, layers, sizes)
        self.prefix = prefix

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        return LayerCall(named(kwargs, args, "hidden_states", 0), named(kwargs, args, "attention_mask", 1))

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        rest = {name: value for name, value in kwargs.items() if name not in ("hidden_states", "attention_mask")}
        return (call.hidden, call.mask), rest


class _Decoder(_Stack):
    name, causal, prefix = "language", True, 0

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        hidden = named(kwargs, args, "hidden_states", 0)
        return LayerCall(hidden, kwargs.get("attention_mask"), kwargs.get("position_embeddings"), kwargs.get("past_key_values"))

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        # Ids with gaps would be read as borders of packed sequences by some kernels; the phases already carry the positions.
        changed = dict(kwargs, attention_mask=call.mask, position_embeddings=call.phases, position_ids=None)
        changed.pop("hidden_states", None)
        return (call.hidden, *args[1:]), changed


class Llava(Adapter):
    """`LlavaForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def __init__(self, model: nn.Module) -> None:
        owner: Any = model
        config = owner.config
        tower, text = config.vision_config, config.text_config
        _check("vision tower", tower.model_type, TOWERS)
        _check("language model", text.model_type, TEXTS)
        self.model = self.top = model
        base: Any = owner.model
        for part in ("vision_tower", "multi_modal_projector", "language_model"):
            if not hasattr(base, part):
                raise UnsupportedModel(
                    f"expected LlavaForConditionalGeneration, got {type(model).__name__} without {part!r}; "
                    "unwrap the model first (PEFT: model.get_base_model())"
                )
        self.base = base
        self.tower, self.connector, self.text = base.vision_tower, base.multi_modal_projector, base.language_model
        _check_attention(tower, text)
        _check_devices(model)
        self.config = config
        self.shape = shape_of(config)
        side = math.isqrt(self.shape.patches)
        self.grid = (side, side)
        inner = base.vision_tower if hasattr(base.vision_tower, "encoder") else base.vision_tower.vision_model
        self.vision = _Tower(base.vision_tower.config, inner.encoder.layers, self.shape.vision, self.shape.prefix)
        self.language = _Decoder(base.language_model.config, base.language_model.layers, self.shape.language)

    def candidates(self, args: Args, kwargs: Kwargs) -> int:
        # Only `generate` passes encoded features, and only assisted decoding asks for more than the last logits: the prompt
        # is followed by guesses then, which must not decide what is pruned.
        keep = kwargs.get("logits_to_keep", 0)
        encoded = kwargs.get("mm_encoder_outputs")
        return keep - 1 if encoded and isinstance(keep, int) and keep > 1 else 0

    def prompt(self, args: Args, kwargs: Kwargs, candidates: int) -> Prompt | None:
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if named(kwargs, args, "pixel_values", 1) is None and encoded is None:
            return None
        ids = named(kwargs, args, "input_ids", 0)
        if ids is None:
            raise UnsupportedModel(
                "visual tokens are found by their id, but the call has inputs_embeds and no input_ids; pass input_ids"
            )
        if encoded is not None and len(encoded.keys()) == 1:
            raise UnsupportedModel(
                "chunked prefill hides the question while the image is read, so nothing can be pruned by it; "
                "call generate with prefill_chunk_size=None"
            )
        cache = kwargs.get("past_key_values")
        caches.check_cache(cache)
        mask = named(kwargs, args, "attention_mask", 2)
        past = 0 if cache is None else cache.get_seq_length()
        live = live_tokens(mask, ids.shape[1], past)
        return Prompt(ids, ids == self.config.image_token_id, live, candidates, kwargs.get("use_cache") is not False, encoded)

    def starts(self, kwargs: Kwargs) -> bool:
        cache = kwargs.get("past_key_values")
        return cache is None or cache.get_seq_length() == 0

    def pixels(self, args: Args, kwargs: Kwargs) -> Tensor:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        return pixels

    def cache_layer(self, cache: Any, layer: int) -> SubsetStore | None:
        if cache is None or len(cache.layers) <= layer:
            return None
        found = cache.layers[layer]
        return found if isinstance(found, caches.PrunedLayer) else None

    def make_cache_layer(self, cache: Any, layer: int) -> SubsetStore:
        return caches.replace(cache, layer)

    def stored_keys(self, cache: Any, layer: int) -> Tensor | None:
        if cache is None or len(cache.layers) <= layer:
            return None
        keys: Tensor | None = cache.layers[layer].keys
        return None if keys is None or keys.numel() == 0 else keys

    def tag(self, output: Any, value: object) -> None:
        setattr(output, TAG, value)

    def tagged(self, features: Any) -> tuple[Any, list[Tensor]]:
        return getattr(features, TAG, None), list(features.pooler_output)

    def map_states(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        states = output.hidden_states
        if states is not None:
            output.hidden_states = tuple(None if state is None else change(state) for state in states)
        if output.last_hidden_state is not None:
            output.last_hidden_state = change(output.last_hidden_state)
        return output

    def resized(self, args: Args, kwargs: Kwargs, change: Callable[[Tensor], Tensor]) -> tuple[Args, Kwargs]:
        pixels = change(named(kwargs, args, "pixel_values", 0))
        rest = {name: value for name, value in kwargs.items() if name != "pixel_values"}
        return (pixels, *args[1:]), dict(rest, interpolate_pos_encoding=True)

    def template_ids(self, processor: Any) -> frozenset[int]:
        text = self.config.text_config
        ids = {self.config.image_token_id, text.bos_token_id, text.eos_token_id, text.pad_token_id}
        ids = {one for each in ids for one in (each if isinstance(each, list) else [each]) if one is not None}
        if processor is None:
            return frozenset(ids)
        tokenizer = getattr(processor, "tokenizer", processor)
        ids |= set(tokenizer.all_special_ids)
        if getattr(processor, "chat_template", None):
            turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ""}]}]
            empty = processor.apply_chat_template(turn, add_generation_prompt=True)
            ids |= set(tokenizer(empty, add_special_tokens=False)["input_ids"])
        return frozenset(int(one) for one in ids)


def shape_of(config: Any) -> ModelShape:
    """Read the sizes off a `LlavaConfig`."""
    tower, text = config.vision_config, config.text_config
    side = tower.image_size // tower.patch_size
    prefix = 1 if tower.model_type == "clip_vision_model" else 0
    sequence = side * side + prefix
    layers = config.vision_feature_layer
    features = 1 if isinstance(layers, int) else len(layers)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    sizes = {
        "vision": StackShape(
            tower.num_hidden_layers, tower.hidden_size, tower.num_attention_heads, tower.num_attention_heads,
            tower.hidden_size // tower.num_attention_heads, tower.intermediate_size, 2,
        ),
        "language": StackShape(
            text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.num_key_value_heads,
            head_dim, text.intermediate_size, 3,
        ),
    }  # fmt: skip
    return ModelShape(
        vision=sizes["vision"],
        patches=side * side,
        prefix=prefix,
        patch_inputs=tower.num_channels * tower.patch_size**2,
        connector=((tower.hidden_size * features, text.hidden_size), (text.hidden_size, text.hidden_size)),
        visual=sequence - (config.vision_feature_select_strategy == "default"),
        language=sizes["language"],
        vocab=text.vocab_size,
        pooling_head=prefix == 0 and bool(getattr(tower, "vision_use_head", True)),
    )


def live_tokens(mask: Tensor | None, length: int, past: int) -> Tensor | None:
    """Return which of the call's tokens are no padding, `[B, T]`; None where all are.

    Raises:
        BadInput: a mask shorter than the sequence.
    """
    if mask is None:
        return None
    if mask.dim() == 4:  # a real token sees itself under any pattern
        diagonal = mask[:, 0, :, -length:].diagonal(dim1=1, dim2=2)
        return diagonal if mask.dtype == torch.bool else diagonal >= 0
    if mask.dim() != 2 or mask.shape[1] < length:
        raise BadInput(
            f"attention_mask has shape {list(mask.shape)}, expected [batch, {past + length}]; pass the processor's own output"
        )
    return mask[:, -length:].to(torch.bool)


def _check(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UnsupportedModel(f"this LLaVA's {what} is of type {given!r}; supported: {', '.join(known)}")


def _check_attention(tower: Any, text: Any) -> None:
    for what, config in (("vision tower", tower), ("language model", text)):
        if config._attn_implementation not in ATTENTION:
            raise UnsupportedModel(
                f"attention implementation {config._attn_implementation!r} of the {what} is not supported; use one of "
                f"{', '.join(ATTENTION)}: model.set_attn_implementation('sdpa')"
            )


def _check_devices(model: Any) -> None:
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(places) > 1:
        raise UnsupportedModel(
            f"the model is spread over {', '.join(sorted(map(str, places)))}, but tokens are gathered on one device; "
            "load it with device_map={'': 0}"
        )
