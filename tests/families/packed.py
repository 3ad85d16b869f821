"""Images of any size in one packed sequence: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Mistral3 and LLaVA with Pixtral's tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from families.base import (
    BEGIN,
    BREAK,
    END,
    IMAGE,
    TEXT,
    TOWER,
    VIDEO,
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

PATCH, MERGE = 4, 2
GRIDS = [(8, 12), (6, 8), (10, 8), (8, 8)]
"""Heights and widths of the images, in patches."""
FRAMES = 3

SPECIAL = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": BEGIN, "vision_end_token_id": END}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def _text(layers: int) -> dict[str, Any]:
    return {**TEXT, "num_hidden_layers": layers, "num_key_value_heads": 2, "rope_parameters": dict(ROPE)}


def _tower(layers: int) -> dict[str, Any]:
    return {"depth": layers, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2}


def _qwen2(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    tower = {**_tower(layers), "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=tower, text_config=_text(layers), tie_word_embeddings=False, **SPECIAL)
    return build(Qwen2VLForConditionalGeneration, config, dtype, attention, seed)


def _qwen2_5(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    """Windows of 4 x 4 patches; full attention in the middle and in the last block."""
    tower = {
        **_tower(layers), "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32,
        "window_size": 4 * PATCH, "fullatt_block_indexes": [layers // 2, layers - 1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(vision_config=tower, text_config=_text(layers), tie_word_embeddings=False, **SPECIAL)
    return build(Qwen2_5_VLForConditionalGeneration, config, dtype, attention, seed)


def _qwen3(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    """Features of tower blocks 0, 2 and 3 are added behind language layers 0, 1 and 2."""
    tower = {
        **_tower(layers), "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32,
        "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2, 3],
    }  # fmt: skip
    text = {**_text(layers), "head_dim": 8}
    config = Qwen3VLConfig(vision_config=tower, text_config=text, tie_word_embeddings=False, **SPECIAL)
    return build(Qwen3VLForConditionalGeneration, config, dtype, attention, seed)


def _grids(count: int, time: int) -> Tensor:
    return torch.tensor([(time, *GRIDS[index % len(GRIDS)]) for index in range(count)], dtype=torch.int64).reshape(-1, 3)


def _kinds(ids: Tensor) -> Tensor:
    """Types of tokens: 0 text, 1 image, 2 video."""
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


def _patches(
    model: Any, texts: Sequence[int], images: Sequence[int] | None, side: str, seed: int, token: int, time: int, stamps: bool
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    grids = _grids(sum(images), time)
    blocks = []
    for _, height, width in grids.tolist():
        frame = height * width // MERGE**2
        if stamps:  # each frame of a Qwen3 video stands alone behind its time stamp
            blocks.append([each for number in range(time) for each in (20 + number, BEGIN, *[token] * frame, END)])
        else:
            blocks.append([BEGIN, *[token] * (frame * time), END])
    inputs = prompts(texts, spread(images, blocks), side, generator)
    inputs["mm_token_type_ids"] = _kinds(inputs["input_ids"])
    if sum(images):
        names = ("pixel_values", "image_grid_thw") if token == IMAGE else ("pixel_values_videos", "video_grid_thw")
        inputs[names[0]] = noise(generator, model, int(grids.prod(-1).sum()), 3 * 2 * PATCH**2)
        inputs[names[1]] = grids
    return inputs


def _images(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    return _patches(model, texts, images, side, seed, IMAGE, 1, False)


def _videos(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Videos of three pairs of frames; `images` counts videos."""
    return _patches(model, texts, images or (1,) * len(texts), side, seed, VIDEO, FRAMES, model.config.model_type == "qwen3_vl")


def _own_patches(key: str, grids: str) -> Any:
    def take(inputs: Inputs, row: int) -> Tensor:
        counts = inputs[grids].prod(-1).tolist()
        first = sum(inputs.images[:row])
        start = sum(counts[:first])
        return inputs[key][start : start + sum(counts[first : first + inputs.images[row]])]

    return take


_qwen_single = single(
    mm_token_type_ids=tokens("mm_token_type_ids"),
    pixel_values=_own_patches("pixel_values", "image_grid_thw"),
    pixel_values_videos=_own_patches("pixel_values_videos", "video_grid_thw"),
    image_grid_thw=pictures("image_grid_thw"),
    video_grid_thw=pictures("video_grid_thw"),
)


def _pixtral(layers: int) -> PixtralVisionConfig:
    return PixtralVisionConfig(num_hidden_layers=layers, image_size=64, patch_size=PATCH, **TOWER)


def _mistral(layers: int) -> MistralConfig:
    return MistralConfig(num_hidden_layers=layers, num_key_value_heads=2, head_dim=8, sliding_window=None, **TEXT)


def _ministral3(layers: int) -> Ministral3Config:
    """Queries are lengthened behind the eighth token."""
    rope = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8,
        "max_position_embeddings": 512, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
        "llama_4_scaling_beta": 0.5,
    }  # fmt: skip
    sizes = {**TEXT, "num_hidden_layers": layers, "num_key_value_heads": 2, "head_dim": 8}
    return Ministral3Config(rope_parameters=rope, **sizes)


def _mistral3(
    dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0, third: bool = False
) -> Any:
    text = _ministral3(layers) if third else _mistral(layers)
    config = Mistral3Config(
        vision_config=_pixtral(layers), text_config=text, image_token_index=IMAGE, spatial_merge_size=MERGE,
        vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip
    return build(Mistral3ForConditionalGeneration, config, dtype, attention, seed)


def _mistral3_third(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    return _mistral3(dtype, attention, layers, seed, third=True)


def _llava(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    config = LlavaConfig(
        vision_config=_pixtral(layers), text_config=_mistral(layers), image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip
    return build(LlavaForConditionalGeneration, config, dtype, attention, seed)


def _sized(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Pixels padded to the largest image; a break behind every row of tokens, an end behind the last."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    merge = getattr(model.config, "spatial_merge_size", 1)
    grids = [tuple(each // (3 - merge) for each in GRIDS[index % len(GRIDS)]) for index in range(sum(images))]
    blocks = []
    for height, width in grids:
        lines = [[IMAGE] * (width // merge) + [BREAK] for _ in range(height // merge)]
        blocks.append([*[each for line in lines for each in line][:-1], END])
    inputs = prompts(texts, spread(images, blocks), side, generator)
    if sum(images):
        most = [PATCH * max(grid[axis] for grid in grids) for axis in (0, 1)]
        pixels = noise(generator, model, len(grids), 3, *most)
        for index, (height, width) in enumerate(grids):
            pixels[index, :, PATCH * height :], pixels[index, :, :, PATCH * width :] = 0, 0
        inputs["pixel_values"] = pixels
        inputs["image_sizes"] = torch.tensor([(PATCH * height, PATCH * width) for height, width in grids])
    return inputs


def _own_pixels(inputs: Inputs, row: int) -> Tensor:
    own = pictures("image_sizes")(inputs, row)
    if not len(own):
        return inputs["pixel_values"][:0]
    height, width = own.amax(0).tolist()
    return pictures("pixel_values")(inputs, row)[..., :height, :width]


_pixtral_single = single(pixel_values=_own_pixels, image_sizes=pictures("image_sizes"))

FAMILIES = (
    Family("qwen2_vl", "qwen2_vl", _qwen2, _images, _qwen_single, videos=_videos, video_token_id=VIDEO),
    Family("qwen2_5_vl", "qwen2_5_vl", _qwen2_5, _images, _qwen_single, videos=_videos, video_token_id=VIDEO),
    Family("qwen3_vl", "qwen3_vl", _qwen3, _images, _qwen_single, videos=_videos, video_token_id=VIDEO),
    Family("mistral3", "mistral3", _mistral3, _sized, _pixtral_single),
    Family("mistral3-ministral3", "mistral3", _mistral3_third, _sized, _pixtral_single),
    Family("llava-pixtral-mistral", "llava", _llava, _sized, _pixtral_single),
)
