"""LLaVA-NeXT and LLaVA-OneVision: an image of any size becomes a small copy and a grid of tiles, each an image of the tower.

The tiles' features are laid out as one picture, cut to the image's own shape, perhaps shrunk, and every row ends in a newline
token. `pack` lets the model itself lay the facts out in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atp.adapters.base import Args, Kwargs, named
from atp.adapters.llava import Llava
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


class LlavaNext(Llava):
    """`LlavaNextForConditionalGeneration`."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    mask_place: ClassVar[int] = 3
    tiles: ClassVar[int] = 5
    graphs: ClassVar[bool] = False

    def has_pixels(self, args: Args, kwargs: Kwargs) -> bool:
        pixels = named(kwargs, args, "pixel_values", 1)
        return pixels is not None and len(pixels) > 0

    def watched(self) -> tuple[tuple[nn.Module, str], ...]:
        # `generate` encodes images before the forward, which is not told their sizes.
        return ((self.base, "pack_image_features"),)

    def layout(self, name: str, args: Args, kwargs: Kwargs) -> Any:
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
        if name == "pack_image_features":
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
        if name == "get_video_features":
            return made
        features, lengths = made
        packed = self.pack(there, (), layout)
        return [one / _share(share, one) for one, share in zip(features, packed, strict=True)], lengths


def _share(weights: Tensor, features: Tensor) -> Tensor:
    """What to divide features by: the weight of live patches; below half of it, nobody reads the token."""
    return weights.nan_to_num(1.0).clamp(min=0.25).to(features)
