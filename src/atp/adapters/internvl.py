"""InternVL: tiles through InternViT, whose layers take no mask; a pixel shuffle makes one visual token of 2 x 2 patches."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from atp.adapters.base import Args, Images, Kwargs, named
from atp.adapters.scattered import Scattered, text_shape, tower_shape
from atp.adapters.tiled import Tiled
from atp.adapters.views import BlindTower, Decoder
from atp.budget.shape import ModelShape


class InternTower(BlindTower):
    """Layers of InternViT."""

    attention = "attention"


class InternVL(Tiled, Scattered):
    """`InternVLForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    towers: ClassVar[tuple[str, ...]] = ("internvl_vision",)
    texts: ClassVar[tuple[str, ...]] = ("llama", "qwen2", "qwen3")
    connects: ClassVar[str] = "rows"
    tiles: ClassVar[int] = 13
    limits: ClassVar[tuple[str, ...]] = ("the tower takes no mask, so all tiles of a call keep the same count in it",)

    def build(self) -> None:
        tower, text = self.config.vision_config, self.config.text_config
        height, width = (side // patch for side, patch in zip(tower.image_size, tower.patch_size, strict=True))
        merged = int(1 / self.config.downsample_ratio)
        group = merged * merged
        self.shape = ModelShape(
            vision=tower_shape(tower),
            patches=height * width,
            prefix=1,
            patch_inputs=tower.num_channels * tower.patch_size[0] * tower.patch_size[1],
            connector=((tower.hidden_size * group, text.hidden_size), (text.hidden_size, text.hidden_size)),
            visual=height * width // group,
            language=text_shape(text),
            vocab=text.vocab_size,
            group=group,
            connects="rows",
        )
        self.grid = (height // merged, width // merged)
        inner: Any = self.tower
        self.vision = InternTower(tower, inner.encoder.layer, self.shape.vision, prefix=1)
        language: Any = self.text
        self.language = Decoder(text, language.layers, self.shape.language)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        count, patch, ratio = pixels.shape[0], self.config.vision_config.patch_size, self.config.downsample_ratio
        height, width = pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1]
        number = torch.arange(height * width, device=pixels.device)
        base: Any = self.base
        shuffled: Tensor = base.pixel_shuffle(number.view(1, height, width, 1), scale_factor=ratio)
        tokens = shuffled.flatten(0, 2) + 1  # behind the class token
        others = torch.zeros(count, 1 + height * width, dtype=torch.bool, device=pixels.device)
        others[:, 0] = True
        grid = (shuffled.shape[1], shuffled.shape[2])
        return Images(tokens.expand(count, -1, -1), (len(tokens),) * count, others, 1, (grid,) * count)
