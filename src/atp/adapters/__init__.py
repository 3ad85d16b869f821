"""Adapters by model type. Nothing of transformers is imported before a model is at hand."""

from __future__ import annotations

import re
from importlib import import_module, metadata
from typing import Any

from atp.adapters.base import Adapter
from atp.errors import UnsupportedModel
from atp.registry import did_you_mean

ADAPTERS = {"llava": "atp.adapters.llava:Llava"}
"""`config.model_type` -> "module:Class"."""

TESTED = ((5, 20), (5, 24))
"""Versions of transformers: from the first, below the second."""


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


def adapt(model: Any) -> Adapter:
    """Return the adapter of a model.

    Raises:
        UnsupportedModel: an object without config, an unknown model type, a class without language head, a version outside
            the tested range.
    """
    check_version()
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind is None:
        raise UnsupportedModel(
            f"expected a transformers model, got {type(model).__name__}; "
            "load one with AutoModelForImageTextToText.from_pretrained(...)"
        )
    if kind not in ADAPTERS:
        raise UnsupportedModel(
            f"no adapter for model_type {kind!r}.{did_you_mean(kind, ADAPTERS)} Supported: {', '.join(list_models())}"
        )
    if not hasattr(model, "lm_head"):
        raise UnsupportedModel(
            f"expected the model with its language head, got {type(model).__name__}; "
            "load it with AutoModelForImageTextToText.from_pretrained(...)"
        )
    module, _, name = ADAPTERS[kind].partition(":")
    adapter: Adapter = getattr(import_module(module), name)(model)
    return adapter


__all__ = ["ADAPTERS", "TESTED", "Adapter", "adapt", "check_version", "list_models"]
