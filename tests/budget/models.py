"""Tiny true LLaVA models of three makes, and their sizes written down by hand (not through an adapter)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from atp.budget.shape import ModelShape, StackShape

IMAGE, VOCAB, PATCH = 99, 100, 7
GRID = 4
TOWER = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 4, "image_size": PATCH * GRID, "patch_size": PATCH}
TEXT = {"hidden_size": 32, "num_hidden_layers": 5, "vocab_size": VOCAB, "num_attention_heads": 4, "intermediate_size": 44}

MAKES: dict[str, tuple[Any, Any, str]] = {
    "clip-llama": (
        CLIPVisionConfig(**TOWER, intermediate_size=56),
        LlamaConfig(**TEXT, num_key_value_heads=4),
        "default",
    ),
    "clip-full-mistral": (
        CLIPVisionConfig(**TOWER, intermediate_size=56),
        MistralConfig(**TEXT, num_key_value_heads=2, head_dim=12, sliding_window=None),
        "full",
    ),
    "siglip-qwen2": (
        SiglipVisionConfig(**TOWER, intermediate_size=88, vision_use_head=False),
        Qwen2Config(**TEXT, num_key_value_heads=2),
        "full",
    ),
    "siglip-head-llama": (
        SiglipVisionConfig(**TOWER, intermediate_size=88, vision_use_head=True),
        LlamaConfig(**TEXT, num_key_value_heads=1),
        "full",
    ),
}


def build(make: str) -> LlavaForConditionalGeneration:
    """A random model of that make, SDPA attention, evaluation mode."""
    vision, text, select = MAKES[make]
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_select_strategy=select,
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def shape_of(make: str) -> ModelShape:
    """The same sizes, from the configuration's own numbers."""
    vision, text, select = MAKES[make]
    prefix = int(make.startswith("clip"))
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        vision=StackShape(4, 24, 3, 3, 8, vision.intermediate_size, 2),
        patches=GRID * GRID,
        prefix=prefix,
        patch_inputs=3 * PATCH * PATCH,
        connector=((24, 32), (32, 32)),
        visual=GRID * GRID + (prefix if select == "full" else 0),
        language=StackShape(5, 32, 4, text.num_key_value_heads, head_dim, 44, 3),
        vocab=VOCAB,
        pooling_head="head" in make,
    )


def inputs(shape: ModelShape, text: int, images: int = 1) -> dict[str, torch.Tensor]:
    """One prompt: every image's tokens, then the text."""
    ids = [IMAGE] * (shape.visual * images) + [3 + i % 50 for i in range(text)]
    pixels = torch.randn(images, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(1))
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), "pixel_values": pixels}


def counted(model: torch.nn.Module, batch: dict[str, torch.Tensor], answer: int) -> dict[str, float]:
    """FLOPs by module name as torch counts them while `answer` tokens are generated, decomposed attention."""
    with FlopCounterMode(display=False, depth=10) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        out = model.generate(**batch, max_new_tokens=answer, min_new_tokens=answer, do_sample=False)  # type: ignore[operator]
    assert out.shape[1] == batch["input_ids"].shape[1] + answer
    return {name: float(sum(parts.values())) for name, parts in counter.get_flop_counts().items()}
