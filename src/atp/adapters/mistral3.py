"""Mistral 3: Pixtral's tower, which packs images of any size into one sequence; a merger of patches; a Mistral language model."""

from __future__ import annotations

from typing import Any, ClassVar

from atp.adapters.base import Args, Images, Kwargs
from atp.adapters.pixtral import Pixtral, images_of
from atp.adapters.scattered import Scattered, text_shape, tower_shape
from atp.adapters.views import Decoder, Positioned
from atp.budget.shape import ModelShape


class Mistral3(Scattered):
    """`Mistral3ForConditionalGeneration`.

    A token is the square of patches that the merger joins. FLOPs are those of images that run one by one: packed, the tower's
    attention computes the products between images too, and its mask hides them. Rows that score leave out by how much Ministral 3
    lengthens the queries behind its original context (16,384 tokens); what runs does not.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    towers: ClassVar[tuple[str, ...]] = ("pixtral",)
    texts: ClassVar[tuple[str, ...]] = ("mistral", "ministral3")
    limits: ClassVar[tuple[str, ...]] = ("FLOPs of several images in a call are counted one by one",)
    mask_place: ClassVar[int] = 2

    def build(self) -> None:
        self.shape = shape_of(self.config)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size // self.config.spatial_merge_size
        self.grid = (side, side)
        tower: Any = self.tower
        text: Any = self.text
        self.vision = Pixtral(tower.config, tower.transformer.layers, self.shape.vision)
        view = Positioned if text.config.model_type == "ministral3" else Decoder
        self.language = view(text.config, text.layers, self.shape.language)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        return images_of(args, kwargs, self.config.vision_config.patch_size, self.config.spatial_merge_size)


def shape_of(config: Any) -> ModelShape:
    """Read the sizes off a `Mistral3Config`; an image of the nominal, square size."""
    tower, text, group = config.vision_config, config.text_config, config.spatial_merge_size**2
    side = tower.image_size // tower.patch_size // config.spatial_merge_size
    return ModelShape(
        vision=tower_shape(tower, mlp_matrices=3),
        patches=side * side * group,
        prefix=0,
        patch_inputs=tower.num_channels * tower.patch_size**2,
        connector=(
            (tower.hidden_size * group, tower.hidden_size),
            (tower.hidden_size, text.hidden_size),
            (text.hidden_size, text.hidden_size),
        ),
        visual=side * side,
        language=text_shape(text),
        vocab=text.vocab_size,
        group=group,
        connects="grid",
    )
