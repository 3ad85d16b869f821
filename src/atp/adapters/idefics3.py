"""Idefics3 and SmolVLM: tiles of one size, a SigLIP tower with a mask of its patches, a pixel shuffle, a Llama language model."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from atp.adapters.base import Args, Images, Kwargs, named
from atp.adapters.scattered import Scattered, text_shape, tower_shape
from atp.adapters.tiled import Tiled
from atp.adapters.views import Decoder, Tower
from atp.budget.shape import ModelShape


class Idefics3(Tiled, Scattered):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`.

    A token is the square of patches that the pixel shuffle joins. An image of the tower is a tile; the model itself removes
    black tiles that only fill up the batch. Patches of padding are masked by the tower and become visual tokens all the same.
    """

    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    parts: ClassVar[tuple[str, str | None, str]] = ("vision_model", "connector", "text_model")
    mask_place: ClassVar[int] = 1
    towers: ClassVar[tuple[str, ...]] = ("idefics3_vision", "smolvlm_vision")
    texts: ClassVar[tuple[str, ...]] = ("llama",)
    tiles: ClassVar[int] = 13
    beside: ClassVar[tuple[tuple[str, int], ...]] = (("patch_attention_mask", 1),)
    connects: ClassVar[str] = "rows"

    def build(self) -> None:
        self.shape = self.sizes()
        side = math.isqrt(self.shape.patches // self.shape.group)
        self.grid = (side, side)
        tower: Any = self.tower
        text: Any = self.text
        self.vision = Tower(tower.config, tower.encoder.layers, self.shape.vision)
        self.language = Decoder(text.config, text.layers, self.shape.language)

    def sizes(self) -> ModelShape:
        """Read the sizes off the configuration, and find what tokens pass alone: the projection behind the shuffle."""
        owner: Any = self.base
        self.shuffle, self.connector = owner.connector, owner.connector.modality_projection
        return shape_of(self.config)

    def has_pixels(self, args: Args, kwargs: Kwargs) -> bool:
        return named(kwargs, args, "pixel_values", 5) is not None

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        patch = self.config.vision_config.patch_size
        length = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        places = torch.arange(length, device=pixels.device).view(1, length, 1)
        where: Tensor = self.shuffle.pixel_shuffle(places, self.shuffle.scale_factor)
        tiles, tokens = pixels.shape[0], where.shape[1]
        side = math.isqrt(tokens)
        others = torch.zeros(tiles, length, dtype=torch.bool, device=pixels.device)
        return Images(where.expand(tiles, -1, -1), (tokens,) * tiles, others, 0, ((side, side),) * tiles)

    def tagged(self, features: Any) -> tuple[Any, list[int]]:
        tower, rows = super().tagged(features)  # the features come prompt by prompt, their tiles in one piece
        size = self.shape.visual if tower is None or self.connects == "keys" else tower.started[0]
        if any(length % size for length in rows):
            return tower, [length for length in rows if length]
        return tower, [size] * (sum(rows) // size)


def shape_of(config: Any) -> ModelShape:
    """Read the sizes off an `Idefics3Config` or a `SmolVLMConfig`."""
    tower, text = config.vision_config, config.text_config
    patches, group = (tower.image_size // tower.patch_size) ** 2, config.scale_factor**2
    return ModelShape(
        vision=tower_shape(tower),
        patches=patches,
        prefix=0,
        patch_inputs=tower.num_channels * tower.patch_size**2,
        connector=((tower.hidden_size * group, text.hidden_size),),
        visual=patches // group,
        language=text_shape(text),
        vocab=text.vocab_size,
        group=group,
        connects="rows",
    )
