"""Idefics2: images of any size side by side under a mask, latents of a perceiver that look at their patches, a Mistral model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from atp.adapters.base import Args, Images, Kwargs, named
from atp.adapters.idefics3 import Idefics3
from atp.adapters.scattered import text_shape, tower_shape
from atp.budget.shape import ModelShape
from atp.subset import Subset, gather


class Idefics2(Idefics3):
    """`Idefics2ForConditionalGeneration`.

    Visual tokens are the perceiver's latents, which stand for no patch: a dead patch is no key of theirs. Patches of padding are
    nobody's tokens; they leave with the first patch, and their FLOPs are not counted, as those of padded text are not.
    """

    model_types: ClassVar[tuple[str, ...]] = ("idefics2",)
    towers: ClassVar[tuple[str, ...]] = ("idefics2_vision",)
    texts: ClassVar[tuple[str, ...]] = ("mistral",)
    limits: ClassVar[tuple[str, ...]] = ("FLOPs of pixels that fill images up to one size are not counted",)
    tiles: ClassVar[int] = 1
    tiled: ClassVar[bool] = False
    connects: ClassVar[str] = "keys"

    def sizes(self) -> ModelShape:
        return shape_of(self.config)

    def images(self, args: Args, kwargs: Kwargs) -> Images:
        pixels: Tensor = named(kwargs, args, "pixel_values", 0)
        mask: Tensor | None = named(kwargs, args, "patch_attention_mask", 1)
        if mask is None:
            height, width = (size // self.config.vision_config.patch_size for size in pixels.shape[-2:])
            mask = torch.ones(pixels.shape[0], height, width, dtype=torch.bool, device=pixels.device)
        real = mask.flatten(1)
        sizes = torch.stack([real.sum(1), mask[:, :, 0].sum(1), mask[:, 0].sum(1)], 1).tolist()
        counts = tuple(int(count) for count, _, _ in sizes)
        # Real patches first, in raster order; patches of padding stand at the places of smaller images.
        where = torch.sort((~real).to(torch.uint8), dim=1, stable=True).indices[:, : max(counts), None]
        grids = tuple((max(1, int(height)), max(1, int(width))) for _, height, width in sizes)
        return Images(where, counts, torch.zeros_like(real), 0, grids)

    def narrow(self, args: Args, kwargs: Kwargs, subset: Subset, weight: Tensor | None) -> tuple[Args, Kwargs]:
        # The resampler makes one mask of these marks and those of its latents: it takes no logits.
        states = gather(named(kwargs, args, "image_hidden_states", 0), subset)
        mask = gather(named(kwargs, args, "attention_mask", 1), subset)
        return (states, mask if subset.valid is None else mask & subset.valid), {}


def shape_of(config: Any) -> ModelShape:
    """Read the sizes off an `Idefics2Config`; an image of the nominal, square size."""
    tower, text = config.vision_config, config.text_config
    patches = (tower.image_size // tower.patch_size) ** 2
    key, query = resampler_flops(config)
    return ModelShape(
        vision=tower_shape(tower),
        patches=patches,
        prefix=0,
        patch_inputs=tower.num_channels * tower.patch_size**2,
        connector=(),
        visual=config.perceiver_config.resampler_n_latents,
        language=text_shape(text),
        vocab=text.vocab_size,
        connects="keys",
        key_flops=key,
        query_flops=query,
    )


def resampler_flops(config: Any) -> tuple[float, float]:
    """FLOPs of the connector for each live patch, and for an image whatever is alive."""
    tower, text, own = config.vision_config, config.text_config, config.perceiver_config
    latents, width = own.resampler_n_latents, own.hidden_size
    wide, narrow = own.resampler_n_heads * own.resampler_head_dim, own.num_key_value_heads * own.resampler_head_dim
    projection = 2.0 * text.intermediate_size * (2 * tower.hidden_size + text.hidden_size)
    key = 4.0 * width * narrow + 4.0 * latents * wide
    query = latents * (4.0 * width * wide + 4.0 * width * narrow + 4.0 * latents * wide + 24.0 * width * width)
    return projection + own.resampler_depth * key, own.resampler_depth * query
