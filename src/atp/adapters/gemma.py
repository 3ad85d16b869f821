"""PaliGemma and Gemma 3: a SigLIP tower, a linear connector, a Gemma language model in which an image sees itself whole.

The language model gets masks of four dimensions at prefill (a prefix or an image attends both ways), its sliding layers their own
masks and phases; each layer's mask is cut as it comes. Image ids outside of the vocabulary are replaced inside the base model,
which is called with the ids as they are.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from atp.adapters.base import Args, Images, Kwargs, named
from atp.adapters.llava import equal_images
from atp.adapters.scattered import Scattered, text_shape, tower_shape
from atp.adapters.views import Decoder, Tower
from atp.budget.shape import ModelShape
from atp.errors import UnsupportedModel


class GemmaDecoder(Decoder):
    """Gemma layers: norms of heads see `[B, H, T, d]`, and Gemma 2 bounds the logits of its attention."""

    def __init__(self, config: Any, layers: Any, sizes: Any) -> None:
        super().__init__(config, layers, sizes)
        self.softcap = getattr(config, "attn_logit_softcapping", None) if config.model_type == "gemma2" else None

    def projected(self, which: str, output: Tensor) -> Tensor:
        return output.transpose(1, 2).flatten(-2) if output.dim() == 4 else output


class PaliGemma(Scattered):
    """`PaliGemmaForConditionalGeneration`, also PaliGemma 2."""

    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    graphs: ClassVar[bool] = True
    towers: ClassVar[tuple[str, ...]] = ("siglip_vision_model",)
    texts: ClassVar[tuple[str, ...]] = ("gemma", "gemma2")
    resizable: ClassVar[bool] = True
    connects: ClassVar[str] = "rows"

    def build(self) -> None:
        self.shape = self.sizes()
        side = math.isqrt(self.shape.visual)
        self.grid = (side, side)
        tower: Any = self.tower
        text: Any = self.text
        self.vision = Tower(tower.config, tower.encoder.layers, self.shape.vision)
        self.language = GemmaDecoder(text.config, text.layers, self.shape.language)

    def sizes(self) -> ModelShape:
        """Read the sizes off the configuration."""
        config = self.config
        return shape_of(config, config.vision_config.projection_dim, self.connects)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        return equal_images(pixels.shape[0], 0, self.grid, pixels.device)


class Gemma3(PaliGemma):
    """`Gemma3ForConditionalGeneration`. A token is the square of patches of which the connector takes the mean."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    graphs: ClassVar[bool] = True
    texts: ClassVar[tuple[str, ...]] = ("gemma3_text",)
    resizable: ClassVar[bool] = False
    connects: ClassVar[str] = "grid"

    def sizes(self) -> ModelShape:
        connector: Any = self.connector
        side, kernel = connector.patches_per_image, connector.kernel_size
        if kernel * connector.tokens_per_side != side:
            raise UnsupportedModel(
                f"{side} x {side} patches do not divide into {connector.tokens_per_side} x {connector.tokens_per_side} visual "
                "tokens, so some patches stand for none; set config.mm_tokens_per_image to a square number whose root divides "
                f"{side}"
            )
        return shape_of(self.config, self.config.text_config.hidden_size, self.connects, kernel)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        count, (height, width), size = pixels.shape[0], self.grid, math.isqrt(self.shape.group)
        places = torch.arange(self.shape.patches, device=pixels.device).view(height, size, width, size)
        where = places.transpose(1, 2).reshape(1, height * width, -1).expand(count, -1, -1)
        others = torch.zeros(count, self.shape.patches, dtype=torch.bool, device=pixels.device)
        return Images(where, (height * width,) * count, others, 0, (self.grid,) * count)


def shape_of(config: Any, width: int, connects: str, kernel: int = 1) -> ModelShape:
    """Read the sizes off a `PaliGemmaConfig` or a `Gemma3Config`.

    Args:
        config: of the model.
        width: of what the connector gives.
        connects: of the adapter.
        kernel: side of the square of patches that becomes one visual token.
    """
    tower, text = config.vision_config, config.text_config
    side = tower.image_size // tower.patch_size
    return ModelShape(
        vision=tower_shape(tower),
        patches=side * side,
        prefix=0,
        patch_inputs=tower.num_channels * tower.patch_size**2,
        connector=((tower.hidden_size, width),),
        visual=(side // kernel) ** 2,
        language=text_shape(text),
        vocab=text.vocab_size,
        pooling_head=bool(getattr(tower, "vision_use_head", True)),
        group=kernel * kernel,
        connects=connects,
    )
