"""LLaVA-NeXT and LLaVA-OneVision: an image of any size becomes a small copy and a grid of tiles, each an image of the tower.

The tiles' features are laid out as one picture, cut to the image's own shape, perhaps shrunk, and every row ends in a newline
token. `pack` lets the model itself lay the facts out in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.image_processing_utils import select_best_resolution

from atp.adapters.base import Args, Kwargs, named
from atp.adapters.llava import Llava
from atp.adapters.tiled import Picture, Tiled
from atp.errors import UnsupportedModel


@dataclass(frozen=True)
class Layout:
    """How the model laid tiles out.

    Attributes:
        tiles: of each image.
        sizes: `[P, 2]` height and width of each image.
        newline: whether rows end in a newline token.
        options: further arguments of `pack_image_features`.
    """

    tiles: tuple[int, ...]
    sizes: Any
    newline: bool
    options: dict[str, Any]


class LlavaNext(Tiled, Llava):
    """`LlavaNextForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    mask_place: ClassVar[int] = 3
    tiles: ClassVar[int] = 5
    graphs: ClassVar[bool] = False
    _cut: Sequence[tuple[tuple[int, int], bool]] = ()
    """Size of each image of the running `get_image_features`, and whether it is cut into tiles."""

    def has_pixels(self, args: Args, kwargs: Kwargs) -> bool:
        pixels = named(kwargs, args, "pixel_values", 1)
        return pixels is not None and len(pixels) > 0

    def watched(self) -> tuple[tuple[nn.Module, str], ...]:
        # `generate` encodes images before the forward, which is not told their sizes.
        return ((self.base, "pack_image_features"), (self.base, "get_image_features"))

    def hear(self, name: str, args: Args, kwargs: Kwargs) -> None:
        if name != "get_image_features":
            return
        sizes = torch.as_tensor(named(kwargs, args, "image_sizes", 1)).tolist()
        numbers = kwargs.get("batch_num_images")  # several images of a prompt are not cut
        cut = [True] * len(sizes) if numbers is None else [int(n) == 1 for n in numbers for _ in range(int(n))]
        self._cut = list(zip(map(tuple, sizes), cut, strict=False))

    def pictures(self, tiles: Tensor) -> list[Picture]:
        given, self._cut = self._cut, []
        side, found, start = tiles.shape[-1], [], 0
        for size, cut in given:
            one = picture(size, self.config.image_grid_pinpoints, side, start + 1) if cut else None
            found += [] if one is None else [one]
            start += 1 if one is None else 1 + one.size
        return found if start == len(tiles) else []

    def layout(self, name: str, args: Args, kwargs: Kwargs) -> Any:
        if name != "pack_image_features":
            return None
        features = named(kwargs, args, "image_features", 0)
        known = ("image_features", "image_sizes", "image_newline")
        return Layout(
            tiles=tuple(len(one) for one in features),
            sizes=named(kwargs, args, "image_sizes", 1),
            newline=kwargs.get("image_newline") is not None,
            options={name: value for name, value in kwargs.items() if name not in known},
        )

    def pack(self, values: Tensor, counts: Sequence[int], extra: Any) -> list[Tensor]:
        if not isinstance(extra, Layout):
            raise UnsupportedModel(
                "the tiles' features were not laid out by the model's own pack_image_features inside the block; pass "
                "pixel_values and image_sizes, or the output of get_image_features as it is"
            )
        facts: Any = values.nan_to_num(0.0)  # scores of dead patches, which no live token reads
        newline = values.new_full((values.shape[-1],), torch.nan) if extra.newline else None
        own: Any = type(self.base)  # not the watched one
        packed, _ = own.pack_image_features(
            self.base, facts.split(extra.tiles), extra.sizes, image_newline=newline, **extra.options
        )
        return list(packed)


def picture(size: tuple[int, int], resolutions: Sequence[Sequence[int]], side: int, start: int) -> Picture:
    """Say how an image of `size` (height, width) is cut: enlarged to fit the best resolution, and padded on both sides."""
    height, width = select_best_resolution(size, [tuple(one) for one in resolutions])
    tall, wide = height / size[0], width / size[1]
    new = (min(math.ceil(size[0] * wide), height), width) if wide < tall else (height, min(math.ceil(size[1] * tall), width))
    box = ((height - new[0]) // 2, (width - new[1]) // 2, *new)
    return Picture(start, height // side, width // side, before=True, box=box)


@dataclass(frozen=True)
class Frames:
    """Videos: how many, and frames of each."""

    videos: int
    frames: int


class LlavaOnevision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`.

    Where it shrinks a picture, and in every frame of a video, a visual token is the weighted mean of up to four patches: here of
    those that are alive, if they have at least half of the weight.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    mask_place: ClassVar[int] = 5
    resizable: ClassVar[bool] = False

    def given(self, args: Args, kwargs: Kwargs) -> dict[str, Any]:
        found = super().given(args, kwargs)
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("video")
        if encoded is not None or named(kwargs, args, "pixel_values_videos", 3) is not None:
            found["video"] = encoded
        return found

    def tokens_of(self, ids: Tensor, modality: str) -> Tensor:
        token: int = getattr(self.config, f"{modality}_token_id")
        return ids == token

    def watched(self) -> tuple[tuple[nn.Module, str], ...]:
        return (*super().watched(), (self.base, "apply_pooling"), (self.base, "get_video_features"))

    def layout(self, name: str, args: Args, kwargs: Kwargs) -> Any:
        if name in ("pack_image_features", "get_image_features"):
            return super().layout(name, args, kwargs)
        if name == "apply_pooling":
            return None
        pixels = named(kwargs, args, "pixel_values_videos", 0)
        return Frames(*pixels.shape[:2])

    def pooled(self, values: Tensor) -> Tensor:
        """Pool facts `[P, N, C]` as the model pools the patches of frames."""
        own: Any = type(self.base)
        pooled: Tensor = own.apply_pooling(self.base, values)
        return pooled

    def pack(self, values: Tensor, counts: Sequence[int], extra: Any) -> list[Tensor]:
        if not isinstance(extra, Frames):
            return super().pack(values, counts, extra)
        facts = self.pooled(values.nan_to_num(0.0)).reshape(extra.videos, -1, values.shape[-1])
        return list(torch.nn.functional.pad(facts, (0, 0, 0, 1), value=torch.nan))

    def mended(self, name: str, made: Any, alive: Tensor, layout: Any) -> Any:
        there = alive.unsqueeze(-1).to(torch.float64)
        if name == "apply_pooling":
            return made / _share(self.pooled(there), made)
        if name in ("get_video_features", "get_image_features"):
            return made
        features, lengths = made
        packed = self.pack(there, (), layout)
        return [one / _share(share, one) for one, share in zip(features, packed, strict=True)], lengths


def _share(weights: Tensor, features: Tensor) -> Tensor:
    """What to divide features by: the weight of live patches; below half of it, nobody reads the token."""
    return weights.nan_to_num(1.0).clamp(min=0.25).to(features)
