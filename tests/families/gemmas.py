"""Images that see themselves whole: PaliGemma, PaliGemma 2 and Gemma 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from families.base import (
    BEGIN,
    BREAK,
    END,
    IMAGE,
    TEXT,
    TOWER,
    VOCAB,
    Family,
    Inputs,
    build,
    noise,
    pictures,
    prompts,
    single,
    sizes,
    spread,
    tokens,
)  # fmt: skip

PATCH, SIDE, POOLED = 4, 32, 16
OUTSIDE = VOCAB + 1
"""An image id outside of the vocabulary: the model puts 0 in its place before the embedding."""
WINDOW = 16


def _tower(layers: int, side: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(num_hidden_layers=layers, image_size=side, patch_size=PATCH, vision_use_head=False, **TOWER)


def _paligemma(
    dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0, second: bool = False
) -> Any:
    common = {**TEXT, "num_hidden_layers": layers, "head_dim": 8}
    if second:
        text: Any = Gemma2Config(num_key_value_heads=2, query_pre_attn_scalar=8, sliding_window=WINDOW, **common)
    else:
        text = GemmaConfig(num_key_value_heads=1, **common)
    config = PaliGemmaConfig(
        vision_config=_tower(layers, SIDE // 2), text_config=text, image_token_index=OUTSIDE if second else IMAGE,
        projection_dim=32, hidden_size=32, vocab_size=VOCAB, tie_word_embeddings=False,
    )  # fmt: skip
    if second:  # Gemma 2 has soft caps, which sdpa cannot
        own = {"": attention, "vision_config": attention, "text_config": "eager"}
        return build(PaliGemmaForConditionalGeneration, config, dtype, own, seed)
    return build(PaliGemmaForConditionalGeneration, config, dtype, attention, seed)


def _paligemma2(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    """A Gemma 2 text model: sliding and full attention in turn, soft caps; always eager."""
    return _paligemma(dtype, attention, layers, seed, second=True)


def _prefix(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Images first; the whole prompt is prefix, token type 0."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    count = (SIDE // 2 // PATCH) ** 2
    inputs = prompts(texts, spread(images, [[model.config.image_token_id] * count] * sum(images)), side, generator, lead=0)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if sum(images):
        inputs["pixel_values"] = noise(generator, model, sum(images), 3, SIDE // 2, SIDE // 2)
    return inputs


def _gemma3(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    """Two sliding layers to one of full attention."""
    kinds = ["full_attention" if index % 3 == 2 else "sliding_attention" for index in range(layers)]
    text = Gemma3TextConfig(
        num_hidden_layers=layers, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW,
        layer_types=kinds, **TEXT,
    )  # fmt: skip
    config = Gemma3Config(
        vision_config=_tower(layers, SIDE), text_config=text, image_token_index=IMAGE, boi_token_index=BEGIN,
        eoi_token_index=END, mm_tokens_per_image=POOLED, tie_word_embeddings=False,
    )  # fmt: skip
    return build(Gemma3ForConditionalGeneration, config, dtype, attention, seed)


def _blocks(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Each image between line breaks, a begin and an end; token type 1 at its tokens."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    block = [BREAK, BEGIN, *[IMAGE] * POOLED, END, BREAK]
    inputs = prompts(texts, spread(images, [block] * sum(images)), side, generator)
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    if sum(images):
        inputs["pixel_values"] = noise(generator, model, sum(images), 3, SIDE, SIDE)
    return inputs


_single = single(token_type_ids=tokens("token_type_ids"), pixel_values=pictures("pixel_values"))

FAMILIES = (
    Family("paligemma", "paligemma", _paligemma, _prefix, _single),
    Family("paligemma2", "paligemma", _paligemma2, _prefix, _single, image_token_id=OUTSIDE),
    Family("gemma3", "gemma3", _gemma3, _blocks, _single),
)
