"""Patches merged behind the tower: InternVL, Idefics3 and SmolVLM (pixel shuffle), Idefics2 (resampler)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from families.base import BEGIN, BREAK, END, IMAGE, TEXT, TOWER, Family, Inputs, build, noise, prompts, single, sizes, spread

PATCH, TILE = 4, 24
TOKENS = (TILE // PATCH // 2) ** 2
"""Visual tokens of one tile, behind a pixel shuffle of two by two."""
TILES = [(1, 2), (1, 1), (2, 2), (1, 1)]
"""Rows and columns of the images' tiles; an image of several tiles has one more, of the whole image."""
LATENTS = 16
PHOTOS = [(20, 32), (24, 16), (32, 32), (12, 28)]
"""Heights and widths of images that keep their size."""


def _internvl(
    dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0, norms: bool = False
) -> Any:
    """`norms`: as InternViT-6B, RMS norms, also of queries and keys, and a Llama text model."""
    tower = {
        **TOWER, "num_hidden_layers": layers, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH],
        "attention_bias": not norms, "use_qk_norm": norms, "norm_type": "rms_norm" if norms else "layer_norm",
    }  # fmt: skip
    text = (LlamaConfig if norms else Qwen2Config)(num_hidden_layers=layers, num_key_value_heads=2, **TEXT)
    config = InternVLConfig(
        vision_config=tower, text_config=text, image_token_id=IMAGE, image_seq_length=TOKENS, tie_word_embeddings=False
    )
    return build(InternVLForConditionalGeneration, config, dtype, attention, seed)


def _internvl_6b(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    return _internvl(dtype, attention, layers, seed, norms=True)


def _tiles(count: int) -> list[int]:
    grids = [TILES[index % len(TILES)] for index in range(count)]
    return [height * width + int(height * width > 1) for height, width in grids]


def _tiled(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Tiles of all images in one row."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    tiles = _tiles(sum(images))
    inputs = prompts(texts, spread(images, [[BEGIN, *[IMAGE] * (count * TOKENS), END] for count in tiles]), side, generator)
    if sum(images):
        inputs["pixel_values"] = noise(generator, model, sum(tiles), 3, TILE, TILE)
    return inputs


def _own_tiles(inputs: Inputs, row: int) -> Tensor:
    counts = [(ids == IMAGE).sum().item() // TOKENS for ids in inputs["input_ids"]]
    first = int(sum(counts[:row]))
    return inputs["pixel_values"][first : first + int(counts[row])]


def _idefics3(model_class: Any, config_class: Any) -> Callable[..., Any]:
    def make(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
        text = LlamaConfig(num_hidden_layers=layers, num_key_value_heads=2, **TEXT)
        tower = {**TOWER, "num_hidden_layers": layers, "image_size": TILE, "patch_size": PATCH}
        config = config_class(
            vision_config=tower, text_config=text, image_token_id=IMAGE, scale_factor=2, tie_word_embeddings=False, pad_token_id=0
        )
        return build(model_class, config, dtype, attention, seed)

    return make


def _split(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Tiles prompt by prompt, `[B, tiles, C, H, W]`; black ones fill up. Each tile stands behind the name of its place."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    tiles = _tiles(sum(images))
    blocks = [[*(each for place in range(count) for each in (BEGIN, 8 + place, *[IMAGE] * TOKENS)), BEGIN] for count in tiles]
    inputs = prompts(texts, spread(images, blocks), side, generator)
    left = iter(tiles)
    own = [sum(next(left) for _ in range(count)) for count in images]
    if sum(own):
        pixels = noise(generator, model, len(own), max(own), 3, TILE, TILE)
        mask = torch.ones(len(own), max(own), TILE, TILE, dtype=torch.int64)
        for row, count in enumerate(own):
            pixels[row, count:], mask[row, count:] = 0, 0
        inputs["pixel_values"], inputs["pixel_attention_mask"] = pixels, mask
    return inputs


def _idefics2(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    text = MistralConfig(num_hidden_layers=layers, num_key_value_heads=2, sliding_window=None, **TEXT)
    tower = {**TOWER, "num_hidden_layers": layers, "image_size": 32, "patch_size": PATCH}
    resampler = {
        "hidden_size": 32, "resampler_n_latents": LATENTS, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 8,
        "num_key_value_heads": 2,
    }  # fmt: skip
    config = Idefics2Config(
        vision_config=tower, perceiver_config=resampler, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False
    )
    return build(Idefics2ForConditionalGeneration, config, dtype, attention, seed)


def _sized(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Images of their own size in `[B, images, C, H, W]`, filled up with black, and the mask of their pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    photos = [PHOTOS[index % len(PHOTOS)] for index in range(sum(images))]
    inputs = prompts(texts, spread(images, [[BREAK, *[IMAGE] * LATENTS, BREAK]] * len(photos)), side, generator)
    if photos:
        most = [max(photo[axis] for photo in photos) for axis in (0, 1)]
        pixels = noise(generator, model, len(images), max(images), 3, *most)
        mask = torch.zeros(len(images), max(images), *most, dtype=torch.int64)
        left = iter(photos)
        for row, count in enumerate(images):
            for place in range(count):
                height, width = next(left)
                mask[row, place, :height, :width] = 1
        inputs["pixel_values"], inputs["pixel_attention_mask"] = pixels * mask[:, :, None], mask
    return inputs


def _own(key: str) -> Callable[[Inputs, int], Tensor]:
    """A prompt's own images of `[B, images, ...]`, cut to the largest of them."""

    def take(inputs: Inputs, row: int) -> Tensor:
        mask = inputs["pixel_attention_mask"][row].bool()
        count, height, width = (int(mask.any(dim).sum()) for dim in ((1, 2), (0, 2), (0, 1)))
        return inputs[key][row : row + 1, :count, ..., :height, :width][: min(count, 1)]

    return take


_masked = single(pixel_values=_own("pixel_values"), pixel_attention_mask=_own("pixel_attention_mask"))

FAMILIES = (
    Family("internvl", "internvl", _internvl, _tiled, single(pixel_values=_own_tiles)),
    Family("internvl-6b", "internvl", _internvl_6b, _tiled, single(pixel_values=_own_tiles)),
    Family("idefics3", "idefics3", _idefics3(Idefics3ForConditionalGeneration, Idefics3Config), _split, _masked),
    Family("smolvlm", "smolvlm", _idefics3(SmolVLMForConditionalGeneration, SmolVLMConfig), _split, _masked),
    Family("idefics2", "idefics2", _idefics2, _sized, _masked),
)
