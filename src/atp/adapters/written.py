"""Attention as a map that is written out, for methods whose authors read it off there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Let the language model attend eagerly inside the block."""
    owner: Any = model
    before = owner.config.get_text_config()._attn_implementation
    owner.set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        owner.set_attn_implementation({"text_config": before})
