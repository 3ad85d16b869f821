"""LLaVA and VipLLaVA: a CLIP, SigLIP or Pixtral tower, two linear layers for each patch, a Llama, Qwen2 or Mistral model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atp.adapters.base import Args, Images, Kwargs, named
from atp.adapters.pixtral import Pixtral, images_of
from atp.adapters.scattered import Scattered, text_shape, tower_shape
from atp.adapters.views import Decoder, Tower
from atp.budget.shape import ModelShape
from atp.errors import UnsupportedModel


class Llava(Scattered):
    """`LlavaForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    graphs: ClassVar[bool] = True
    towers: ClassVar[tuple[str, ...]] = ("clip_vision_model", "siglip_vision_model")
    texts: ClassVar[tuple[str, ...]] = ("llama", "qwen2", "mistral")
    resizable: ClassVar[bool] = True
    connects: ClassVar[str] = "rows"

    def __new__(cls, model: nn.Module) -> Llava:
        config: Any = getattr(model, "config", None)
        packed = cls is Llava and config.vision_config.model_type == "pixtral"
        return super().__new__(LlavaPixtral if packed else cls)

    def build(self) -> None:
        self.shape = shape_of(self.config)
        side = math.isqrt(self.shape.patches)
        self.grid = (side, side)
        inner: Any = self.tower if hasattr(self.tower, "encoder") else self.tower.vision_model
        self.vision = Tower(self.tower.config, inner.encoder.layers, self.shape.vision, self.shape.prefix)
        text: Any = self.text
        self.language = Decoder(self.text.config, text.layers, self.shape.language)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        return equal_images(pixels.shape[0], self.shape.prefix, self.grid, pixels.device)

    def pack(self, values: Tensor, counts: Sequence[int], extra: Any) -> list[Tensor]:
        features = self.shape.visual
        cut = self.shape.prefix + self.shape.patches - features
        if cut not in (0, 1):
            raise UnsupportedModel(
                f"an image gives {features} visual tokens but the tower has {self.shape.patches} patches; "
                "only feature selections 'default' (all but the first) and 'full' are supported"
            )
        if cut < self.shape.prefix:  # the class token is a visual token too, and stands for no patch
            first = values.new_full((values.shape[0], 1, values.shape[2]), torch.nan)
            return list(torch.cat([first, values], dim=1))
        return list(values[:, cut - self.shape.prefix :])


class LlavaPixtral(Llava):
    """The same class of model with Pixtral's tower: images of any size in one sequence, every patch a visual token."""

    towers: ClassVar[tuple[str, ...]] = ("pixtral",)
    graphs: ClassVar[bool] = False
    resizable: ClassVar[bool] = False

    def build(self) -> None:
        if self.config.vision_feature_select_strategy != "full":
            raise UnsupportedModel(
                f"vision_feature_select_strategy is {self.config.vision_feature_select_strategy!r}, which leaves out the first "
                "patch of a tower without class token; expected 'full': model.config.vision_feature_select_strategy = 'full'"
            )
        plain = shape_of(self.config)
        self.shape = replace(plain, vision=replace(plain.vision, mlp_matrices=3), pooling_head=False)
        side = math.isqrt(self.shape.patches)
        self.grid = (side, side)
        tower: Any = self.tower
        text: Any = self.text
        self.vision = Pixtral(tower.config, tower.transformer.layers, self.shape.vision)
        self.language = Decoder(text.config, text.layers, self.shape.language)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        return images_of(args, kwargs, self.config.vision_config.patch_size)

    def pack(self, values: Tensor, counts: Sequence[int], extra: Any) -> list[Tensor]:
        return [values[index, :count] for index, count in enumerate(counts)]


class VipLlava(Llava):
    """`VipLlavaForConditionalGeneration`: states of several layers side by side, always without the first."""

    model_types: ClassVar[tuple[str, ...]] = ("vipllava",)


def equal_images(count: int, prefix: int, grid: tuple[int, int], device: torch.device) -> Images:
    """Images of one size, each a sequence of its prefix and its patches in raster order."""
    patches = grid[0] * grid[1]
    others = torch.zeros(count, prefix + patches, dtype=torch.bool, device=device)
    others[:, :prefix] = True
    where = torch.arange(prefix, prefix + patches, device=device).view(1, patches, 1).expand(count, -1, -1)
    return Images(where, (patches,) * count, others, prefix, (grid,) * count)


def shape_of(config: Any) -> ModelShape:
    """Read the sizes off a `LlavaConfig`."""
    tower, text = config.vision_config, config.text_config
    side = tower.image_size // tower.patch_size
    prefix = 1 if tower.model_type == "clip_vision_model" else 0
    layers = config.vision_feature_layer if hasattr(config, "vision_feature_layer") else config.vision_feature_layers
    chosen = getattr(config, "vision_feature_select_strategy", "default")
    features = 1 if isinstance(layers, int) else len(layers)
    return ModelShape(
        vision=tower_shape(tower),
        patches=side * side,
        prefix=prefix,
        patch_inputs=tower.num_channels * tower.patch_size**2,
        connector=((tower.hidden_size * features, text.hidden_size), (text.hidden_size, text.hidden_size)),
        visual=side * side + prefix - (chosen == "default"),
        language=text_shape(text),
        vocab=text.vocab_size,
        pooling_head=prefix == 0 and bool(getattr(tower, "vision_use_head", True)),
        connects="rows",
    )
