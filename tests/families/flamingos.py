"""Images read by cross-attention layers in the text model: Idefics (open Flamingo) and Mllama."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import IdeficsConfig, IdeficsForVisionText2Text, MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from families.base import TEXT, VOCAB, WORDS, Family, Inputs, build, noise, prompts, rows, single, sizes, spread, tokens

PATCH, SIDE, LATENTS, TILES = 4, 16, 16, 4
AROUND, PICTURE = VOCAB, VOCAB + 1
"""Ids of Idefics behind the vocabulary: around an image, and an image."""
SHAPES = [2, 1, 6, 3]
"""Aspect ratios of Mllama's images, by id: 1 x 2 tiles, 1, 2 x 2 and 1 x 3."""
COUNTS = {1: 1, 2: 2, 3: 3, 6: 4}


def _idefics(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    """A gated cross-attention layer in front of every second language layer; the resampler; norms of queries and keys.

    An odd number of layers is one more: the model reads a cross-attention layer that it has not made otherwise.
    """
    layers += layers % 2
    tower = {"embed_dim": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
    resampler = {
        "use_resampler": True, "resampler_n_latents": LATENTS, "resampler_depth": 2, "resampler_n_heads": 4,
        "resampler_head_dim": 8, "qk_layer_norms_perceiver": True,
    }  # fmt: skip
    config = IdeficsConfig(
        vision_config={**tower, "image_size": SIDE, "patch_size": PATCH}, perceiver_config=resampler,
        use_resampler=True, num_hidden_layers=layers, cross_layer_interval=2, additional_vocab_size=2, qk_layer_norms=True,
        alpha_type="vector", **TEXT,
    )  # fmt: skip
    return build(IdeficsForVisionText2Text, config, dtype, attention, seed)


def _interleaved(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Two words behind every image; a token sees the last image before it. Black images fill up."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    blocks = [[AROUND, PICTURE, AROUND, WORDS + index, WORDS + 7] for index in range(sum(images))]
    inputs = prompts(texts, spread(images, blocks), side, generator)
    most = max(*images, 1)
    pixels = noise(generator, model, len(images), most, 3, SIDE, SIDE)
    for row, count in enumerate(images):
        pixels[row, count:] = 0
    last = (inputs["input_ids"] == PICTURE).long().cumsum(1)
    seen = torch.nn.functional.one_hot(last, most + 1)[..., 1:] * inputs["attention_mask"][..., None]
    inputs["pixel_values"], inputs["image_attention_mask"] = pixels, seen
    return inputs


def _mllama(dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5, seed: int = 0) -> Any:
    """Cross-attention in layers 1 and 4; the tower gives its last states beside those behind its layers 1 and 3."""
    tower = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_global_layers": 2, "attention_heads": 4,
        "vision_output_dim": 96, "intermediate_layers_indices": [1, 3], "image_size": SIDE, "patch_size": PATCH,
        "max_num_tiles": TILES,
    }  # fmt: skip
    text = {**TEXT, "num_hidden_layers": layers, "num_key_value_heads": 2, "cross_attention_layers": [1, 4]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    config = MllamaConfig(vision_config=tower, text_config=text, image_token_index=VOCAB)
    return build(MllamaForConditionalGeneration, config, dtype, attention, seed)


def _tiled(
    model: Any,
    texts: Sequence[int] = (6, 9, 4),
    images: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 1,
) -> Inputs:
    """Tiles `[B, images, 4, C, H, W]`, black ones where an image has fewer; two words behind every image."""
    generator = torch.Generator().manual_seed(seed)
    images = sizes(texts, images)
    ids = [SHAPES[index % len(SHAPES)] for index in range(sum(images))]
    inputs = prompts(texts, spread(images, [[VOCAB, WORDS + index, WORDS + 7] for index in range(len(ids))]), side, generator)
    if not ids:
        return inputs
    most, left = max(images), iter(ids)
    pixels = noise(generator, model, len(images), most, TILES, 3, SIDE, SIDE)
    shapes = torch.zeros(len(images), most, dtype=torch.int64)
    real = torch.zeros(len(images), most, TILES, dtype=torch.int64)
    for row, count in enumerate(images):
        for place in range(count):
            shapes[row, place] = next(left)
            real[row, place, : COUNTS[int(shapes[row, place])]] = 1
    counts = [[COUNTS[int(shape)] for shape in shapes[row, :count]] for row, count in enumerate(images)]
    spans = [get_cross_attention_token_mask(row, VOCAB) for row in inputs["input_ids"].tolist()]
    length = inputs["input_ids"].shape[1]
    seen = convert_sparse_cross_attention_mask_to_dense(spans, num_tiles=counts, max_num_tiles=TILES, length=length)
    inputs["pixel_values"] = pixels * real[..., None, None, None]
    real[:, :, 0] = 1  # as the image processor does: also for images that are not there
    inputs["aspect_ratio_ids"], inputs["aspect_ratio_mask"] = shapes, real
    inputs["cross_attention_mask"] = torch.from_numpy(seen).long()
    return inputs


def _own(inputs: Inputs, row: int) -> Tensor:
    return inputs["pixel_values"][row : row + 1, : max(inputs.images[row], 1)]


def _seen(inputs: Inputs, row: int) -> Tensor:
    return tokens("image_attention_mask")(inputs, row)[:, :, : max(inputs.images[row], 1)]


FAMILIES = (
    Family(
        "idefics", "idefics", _idefics, _interleaved, single(pixel_values=_own, image_attention_mask=_seen), image_token_id=None
    ),
    # Tokens in front of the first image see all images alike, black ones too: a prompt keeps the images that fill up its batch.
    Family(
        "mllama", "mllama", _mllama, _tiled,
        single(
            pixel_values=rows("pixel_values"), aspect_ratio_ids=rows("aspect_ratio_ids"),
            aspect_ratio_mask=rows("aspect_ratio_mask"), cross_attention_mask=tokens("cross_attention_mask"),
        ),
        image_token_id=None,
    ),
)  # fmt: skip
