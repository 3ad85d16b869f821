"""Rows of the attention of a cross-attention layer, image by image. Part of the engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atp.engine.attention import VISUAL_RATERS, Attention, Capture
from atp.engine.census import Census
from atp.rows import spread


class CrossAttention(Attention):
    """Rows of text over the keys of one image: both are numbered from 0."""

    def last(self) -> Tensor:
        live = self.prompt(self.census.others)
        number = torch.arange(live.shape[1], device=live.device)
        return (live * (number + 1)).amax(1, keepdim=True).sub(1).clamp(min=0)

    def question(self, template: frozenset[int]) -> Tensor:
        return self.untold(self.prompt(self.census.others), template)

    def raters(self, kind: str, template: frozenset[int]) -> tuple[Tensor, Tensor]:
        if kind == "visual":  # keys ask nothing: all the text that looks at the image stands in
            return spread(self.prompt(self.census.others), VISUAL_RATERS)
        return super().raters(kind, template)


class CrossCapture(Capture):
    """What a cross-attention layer projected, image by image."""

    def attention(self, view: Any, census: Census) -> CrossAttention:
        return CrossAttention(view, census, self)
