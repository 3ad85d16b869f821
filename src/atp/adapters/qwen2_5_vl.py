"""Qwen2.5-VL: Qwen2-VL with windows in most blocks of the tower, whose patches stand window by window in its sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from atp.adapters.base import Kwargs
from atp.adapters.qwen2_vl import Qwen2VL, packed_shape
from atp.budget.shape import ModelShape


class Qwen2_5VL(Qwen2VL):
    """`Qwen2_5_VLForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    towers: ClassVar[tuple[str, ...]] = ("qwen2_5_vl_vision",)
    texts: ClassVar[tuple[str, ...]] = ("qwen2_5_vl_text",)

    def build(self) -> None:
        super().build()
        tower: Any = self.tower
        self.window = tower.window_size // (tower.patch_size * tower.spatial_merge_size)

    def sizes(self, tower: Any) -> ModelShape:
        shape = packed_shape(self.config, tower.hidden_size, tower.intermediate_size, 3, tower.out_hidden_size)
        window = float((tower.window_size // tower.patch_size) ** 2)
        seen = (shape.patches if layer in tower.fullatt_block_indexes else window for layer in range(tower.depth))
        return replace(shape, windows=tuple(map(float, seen)))

    def order(self, count: int, grids: Tensor, kwargs: Kwargs) -> Tensor:
        tower: Any = self.tower
        order, _ = get_vision_window_index(
            grids, tower.spatial_merge_size, tower.window_size, tower.patch_size, kwargs=dict(kwargs)
        )
        patches = torch.arange(count, device=order.device).unsqueeze(1)
        standing: Tensor = tower.permute_input_for_window_attn(patches, order, count).flatten()
        return standing.argsort()
