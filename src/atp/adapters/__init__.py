"""Adapters by model type. Nothing of transformers is imported before a model is at hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from atp.adapters.base import Adapter
from atp.adapters.written import eager
from atp.errors import UnsupportedModel
from atp.registry import did_you_mean

ADAPTERS = {
    "blip-2": "atp.adapters.blip:Blip2",
    "gemma3": "atp.adapters.gemma:Gemma3",
    "idefics2": "atp.adapters.idefics2:Idefics2",
    "idefics": "atp.adapters.idefics:Idefics",
    "idefics3": "atp.adapters.idefics3:Idefics3",
    "instructblip": "atp.adapters.blip:InstructBlip",
    "internvl": "atp.adapters.internvl:InternVL",
    "llava": "atp.adapters.llava:Llava",
    "llava_next": "atp.adapters.llava_next:LlavaNext",
    "llava_onevision": "atp.adapters.llava_next:LlavaOnevision",
    "mistral3": "atp.adapters.mistral3:Mistral3",
    "mllama": "atp.adapters.mllama:Mllama",
    "paligemma": "atp.adapters.gemma:PaliGemma",
    "qwen2_5_vl": "atp.adapters.qwen2_5_vl:Qwen2_5VL",
    "qwen2_vl": "atp.adapters.qwen2_vl:Qwen2VL",
    "qwen3_vl": "atp.adapters.qwen3_vl:Qwen3VL",
    "smolvlm": "atp.adapters.idefics3:Idefics3",
    "vipllava": "atp.adapters.llava:VipLlava",
}
"""`config.model_type` -> "module:Class"."""

TESTED = ((5, 20), (5, 24))
"""Versions of transformers: from the first, below the second."""


GENERIC = {"generic": "atp.adapters.generic:Generic"}
"""Adapters for model types that have none, by the name that asks for them."""


def list_models() -> list[str]:
    """Return the model types that can be pruned."""
    return sorted(ADAPTERS)


def check_version(version: str | None = None) -> None:
    """Refuse a transformers outside the tested range.

    Raises:
        UnsupportedModel: naming the version found and the range.
    """
    wanted = f">={'.'.join(map(str, TESTED[0]))},<{'.'.join(map(str, TESTED[1]))}"
    try:
        version = version or metadata.version("transformers")
    except metadata.PackageNotFoundError:
        raise UnsupportedModel(f"transformers is not installed; pip install 'transformers{wanted}'") from None
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not TESTED[0] <= numbers < TESTED[1]:
        raise UnsupportedModel(
            f"transformers {version} is outside the range that atp is tested with, {wanted}; pip install 'transformers{wanted}'"
        )


def adapter_class(name: str) -> type[Adapter]:
    """Return the class that serves a model type, or is asked for by name."""
    module, _, found = {**ADAPTERS, **GENERIC}[name].partition(":")
    cls: type[Adapter] = getattr(import_module(module), found)
    return cls


def adapt(model: Any, name: str | None = None) -> Adapter:
    """Return the adapter of a model.

    Args:
        model: of transformers.
        name: None = that of the model's type; "generic" = the one that finds parts by their usual names.

    Raises:
        UnsupportedModel: an unknown name, an object without config, an unknown model type, a class without language head, a
            version outside the tested range.
    """
    check_version()
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT puts its layers inside
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind is None:
        raise UnsupportedModel(
            f"expected a transformers model, got {type(model).__name__}; "
            "load one with AutoModelForImageTextToText.from_pretrained(...)"
        )
    if name is not None and name not in GENERIC:
        raise UnsupportedModel(f"unknown adapter {name!r}; expected 'generic', or leave adapter= away")
    if name is None and kind not in ADAPTERS:
        raise UnsupportedModel(
            f"no adapter for model_type {kind!r}.{did_you_mean(kind, ADAPTERS)} Supported: {', '.join(list_models())}. "
            "To try one that prunes the language model only and checks itself first: atp.prune(model, adapter='generic')"
        )
    if not any(hasattr(part, "lm_head") for part in (model, getattr(model, "language_model", None))):
        raise UnsupportedModel(
            f"expected the model with its language head, got {type(model).__name__}; "
            "load it with AutoModelForImageTextToText.from_pretrained(...)"
        )
    build: Callable[[Any], Adapter] = adapter_class(name or kind)
    return build(model)


__all__ = ["ADAPTERS", "TESTED", "Adapter", "adapt", "adapter_class", "check_version", "eager", "list_models"]
