"""BLIP-2 and InstructBLIP: a tower with a class token, queries of a Q-Former that look at all its patches, and OPT, Llama or T5.

Facts of transformers 5.20 - 5.23 used here: `generate` calls tower, Q-Former and embedding itself and hands embeddings to the
language model, so the language model is what the engine watches, and ids are read where they are embedded.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from atp.adapters import cache_layer as caches
from atp.adapters.base import Args, Images, Kwargs, Listener, Prompt, named
from atp.adapters.llava import equal_images
from atp.adapters.scattered import Scattered, check_attention, check_devices, live_tokens, text_shape, tower_shape
from atp.adapters.t5 import Encoder, cut_decoder_keys, decoder_keys, t5_shapes
from atp.adapters.views import BlindTower, Decoder
from atp.budget.shape import ModelShape, StackShape
from atp.errors import UnsupportedModel
from atp.subset import Subset, gather, weighted

INSTRUCTION = 32
"""Words of the instruction that sizes assume; a run counts those it had."""


class Blip2(Scattered):
    """`Blip2ForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("blip-2",)
    texts: ClassVar[tuple[str, ...]] = ("opt", "llama", "t5")
    connects: ClassVar[str] = "keys"
    resizable: ClassVar[bool] = True
    limits: ClassVar[tuple[str, ...]] = (
        "the tower takes no mask, so all images of a batch keep the same count in it",
        "prompts are given as input_ids, not as embeddings",
    )

    def __init__(self, model: nn.Module) -> None:
        owner: Any = model
        self.model = self.top = model
        self.config = owner.config
        self._check_types()
        for part in ("vision_model", "qformer", "language_model"):
            if not hasattr(owner, part):
                raise UnsupportedModel(
                    f"expected the stock {self.config.model_type} model, got {type(model).__name__} without {part!r}; "
                    "unwrap the model first (PEFT: model.get_base_model())"
                )
        self.tower, self.connector = owner.vision_model, owner.qformer
        if self.config.text_config.is_encoder_decoder:
            self.base = self.text = owner.language_model.encoder
            self.reader = owner.language_model.decoder
        else:
            self.base = owner.language_model
            inner: Any = owner.language_model.model
            self.text = getattr(inner, "decoder", inner)
        check_attention(self.tower.config, self.text.config)
        check_attention(self.connector.config, self.text.config)
        check_devices(model)
        self._ids: Tensor | None = None
        self.build()

    def build(self) -> None:
        self.shape = shape_of(self.config)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        self.grid = (side, side)
        tower: Any = self.tower
        text: Any = self.text
        self.vision = FusedTower(tower.config, tower.encoder.layers, self.shape.vision, self.shape.prefix)
        if self.reader is not None:
            self.language = Encoder(text.config, text.block, self.shape.language)
        else:
            self.language = Decoder(text.config, text.layers, self.shape.language)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        size = self.config.vision_config.patch_size
        grid = (pixels.shape[-2] // size, pixels.shape[-1] // size)
        return equal_images(pixels.shape[0], self.shape.prefix, grid, pixels.device)

    def narrow(self, args: Args, kwargs: Kwargs, subset: Subset, weight: Tensor | None) -> tuple[Args, Kwargs]:
        cut = {name: gather(kwargs[name], subset) for name in ("encoder_hidden_states", "encoder_attention_mask")}
        if weight is not None:  # a mask of four dimensions is taken as it is
            seen = cut["encoder_attention_mask"].bool()[:, None, None, :]
            cut["encoder_attention_mask"] = weighted(seen, weight, cut["encoder_hidden_states"].dtype)
        return args, {**kwargs, **cut}

    def asked(self, args: Args, kwargs: Kwargs) -> float | None:
        return reader_flops(self.config, instruction(args, kwargs))[1]

    def listeners(self) -> list[tuple[nn.Module, Listener]]:
        def embed(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            self._ids = named(kwargs, args, "input", 0)

        owner: Any = self.model
        return [(owner.get_input_embeddings(), embed)]

    def candidates(self, args: Args, kwargs: Kwargs) -> int:
        return 0

    def prompt(self, args: Args, kwargs: Kwargs, candidates: int) -> Prompt | None:
        embedded = kwargs.get("inputs_embeds")
        ids, self._ids = self._ids, None
        if embedded is None:
            return None
        if ids is None or ids.dim() != 2 or ids.shape[1] != embedded.shape[1] or embedded.shape[0] % ids.shape[0]:
            raise UnsupportedModel(
                f"visual tokens are found by their id, but {list(embedded.shape[:2])} embeddings came without ids of theirs; "
                "pass input_ids instead of inputs_embeds, and use the cache (use_cache=True)"
            )
        ids = ids.to(embedded.device).repeat_interleave(embedded.shape[0] // ids.shape[0], 0)  # beams: after the embedding
        cache = kwargs.get("past_key_values")
        caches.check_cache(cache)
        past = 0 if cache is None else cache.get_seq_length()
        visual = ids == self.config.image_token_id
        live = live_tokens(kwargs.get("attention_mask"), ids.shape[1], past)
        return Prompt(ids, visual, live, 0, kwargs.get("use_cache") is not False, ids)

    def keys_of(self, output: Any) -> Tensor:
        states: Tensor = output.last_hidden_state
        return states

    def read_keys(self, kwargs: Kwargs) -> tuple[Tensor | None, tuple[int, int]]:
        return decoder_keys(kwargs)

    def cut_keys(self, kwargs: Kwargs, subset: Subset) -> Kwargs:
        return cut_decoder_keys(kwargs, subset)

    def tag(self, output: Any, value: object) -> None:
        """Nothing travels: the Q-Former's queries, not patches, reach the language model."""

    def tagged(self, features: Any) -> tuple[Any, list[int]]:
        return None, [self.shape.visual] * len(features)


class FusedTower(BlindTower):
    """A tower without masks whose queries, keys and values come out of one projection."""

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        attention: Any = getattr(self.layers[layer], self.attention)
        return attention.qkv, attention.qkv

    def projected(self, which: str, output: Tensor) -> Tensor:
        return output.chunk(3, dim=-1)[("queries", "keys").index(which)]


def instruction(args: Args, kwargs: Kwargs) -> int:
    """Words of the instruction that a call of the Q-Former carries, padding included."""
    queries, mask = kwargs["query_embeds"], kwargs.get("attention_mask")
    return 0 if mask is None else mask.shape[1] - queries.shape[1]


def reader_flops(config: Any, words: int) -> tuple[float, float]:
    """FLOPs of the Q-Former: for each patch, and for an image with that many words of instruction."""
    reader, queries = config.qformer_config, config.num_query_tokens
    wide, own = reader.hidden_size, config.num_query_tokens + words
    looks = sum(layer % reader.cross_attention_frequency == 0 for layer in range(reader.num_hidden_layers))
    key = looks * (4.0 * reader.encoder_hidden_size * wide + 4.0 * queries * wide)
    layer_ = 8.0 * own * wide * wide + 4.0 * own * own * wide + 4.0 * own * wide * reader.intermediate_size
    return key, reader.num_hidden_layers * layer_ + looks * 4.0 * queries * wide * wide


def opt_shape(text: Any) -> StackShape:
    """Read the sizes off an `OPTConfig`.

    Raises:
        UnsupportedModel: embeddings of another width than the layers.
    """
    if text.word_embed_proj_dim != text.hidden_size:
        raise UnsupportedModel(
            f"this OPT model embeds words in {text.word_embed_proj_dim} dimensions and computes in {text.hidden_size}; "
            "expected the same, as in opt-2.7b and opt-6.7b"
        )
    heads, wide = text.num_attention_heads, text.hidden_size
    return StackShape(text.num_hidden_layers, wide, heads, heads, wide // heads, text.ffn_dim, 2)


def shape_of(config: Any) -> ModelShape:
    """Read the sizes off a `Blip2Config` or `InstructBlipConfig`."""
    tower, text = config.vision_config, config.text_config
    side = tower.image_size // tower.patch_size
    decoder = None
    if text.model_type == "t5":
        language, decoder = t5_shapes(text)
    else:
        language = opt_shape(text) if text.model_type == "opt" else text_shape(text)
    key, query = reader_flops(config, INSTRUCTION if config.model_type == "instructblip" else 0)
    return ModelShape(
        vision=tower_shape(tower),
        patches=side * side,
        prefix=1,
        patch_inputs=3 * tower.patch_size**2,
        connector=((config.qformer_config.hidden_size, text.hidden_size),),
        visual=config.num_query_tokens,
        language=language,
        decoder=decoder,
        vocab=text.vocab_size,
        connects="keys",
        key_flops=key,
        query_flops=query,
    )


class InstructBlip(Blip2):
    """`InstructBlipForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("instructblip",)
    texts: ClassVar[tuple[str, ...]] = ("llama", "opt", "t5")
