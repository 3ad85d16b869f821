"""Qwen3-VL: Qwen2-VL with features of several blocks of the tower, each merged for itself and added behind a first layer of the
language model (deep-stack). What is added at dead visual tokens is never read: they are dead in all layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

from atp.adapters.qwen2_vl import Qwen2VL, packed_shape
from atp.budget.shape import ModelShape


class Qwen3VL(Qwen2VL):
    """`Qwen3VLForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    towers: ClassVar[tuple[str, ...]] = ("qwen3_vl_vision",)
    texts: ClassVar[tuple[str, ...]] = ("qwen3_vl_text",)
    pixel_place: ClassVar[int] = 5

    def sizes(self, tower: Any) -> ModelShape:
        mergers = 1 + len(tower.deepstack_visual_indexes)
        return packed_shape(self.config, tower.hidden_size, tower.intermediate_size, 2, tower.out_hidden_size, mergers)
