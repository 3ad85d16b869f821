"""Prompts without a processor, for measuring: ids and noise in the sizes that a model's configuration names.

Facts of transformers 5.20 - 5.23 used here: names and shapes of what each family's processor makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atp.adapters.base import Adapter
from atp.errors import BadInput, UnsupportedModel
from atp.registry import did_you_mean

LEAD = 2
"""Words before the image."""

Made = tuple[int, dict[str, tuple[int, ...]], dict[str, Tensor]]
"""Image ids of a prompt; shapes of the inputs that are noise; further inputs of the batch."""


def example(adapter: Adapter, batch: int = 1, text: int = 32, tiles: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Make a batch of prompts of equal length: random words around one image each, pixels of noise.

    Args:
        adapter: of the model.
        batch: prompts.
        text: words of a prompt.
        tiles: images of the tower in a prompt (an image in tiles is several); None = those of a typical image.
        seed: of words and pixels.

    Returns:
        Keyword arguments for `model.generate`, on the model's device and in its dtype.

    Raises:
        UnsupportedModel: a family whose inputs only its processor can make.
        BadInput: too few words, or a number of tiles that this family does not make.
    """
    if text <= LEAD:
        raise BadInput(f"a prompt has more than {LEAD} words, got {text}; e.g. --text-tokens 32")
    model: Any = adapter.model
    kind = model.config.model_type
    if kind not in MAKERS or getattr(model.config.vision_config, "model_type", "") == "pixtral":
        raise UnsupportedModel(
            f"inputs of a {kind} model can only be made by its processor.{did_you_mean(kind, MAKERS)} Known without: "
            f"{', '.join(sorted(MAKERS))}; give a folder or a hub id with --model"
        )
    count = adapter.tiles if tiles is None else tiles
    if count < 1:
        raise BadInput(f"a prompt has at least one image, got {count} tiles; e.g. --tiles {adapter.tiles}")
    visual, noise, more = MAKERS[kind](adapter, batch, count)
    generator = torch.Generator().manual_seed(seed)
    token = getattr(model.config, "image_token_id", None)
    words = torch.randint(adapter.shape.vocab // 4, adapter.shape.vocab // 2, (batch, text), generator=generator)
    ids = torch.cat([words[:, :LEAD], torch.full((batch, visual), token or 0), words[:, LEAD:]], dim=1)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **more,
        **typed(kind, ids, token, noise["pixel_values"], text),
    }
    for name, shape in noise.items():
        pixels = torch.randn(shape, generator=generator)
        if name == "pixel_values" and count > 2 and kind in ("idefics3", "internvl", "smolvlm"):
            pixels = _picture(pixels.view(batch, count, *shape[-3:]), generator).view(shape)
        made[name] = pixels.to(model.dtype)
    return {name: value.to(model.device) for name, value in made.items()}


def _picture(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Make of noise `[B, tiles, C, H, W]` a picture in tiles: shades under the noise, and the whole behind as a thumbnail."""
    number = noise.shape[1] - 1
    rows = max(n for n in range(1, math.isqrt(number) + 1) if number % n == 0)
    (high, wide), grid = noise.shape[-2:], (rows, number // rows)
    coarse = torch.randn(len(noise), noise.shape[2], 2 * grid[0], 2 * grid[1], generator=generator)
    shades = torch.nn.functional.interpolate(coarse, size=(grid[0] * high, grid[1] * wide), mode="bilinear")
    own = shades.reshape(*coarse.shape[:2], grid[0], high, grid[1], wide).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    small = torch.nn.functional.interpolate(shades, size=(high, wide), mode="bilinear", antialias=True)
    return torch.cat([own + 0.1 * noise[:, :-1], small.unsqueeze(1)], 1)


def typed(kind: str, ids: Tensor, token: int | None, pixels: tuple[int, ...], text: int) -> dict[str, Tensor]:
    """Return the inputs that follow the ids, place by place; `pixels` is the shape of the pixels."""
    image = (ids == (-1 if token is None else token)).long()
    if kind.startswith("qwen"):
        return {"mm_token_type_ids": image.int()}
    if kind in ("gemma3", "paligemma"):
        return {"token_type_ids": image if kind == "gemma3" else torch.zeros_like(ids)}
    if kind == "instructblip":
        words = 1 + torch.arange(text).expand(len(ids), -1) % 64
        return {"qformer_input_ids": words, "qformer_attention_mask": torch.ones_like(words)}
    if kind == "idefics":  # every word sees every image
        return {"image_attention_mask": ids.new_ones(*ids.shape, pixels[1])}
    if kind == "mllama":
        return {"cross_attention_mask": ids.new_ones(*ids.shape, 1, pixels[2])}
    return {}


def _pixels(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of an image of the tower."""
    size = config.vision_config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(getattr(config.vision_config, "num_channels", 3)), int(height), int(width)


def _row(adapter: Adapter, batch: int, tiles: int) -> Made:
    """Images one after the other: `[B * tiles, C, H, W]`."""
    size = _pixels(adapter.model.config)
    return tiles * adapter.shape.visual, {"pixel_values": (batch * tiles, *size)}, {}


def _one(adapter: Adapter, batch: int, tiles: int) -> Made:
    """One image a prompt."""
    if tiles != 1:
        raise BadInput(f"a prompt of this family has one image, got {tiles} tiles; use --tiles 1")
    return _row(adapter, batch, tiles)


def _block(adapter: Adapter, batch: int, tiles: int) -> Made:
    """Tiles of a prompt together: `[B, tiles, C, H, W]`."""
    size = _pixels(adapter.model.config)
    return tiles * adapter.shape.visual, {"pixel_values": (batch, tiles, *size)}, {}


def _any_resolution(adapter: Adapter, batch: int, tiles: int) -> Made:
    """A small copy and a grid of tiles that the image fills exactly; every row of the grid ends in a newline token."""
    config: Any = adapter.model.config
    channels, side, _ = _pixels(config)
    least = str(getattr(config, "vision_aspect_ratio", "")).rpartition("_")[2]
    most = int(least) if least.isdigit() else 10**6  # more tiles are shrunk
    known = sorted(config.image_grid_pinpoints, key=lambda size: -abs(size[0] - size[1]))  # the squarest of a count
    grids = {(high // side) * (wide // side) + 1: (high, wide) for high, wide in known}
    grids = {count: size for count, size in grids.items() if count - 1 <= most}
    if tiles == adapter.tiles:
        tiles = max(count for count in grids if count <= tiles or count == min(grids))
    if tiles not in grids:
        raise BadInput(f"an image of this model has {', '.join(map(str, sorted(grids)))} tiles, got {tiles}; use one of these")
    height, width = grids[tiles]
    own = adapter.grid[0]
    visual = adapter.shape.visual + own * (height // side) * (own * (width // side) + 1)
    sizes = torch.tensor([[height, width]] * batch)
    return visual, {"pixel_values": (batch, tiles, channels, side, side)}, {"image_sizes": sizes}


def _packed(adapter: Adapter, batch: int, tiles: int) -> Made:
    """Patches of the nominal image, all images in one sequence."""
    merge = math.isqrt(adapter.shape.group)
    grid = (1, adapter.grid[0] * merge, adapter.grid[1] * merge)
    grids = torch.tensor([grid] * (batch * tiles))
    shape = (batch * tiles * grid[1] * grid[2], adapter.shape.patch_inputs)
    return tiles * adapter.shape.visual, {"pixel_values": shape}, {"image_grid_thw": grids}


def _flamingo(adapter: Adapter, batch: int, tiles: int) -> Made:
    """Images beside the text; `example` gives no ids for them, and every word sees all."""
    size = _pixels(adapter.model.config)
    return 0, {"pixel_values": (batch, tiles, *size)}, {}


def _crossed(adapter: Adapter, batch: int, tiles: int) -> Made:
    """One image in as many tiles as the model takes, as keys of cross-attention layers."""
    _one(adapter, 1, tiles)
    model: Any = adapter.model
    tower = model.config.vision_config
    most = tower.max_num_tiles
    shapes = [number for number, (h, w) in enumerate(tower.supported_aspect_ratios, 1) if h * w == most]
    ids, real = torch.full((batch, 1), shapes[len(shapes) // 2]), torch.ones(batch, 1, most, dtype=torch.int64)
    more = {"aspect_ratio_ids": ids, "aspect_ratio_mask": real}
    return 1, {"pixel_values": (batch, 1, most, *_pixels(model.config))}, more


MAKERS: dict[str, Callable[[Adapter, int, int], Made]] = {
    "blip-2": _one,
    "gemma3": _row,
    "idefics": _flamingo,
    "idefics2": _block,
    "idefics3": _block,
    "instructblip": _one,
    "internvl": _row,
    "llava": _row,
    "llava_next": _any_resolution,
    "llava_onevision": _any_resolution,
    "mllama": _crossed,
    "paligemma": _row,
    "qwen2_5_vl": _packed,
    "qwen2_vl": _packed,
    "qwen3_vl": _packed,
    "smolvlm": _block,
    "vipllava": _row,
}
"""`config.model_type` -> what one batch of that family is made of."""
