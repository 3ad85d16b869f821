"""Sizes of models that people run, by name: configurations of the true classes, without weights.

Figures are those of each checkpoint's published `config.json`. `skeleton` builds the model on the meta device, where it takes no
memory: enough to plan budgets and to count FLOPs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from atp.errors import BadInput
from atp.registry import did_you_mean

_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14}
_CLIP_L = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14,
    "image_size": 336, "projection_dim": 768,
}  # fmt: skip
_VICUNA = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096}
_QWEN2_05B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": {
        "model_type": "llava", "vision_config": {"model_type": "clip_vision_model", **_CLIP_L}, "text_config": _VICUNA,
    },
    "llava-next-mistral-7b": {
        "model_type": "llava_next",
        "vision_config": {"model_type": "clip_vision_model", **_CLIP_L},
        "text_config": {
            "model_type": "mistral", "vocab_size": 32064, "intermediate_size": 14336, "num_key_value_heads": 8,
            "sliding_window": None,
        },
    },
    "llava-onevision-0.5b": {
        "model_type": "llava_onevision",
        "vision_config": {
            "model_type": "siglip_vision_model", **_SO400M, "num_hidden_layers": 26, "image_size": 384, "vision_use_head": False,
        },
        "text_config": {**_QWEN2_05B, "vocab_size": 152000},
    },
    "internvl3-1b": {
        "model_type": "internvl",
        "vision_config": {
            "model_type": "internvl_vision", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14],
        },
        "text_config": {**_QWEN2_05B, "vocab_size": 151674},
        "downsample_ratio": 0.5,
    },
    "smolvlm-256m": {
        "model_type": "smolvlm",
        "vision_config": {
            "model_type": "smolvlm_vision", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
        },
        "text_config": {
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49280,
        },
        "scale_factor": 4, "image_token_id": 49190,
    },
    "smolvlm-2.2b": {
        "model_type": "smolvlm",
        "vision_config": {"model_type": "smolvlm_vision", **_SO400M, "image_size": 384},
        "text_config": {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49280,
        },
        "scale_factor": 3, "image_token_id": 49190,
    },
    "paligemma-3b-224": {
        "model_type": "paligemma",
        "vision_config": {"model_type": "siglip_vision_model", **_SO400M, "image_size": 224, "vision_use_head": False},
        "text_config": {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216,
        },
        "projection_dim": 2048,
    },
    "gemma-3-4b": {
        "model_type": "gemma3",
        "vision_config": {"model_type": "siglip_vision_model", **_SO400M, "image_size": 896, "vision_use_head": False},
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
        },
        "mm_tokens_per_image": 256,
    },
    "qwen2-vl-2b": {
        "model_type": "qwen2_vl",
        "vision_config": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 1536, "patch_size": 14},
        "text_config": {
            "model_type": "qwen2_vl_text", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
        },
    },
    "qwen2.5-vl-7b": {
        "model_type": "qwen2_5_vl",
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "patch_size": 14,
        },
        "text_config": {
            "model_type": "qwen2_5_vl_text", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        },
    },
    "blip2-opt-2.7b": {
        "model_type": "blip-2",
        "text_config": {
            "model_type": "opt", "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
            "vocab_size": 50304, "word_embed_proj_dim": 2560,
        },
        "image_token_index": 50265,
    },
    "instructblip-vicuna-7b": {
        "model_type": "instructblip",
        "text_config": {"model_type": "llama", "vocab_size": 32001},
        "image_token_index": 32000,
    },
    "vip-llava-7b": {
        "model_type": "vipllava", "vision_config": {"model_type": "clip_vision_model", **_CLIP_L}, "text_config": _VICUNA,
    },
    "idefics2-8b": {
        "model_type": "idefics2",
        "vision_config": {"model_type": "idefics2_vision", **_SO400M, "image_size": 980},
        "text_config": {
            "model_type": "mistral", "vocab_size": 32003, "intermediate_size": 14336, "num_key_value_heads": 8,
            "sliding_window": None,
        },
    },
    "idefics3-8b": {
        "model_type": "idefics3",
        "vision_config": {"model_type": "idefics3_vision", **_SO400M, "image_size": 364},
        "text_config": {
            "model_type": "llama", "vocab_size": 128259, "intermediate_size": 14336, "num_key_value_heads": 8,
        },
        "scale_factor": 2,
    },
    "mistral-small-3.1-24b": {
        "model_type": "mistral3",
        "vision_config": {
            "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 1540, "patch_size": 14,
        },
        "text_config": {
            "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072, "sliding_window": None,
        },
        "spatial_merge_size": 2,
    },
    "qwen3-vl-8b": {
        "model_type": "qwen3_vl",
        "vision_config": {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
            "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24],
        },
        "text_config": {
            "model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
    },
    "idefics-9b": {"model_type": "idefics", "use_resampler": True, "cross_layer_interval": 4, "qk_layer_norms": True},
    "llama-3.2-11b-vision": {"model_type": "mllama"},
}  # fmt: skip
"""Name -> fields of the configuration; what is absent has the class's default, which is the checkpoint's."""


HUB = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-next-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-onevision-0.5b": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "internvl3-1b": "OpenGVLab/InternVL3-1B-hf",
    "smolvlm-256m": "HuggingFaceTB/SmolVLM-256M-Instruct",
    "smolvlm-2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "paligemma-3b-224": "google/paligemma-3b-mix-224",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "qwen2-vl-2b": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "blip2-opt-2.7b": "Salesforce/blip2-opt-2.7b",
    "instructblip-vicuna-7b": "Salesforce/instructblip-vicuna-7b",
    "vip-llava-7b": "llava-hf/vip-llava-7b-hf",
    "idefics2-8b": "HuggingFaceM4/idefics2-8b",
    "idefics3-8b": "HuggingFaceM4/Idefics3-8B-Llama3",
    "mistral-small-3.1-24b": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "idefics-9b": "HuggingFaceM4/idefics-9b-instruct",
    "llama-3.2-11b-vision": "meta-llama/Llama-3.2-11B-Vision-Instruct",
}
"""Where the weights of each lie."""


DEPTHS = ("num_hidden_layers", "depth", "layers", "encoder_layers")
"""Fields that say how many layers a stack has."""

PLACES = ("fullatt_block_indexes", "deepstack_visual_indexes", "cross_attention_layers", "intermediate_layers_indices")
"""Fields that name single layers; one beyond the last cannot be."""


def configuration(name: str, depth: float = 1.0) -> Any:
    """Return the configuration of an architecture.

    Args:
        name: of it.
        depth: share of the layers of tower and language model that stay.

    Raises:
        BadInput: an unknown name, with the nearest one; a depth outside (0, 1], or one at which layers that the
            architecture names are missing.
    """
    if name not in ARCHITECTURES:
        raise BadInput(f"unknown architecture {name!r}.{did_you_mean(name, ARCHITECTURES)} Known: {', '.join(ARCHITECTURES)}")
    if not 0 < depth <= 1:
        raise BadInput(f"--depth is a share of the layers in (0, 1], got {depth:g}; e.g. --depth 0.5")
    from transformers import AutoConfig

    fields = dict(ARCHITECTURES[name])
    made = AutoConfig.for_model(fields.pop("model_type"), **fields)
    if depth < 1:
        for part in (made.vision_config, getattr(made, "text_config", made)):
            _shorten(name, part, depth)
    return made


def _shorten(name: str, config: Any, depth: float) -> None:
    """Take the last layers away from one stack."""
    field = next(field for field in DEPTHS if hasattr(config, field))
    left = max(1, round(depth * getattr(config, field)))
    named = [place for which in PLACES for place in getattr(config, which, None) or () if place >= left]
    if named:
        raise BadInput(f"{name} names layers up to {max(named)} that --depth {depth:g} leaves out; use --depth 1")
    setattr(config, field, left)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:left]


def skeleton(name: str, device: str = "meta", depth: float = 1.0) -> nn.Module:
    """Build an architecture; on the meta device it has sizes and no weights.

    Raises:
        BadInput: as `configuration`.

    Example:
        >>> atp.adapters.adapt(skeleton("llava-1.5-7b")).shape.visual
        576
    """
    from transformers import AutoModelForImageTextToText

    with torch.device(device):
        model: nn.Module = AutoModelForImageTextToText.from_config(configuration(name, depth))  # type: ignore[no-untyped-call]
    return model.eval()
