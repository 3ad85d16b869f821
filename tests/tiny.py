"""Tiny random LLaVA models of the true transformers classes, and inputs for them. Attention is far from uniform."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from atp.methods import METHODS
from atp.plan import Plan, Site, Step

IMAGE, PAD, VOCAB, SIDE = 3, 0, 64, 4
PATCHES = SIDE * SIDE
KINDS = ("clip-llama", "siglip-qwen2", "clip-mistral")
"""Towers with and without class token x texts with and without grouped queries and biases."""


def make(
    kind: str = "clip-llama",
    *,
    layers: int = 5,
    dtype: torch.dtype = torch.float64,
    attention: str = "sdpa",
    seed: int = 0,
    sliding: int | None = None,
    head: bool = False,
    **llava: Any,
) -> LlavaForConditionalGeneration:
    """Build a model; `head` gives a SigLIP tower its pooling head; `llava` are fields of `LlavaConfig`."""
    tower, text = kind.split("-")
    vision = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[tower](
        hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, image_size=8 * SIDE, patch_size=8
    )
    if tower == "siglip":
        vision.vision_use_head = head
    common = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4,
        "max_position_embeddings": 512, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    if text == "llama":
        language: Any = LlamaConfig(num_key_value_heads=4, **common)
    elif text == "qwen2":
        language = Qwen2Config(num_key_value_heads=2, **common)
    else:
        language = MistralConfig(num_key_value_heads=2, sliding_window=sliding, **common)
    llava.setdefault("vision_feature_layer", -2)
    llava.setdefault("vision_feature_select_strategy", "default" if tower == "clip" else "full")
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        tie_word_embeddings=False,
        **llava,
    )
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            scale = 2.5 if "q_proj" in name or "k_proj" in name else 1.2
            torch.nn.init.normal_(parameter, std=scale * parameter.shape[-1] ** -0.5)
        elif "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None  # answers have the length that was asked for
    return model.to(dtype).eval()


def visual(model: LlavaForConditionalGeneration) -> int:
    """Visual tokens of one image."""
    full = model.config.vision_feature_select_strategy == "full"
    prefix = int(model.config.vision_config.model_type == "clip_vision_model")
    return PATCHES + prefix - (0 if full else 1)


def prompts(
    model: LlavaForConditionalGeneration,
    texts: tuple[int, ...] = (6, 9, 4),
    images: tuple[int, ...] | None = None,
    side: str = "left",
    seed: int = 1,
) -> dict[str, Tensor]:
    """Make a padded batch: per prompt two text tokens, its images, and the given number of text tokens after them."""
    generator = torch.Generator().manual_seed(seed)
    images = images or (1,) * len(texts)
    rows = []
    for length, count in zip(texts, images, strict=True):
        words = torch.randint(8, VOCAB, (length + 2,), generator=generator)
        picture = torch.full((visual(model),), IMAGE)
        rows.append(torch.cat([words[:2], *([picture] * count), words[2:]]))
    longest = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), longest), PAD), torch.zeros(len(rows), longest, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    size = model.config.vision_config.image_size
    pixels = torch.randn(sum(images), 3, size, size, generator=generator, dtype=torch.float64).to(model.dtype)
    found = {"input_ids": ids, "attention_mask": mask}
    return found | {"pixel_values": pixels} if sum(images) else found


def single(inputs: dict[str, Tensor], row: int, images: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    """Take one prompt out of a batch, without its padding."""
    mask = inputs["attention_mask"][row].bool()
    images = images or (1,) * len(inputs["input_ids"])
    first = sum(images[:row])
    return {
        "input_ids": inputs["input_ids"][row : row + 1, mask],
        "attention_mask": inputs["attention_mask"][row : row + 1, mask],
        "pixel_values": inputs["pixel_values"][first : first + images[row]],
    }


@lru_cache(maxsize=32)
def model(kind: str = "clip-llama", **options: Any) -> LlavaForConditionalGeneration:
    """Build once a session. Read only: tests share it."""
    return make(kind, **options)


def unmerged(method: str) -> dict[str, bool]:
    """Options that drop what leaves: merged states have no masked reference (see `conformance/test_fusing.py`)."""
    return {"merge": False} if method == "atp" else {}


def plan(method: str, adaptive: bool = False, keep: float | None = None) -> Plan:
    """A plan with sites in every stack that the method prunes; `keep` overrides all shares."""
    bar = (lambda threshold: threshold) if adaptive else (lambda threshold: None)
    if method == "resize":
        steps = [(Site("pixels", 0), 0.25, None)]
    elif method == "fastv":
        steps = [(Site("language", 2), 0.5, bar(1.0)), (Site("language", 4), 0.25, bar(1.2))]
    else:
        steps = [
            (Site("vision", 1), 0.8, bar(0.5)),
            (Site("vision", 3), 0.5, bar(0.9)),
            (Site("language", 1), 0.4, bar(0.8)),
            (Site("language", 3), 0.2, bar(1.1)),
        ]
        steps = [step for step in steps if step[0].stack in METHODS.get(method).stacks]
    every = tuple(Step(site, keep if keep is not None else share, threshold) for site, share, threshold in steps)
    return Plan(method, every, unmerged(method))
