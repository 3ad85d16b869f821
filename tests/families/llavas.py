"""Square images encoded tile by tile: LLaVA, VipLLaVA, FastVLM, LLaVA-NeXT, LLaVA-OneVision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    ResNetConfig,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.image_processing_utils import select_best_resolution

from families.base import IMAGE, TEXT, TOWER, VIDEO, Family, Inputs, build, noise, pictures, prompts, rows, single, sizes, spread

VIP_LAYERS = "vision_feature_layer" if hasattr(VipLlavaConfig(), "vision_feature_layer") else "vision_feature_layers"
"""As VipLlava calls them from transformers 5.23 on, or before."""
PATCH, TILE = 4, 16
SIDE = TILE // PATCH
CONVOLVED = 16
"""Pixels to a feature of the convolutions, in each direction."""
GRIDS = [[16, 32], [32, 16], [32, 32]]
PHOTOS = [(20, 24), (10, 32), (32, 14), (16, 32)]
"""Heights and widths of the images: unpadding takes rows or columns of some; the first has four tiles."""


def _clip(layers: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(num_hidden_layers=layers, image_size=TILE, patch_size=PATCH, **TOWER)


def _siglip(layers: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(num_hidden_layers=layers, image_size=TILE, patch_size=PATCH, vision_use_head=False, **TOWER)


def _convolutions(layers: int) -> ResNetConfig:
    """Stand in for timm's FastViT, which needs timm: features `[I, C, h, w]` too. As many convolutions as there are."""
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "hidden_size": 32, "depths": [1, 1]}
    return ResNetConfig(layer_type="basic", downsample_in_first_stage=True, **sizes)


def _llama(layers: int) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=layers, num_key_value_heads=4, **TEXT)


def _qwen2(layers: int) -> Qwen2Config:
    return Qwen2Config(num_hidden_layers=layers, num_key_value_heads=2, **TEXT)


def _maker(model_class: Any, config_class: Any, tower: Callable[[int], Any], text: Callable[[int], Any], **options: Any) -> Any:
    def make(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
        config = config_class(
            vision_config=tower(layers), text_config=text(layers), image_token_index=IMAGE, tie_word_embeddings=False, **options
        )
        if tower is _convolutions:  # which know no sdpa
            return build(model_class, config, dtype, {"": attention, "vision_config": "eager", "text_config": attention}, seed)
        return build(model_class, config, dtype, attention, seed)

    return make


def _one_tile(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    inputs = prompts(texts, spread(images, [[IMAGE] * SIDE**2] * sum(images)), side, generator)
    if sum(images):
        size = TILE if hasattr(model.config.vision_config, "patch_size") else SIDE * CONVOLVED
        inputs["pixel_values"] = noise(generator, model, sum(images), 3, size, size)
    return inputs


def _unpadded(photo: tuple[int, int], grid: tuple[int, int], most: int | None) -> int:
    """Visual tokens of the tiles, newlines included."""
    height, width = SIDE * grid[0], SIDE * grid[1]
    if photo[1] / photo[0] > width / height:
        height -= (height - int(round(photo[0] * width / photo[1], 7))) // 2 * 2
    else:
        width -= (width - int(round(photo[1] * height / photo[0], 7))) // 2 * 2
    ratio = math.sqrt(height * width / (most * SIDE**2)) if most else 1.0
    if ratio > 1.1:
        height, width = int(height // ratio), int(width // ratio)
    return height * (width + 1)


def _any_resolution(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
    whole: bool = False,
    most: int | None = None,
) -> Inputs:
    """Tiles of images of different sizes; `whole`: several images of one prompt are not tiled; `most`: tiles before shrinking."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    counts, tiles = [], []
    photos = [PHOTOS[index % len(PHOTOS)] for index in range(sum(images))]
    alone = [not whole or count == 1 for count in images for _ in range(count)]
    for photo, tiled in zip(photos, alone, strict=True):
        best = select_best_resolution(photo, GRIDS)
        grid = (best[0] // TILE, best[1] // TILE)
        tiles.append(1 + grid[0] * grid[1] if tiled else 1)
        counts.append(SIDE**2 + (_unpadded(photo, grid, most) if tiled else 1))
    inputs = prompts(texts, spread(images, [[IMAGE] * count for count in counts]), side, generator)
    if sum(images):
        pixels = noise(generator, model, sum(images), max(tiles), 3, TILE, TILE)
        for index, count in enumerate(tiles):
            pixels[index, count:] = 0
        inputs["pixel_values"], inputs["image_sizes"] = pixels, torch.tensor(photos)
        if whole:
            inputs["batch_num_images"] = torch.tensor(images)
    return inputs


def _videos(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Videos of three frames, each pooled two by two, a newline behind the last."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    count = 3 * math.ceil(SIDE / 2) ** 2 + 1
    inputs = prompts(texts, spread(images, [[VIDEO] * count] * sum(images)), side, generator)
    inputs["pixel_values_videos"] = noise(generator, model, sum(images), 3, 3, TILE, TILE)
    return inputs


_plain = single(pixel_values=pictures("pixel_values"))
_tiled = single(
    pixel_values=pictures("pixel_values"),
    pixel_values_videos=pictures("pixel_values_videos"),
    image_sizes=pictures("image_sizes"),
    batch_num_images=rows("batch_num_images"),
)

FAMILIES = (
    Family(
        "llava-clip-llama", "llava",
        _maker(LlavaForConditionalGeneration, LlavaConfig, _clip, _llama, image_seq_length=SIDE**2), _one_tile, _plain,
    ),
    Family(
        "llava-siglip-qwen2", "llava",
        _maker(
            LlavaForConditionalGeneration, LlavaConfig, _siglip, _qwen2,
            image_seq_length=SIDE**2, vision_feature_select_strategy="full",
        ),
        _one_tile, _plain,
    ),
    Family(
        "vipllava", "vipllava",
        _maker(VipLlavaForConditionalGeneration, VipLlavaConfig, _clip, _llama, **{VIP_LAYERS: (-2, -3, 1)}),
        _one_tile, _plain,
    ),
    Family(
        "fast_vlm", "fast_vlm",
        _maker(FastVlmForConditionalGeneration, FastVlmConfig, _convolutions, _qwen2, image_seq_length=SIDE**2),
        _one_tile, _plain,
    ),
    Family(
        "llava_next", "llava_next",
        _maker(LlavaNextForConditionalGeneration, LlavaNextConfig, _clip, _llama, image_grid_pinpoints=GRIDS),
        _any_resolution, _tiled,
    ),
    Family(
        "llava_onevision", "llava_onevision",
        _maker(
            LlavaOnevisionForConditionalGeneration, LlavaOnevisionConfig, _siglip, _qwen2,
            video_token_index=VIDEO, image_grid_pinpoints=GRIDS, vision_aspect_ratio="anyres_max_2",
        ),
        partial(_any_resolution, whole=True, most=2), _tiled, videos=_videos, video_token_id=VIDEO,
    ),
)  # fmt: skip
