"""Families whose visual tokens are scattered among the text embeddings of one decoder: all that they share.

Facts of transformers 5.20 - 5.23 used here: decoder layers take hidden states first and the rest by keyword; `generate` encodes
images before its first forward and passes `mm_encoder_outputs`, whose object is the tower's own output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atp.adapters import cache_layer as caches
from atp.adapters.base import Adapter, Args, Kwargs, Prompt, Source, named
from atp.budget.shape import StackShape
from atp.cache import SubsetStore
from atp.errors import BadInput, UnsupportedModel

ATTENTION = ("sdpa", "eager")
LAYERS = ("full_attention", "sliding_attention")
CHUNK = {"pooler_output", "deepstack_features"}
"""What `generate` cuts into chunks of encoded features, and all that it leaves of them."""
TAG = "_atp_tower"


class Scattered(Adapter):
    """Base of such families. A family says where its parts are, and how its tower's tokens become visual tokens.

    Attributes:
        parts: names in the base model of the tower, the connector (None where it is inside the tower) and the language model.
        mask_place: position of `attention_mask` among the arguments of the base model.
    """

    parts: ClassVar[tuple[str, str | None, str]] = ("vision_tower", "multi_modal_projector", "language_model")
    mask_place: ClassVar[int] = 2

    def __init__(self, model: nn.Module) -> None:
        owner: Any = model
        self.model = self.top = model
        self.config = owner.config
        self._check_types()
        self.base = owner.model
        found: list[Any] = []
        for part in self.parts:
            if part is not None and not hasattr(self.base, part):
                raise UnsupportedModel(
                    f"expected the stock {self.config.model_type} model, got {type(model).__name__} without {part!r}; "
                    "unwrap the model first (PEFT: model.get_base_model())"
                )
            found.append(None if part is None else getattr(self.base, part))
        self.tower, self.connector, self.text = found
        check_attention(self.tower.config, self.text.config)
        check_devices(model)
        self.build()

    def build(self) -> None:
        """Fill in shape, grid and the two views."""
        raise NotImplementedError

    def check(self) -> None:
        super().check()
        check_attention(getattr(self, "tower", self.text).config, self.text.config)

    def _check_types(self) -> None:
        for what, name, known in (("vision tower", "vision_config", self.towers), ("language model", "text_config", self.texts)):
            given = getattr(getattr(self.config, name, None), "model_type", None)
            if known and given not in known:
                raise UnsupportedModel(
                    f"this {self.config.model_type} model's {what} is of type {given!r}; supported: {', '.join(known)}"
                )

    def image_ids(self) -> tuple[int, ...]:
        """Token ids that stand for visual tokens."""
        return (self.config.image_token_id,)

    def has_pixels(self, args: Args, kwargs: Kwargs) -> bool:
        """Whether the base model's call carries pixels."""
        return named(kwargs, args, "pixel_values", 1) is not None

    def candidates(self, args: Args, kwargs: Kwargs) -> int:
        # Only `generate` passes encoded features, and only assisted decoding asks for more than the last logits: the prompt
        # is followed by guesses then, which must not decide what is pruned.
        keep = kwargs.get("logits_to_keep", 0)
        encoded = kwargs.get("mm_encoder_outputs")
        return keep - 1 if encoded and isinstance(keep, int) and keep > 1 else 0

    def prompt(self, args: Args, kwargs: Kwargs, candidates: int) -> Prompt | None:
        given = self.given(args, kwargs)
        if not given:
            return None
        ids = named(kwargs, args, "input_ids", 0)
        if ids is None:
            raise UnsupportedModel(
                "visual tokens are found by their id, but the call has inputs_embeds and no input_ids; pass input_ids"
            )
        if any(features is not None and set(features.keys()) <= CHUNK for features in given.values()):
            raise UnsupportedModel(
                "chunked prefill hides the question while the image is read, so nothing can be pruned by it; "
                "call generate with prefill_chunk_size=None"
            )
        cache = kwargs.get("past_key_values")
        caches.check_cache(cache)
        mask = named(kwargs, args, "attention_mask", self.mask_place)
        past = 0 if cache is None else cache.get_seq_length()
        sources = tuple(Source(self.tokens_of(ids, kind), features) for kind, features in given.items())
        visual = functools.reduce(torch.logical_or, [source.visual for source in sources])
        live = live_tokens(mask, ids.shape[1], past)
        cached = kwargs.get("use_cache") is not False
        extra = self.extra(args, kwargs, sources[0].features)
        several = sources if len(sources) > 1 else ()
        return Prompt(ids, visual, live, candidates, cached, sources[0].features, extra, several)

    def given(self, args: Args, kwargs: Kwargs) -> dict[str, Any]:
        """What the base model's call carries by modality: features that were encoded before, or None for pixels."""
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        return {} if encoded is None and not self.has_pixels(args, kwargs) else {"image": encoded}

    def tokens_of(self, ids: Tensor, modality: str) -> Tensor:
        """Where the visual tokens of a modality stand, `[B, T]` bool as the token ids."""
        return functools.reduce(torch.logical_or, [ids == one for one in self.image_ids()])

    def extra(self, args: Args, kwargs: Kwargs, encoded: Any) -> Any:
        """What `pack` needs besides."""
        return None

    def starts(self, kwargs: Kwargs) -> bool:
        cache = kwargs.get("past_key_values")
        return cache is None or cache.get_seq_length() == 0

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

    def extent(self, args: Args, kwargs: Kwargs) -> tuple[int, int]:
        given = named(kwargs, args, "input_ids", 0)
        given = kwargs["inputs_embeds"] if given is None else given
        return given.shape[0], given.shape[1]

    def tag(self, output: Any, value: object) -> None:
        setattr(output, TAG, value)

    def tagged(self, features: Any) -> tuple[Any, list[int]]:
        return getattr(features, TAG, None), [len(one) for one in features.pooler_output]

    def map_states(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        states = output.hidden_states
        if states is not None:
            output.hidden_states = tuple(None if state is None else change(state) for state in states)
        if output.last_hidden_state is not None:
            output.last_hidden_state = change(output.last_hidden_state)
        return output

    def template_ids(self, processor: Any) -> frozenset[int]:
        text = self.config.text_config
        names = ("bos_token_id", "eos_token_id", "pad_token_id")  # some configurations have not all of them
        ids = {self.config.image_token_id, *(getattr(text, name, None) for name in names)}
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


def text_shape(text: Any) -> StackShape:
    """Read the sizes off the configuration of a Llama-like language model."""
    return StackShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate=text.intermediate_size,
        mlp_matrices=3,
    )


def tower_shape(tower: Any, **changes: Any) -> StackShape:
    """Read the sizes off the configuration of a CLIP-like tower."""
    sizes = {
        "layers": tower.num_hidden_layers,
        "hidden": tower.hidden_size,
        "heads": tower.num_attention_heads,
        "kv_heads": tower.num_attention_heads,
        "head_dim": tower.hidden_size // tower.num_attention_heads,
        "intermediate": tower.intermediate_size,
        "mlp_matrices": 2,
    }
    return StackShape(**{**sizes, **changes})


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


def check_attention(tower: Any, text: Any) -> None:
    """Refuse attention implementations whose masks nobody here can cut.

    Raises:
        UnsupportedModel: naming the stack and what to set instead.
    """
    for what, config in (("vision tower", tower), ("language model", text)):
        if config._attn_implementation not in ATTENTION:
            raise UnsupportedModel(
                f"attention implementation {config._attn_implementation!r} of the {what} is not supported; use one of "
                f"{', '.join(ATTENTION)}: model.set_attn_implementation('sdpa')"
            )
    check_layers(text)


def check_layers(text: Any) -> None:
    """Refuse language models whose layers remember tokens otherwise than by keys and values of their own.

    Raises:
        UnsupportedModel: naming the layers and what to do instead.
    """
    kinds = getattr(text, "layer_types", None) or ()
    odd = [layer for layer, kind in enumerate(kinds) if kind not in LAYERS]
    if odd:
        raise UnsupportedModel(
            f"layer {odd[0]} of the language model is of type {kinds[odd[0]]!r} ({len(odd)} such layers), expected "
            f"{' or '.join(LAYERS)}: recurrent and linear attention carry every token on in one state, so none can leave; use a "
            "model with attention in every layer"
        )
    if getattr(text, "num_kv_shared_layers", 0):
        raise UnsupportedModel(
            f"the last {text.num_kv_shared_layers} layers of the language model look at the keys of earlier layers, which hold "
            "other tokens once some have left; expected num_kv_shared_layers=0: use a model without shared keys, such as gemma3"
        )


def check_devices(model: Any) -> None:
    """Refuse a model that is spread over devices.

    Raises:
        UnsupportedModel: naming them.
    """
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(places) > 1:
        raise UnsupportedModel(
            f"the model is spread over {', '.join(sorted(map(str, places)))}, but tokens are gathered on one device; "
            "load it with device_map={'': 0}"
        )
