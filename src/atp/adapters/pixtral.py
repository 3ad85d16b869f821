"""Pixtral's tower, which packs images of any size into one sequence; Mistral 3 has it, and LLaVA models may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import unfold

from atp.adapters.base import Args, Images, Kwargs, LayerCall, named
from atp.adapters.views import Tower
from atp.errors import UnsupportedModel


class Pixtral(Tower):
    """Layers over one packed sequence, with a mask of blocks and phases `[T, d]` of two dimensions."""

    attention = "attention"
    _phases: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def read(self, args: Args, kwargs: Kwargs) -> LayerCall:
        call, given = super().read(args, kwargs), kwargs["position_embeddings"]
        if self._phases is None or self._phases[0] is not given:
            self._phases = given, (given[0].unsqueeze(0), given[1].unsqueeze(0))
        return LayerCall(call.hidden, call.mask, self._phases[1])

    def write(self, args: Args, kwargs: Kwargs, call: LayerCall) -> tuple[Args, Kwargs]:
        assert call.phases is not None
        args, rest = super().write(args, kwargs, call)
        return args, dict(rest, position_embeddings=(call.phases[0].squeeze(0), call.phases[1].squeeze(0)))


def images_of(args: Args, kwargs: Kwargs, patch: int, merge: int = 1) -> Images:
    """Read a call of the tower; `patch` is the side of a patch in pixels, `merge` as in `packed_images`."""
    pixels: Tensor = named(kwargs, args, "pixel_values", 0)
    given = named(kwargs, args, "image_sizes", 1)
    sizes = [tuple(pixels.shape[-2:])] * len(pixels) if given is None else torch.as_tensor(given).tolist()
    return packed_images([(height // patch, width // patch) for height, width in sizes], merge, pixels.device)


def packed_images(grids: Sequence[tuple[int, int]], merge: int, device: torch.device) -> Images:
    """Images in one sequence, each in raster order; a token is a square of merge x merge patches.

    Args:
        grids: height and width of each image, in patches.
        merge: side of the square.
        device: where the places shall be.

    Raises:
        UnsupportedModel: an image that does not divide into squares.
    """
    places, start = [], 0
    for height, width in grids:
        if height % merge or width % merge:
            raise UnsupportedModel(
                f"an image of {height} x {width} patches does not divide into squares of {merge} x {merge}, so some patches "
                "become no visual token; let the processor resize it: processor(images=..., text=...)"
            )
        number = torch.arange(height * width, dtype=torch.float32, device=device).view(1, 1, height, width)
        places.append(unfold(number, kernel_size=merge, stride=merge)[0].t().to(torch.int64) + start)
        start += height * width
    where = torch.nn.utils.rnn.pad_sequence(places, batch_first=True)
    others = torch.zeros(1, start, dtype=torch.bool, device=device)
    counts = tuple(len(one) for one in places)
    return Images(where, counts, others, 0, tuple((h // merge, w // merge) for h, w in grids), packed=True)
