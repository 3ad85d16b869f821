"""Tiles of LLaVA-NeXT and LLaVA-OneVision leave before the tower: the thumbnail stands first, and the picture is padded."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import LlavaNextImageProcessor

from atp.adapters import adapt
from atp.adapters.llava_next import picture
from atp.adapters.tiled import Picture
from atp.engine import prune
from atp.engine.pictures import residuals
from atp.engine.tiles import choose
from atp.plan import Plan
from conformance.hiding import hiding
from conformance.test_families import plan_of, said
from families import FAMILIES
from families.base import IMAGE
from families.llavas import GRIDS, PHOTOS, TILE

NAMES = ("llava_next", "llava_onevision")
TOLD = {"llava_next": ((3, 5), (2, 3), (2, 3), (2, 3)), "llava_onevision": ((3, 5), (2, 3))}
"""Tiles that run and all, of each picture: several images of one prompt are not cut by the second."""


@cache
def model_of(name: str) -> Any:
    """Built once, read only."""
    return FAMILIES[name].make()


def cut(photo: tuple[int, int], seed: int) -> Tensor:
    """A drawn picture as the processor cuts it: thumbnail and tiles `[1 + n, 3, TILE, TILE]`."""
    one, generator = picture(photo, GRIDS, TILE, 1), torch.Generator().manual_seed(seed)
    assert one.box is not None
    top, left, height, width = one.box
    coarse = torch.randn(1, 3, 3, 3, generator=generator, dtype=torch.float64)
    whole = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    whole += 0.2 * torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    canvas = torch.full((3, one.rows * TILE, one.columns * TILE), -1.0, dtype=torch.float64)
    canvas[:, top : top + height, left : left + width] = whole[0]
    tiles = canvas.unflatten(2, (one.columns, TILE)).unflatten(1, (one.rows, TILE)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([functional.interpolate(whole, size=(TILE, TILE), mode="bicubic", antialias=True), tiles])


def drawn(name: str, side: str = "left") -> Any:
    """The family's batch with pictures instead of noise."""
    family, model = FAMILIES[name], model_of(name)
    inputs = family.inputs(model, side=side)
    for index, own in enumerate(inputs["pixel_values"]):
        made = cut(PHOTOS[index % len(PHOTOS)], index)
        own[: len(made)] = made[: len(own)]
    return inputs


def test_places_by_hand() -> None:
    """20 x 24 pixels fit 32 x 32 best, grow by 32 / 24 to 27 x 32, and leave two rows above and three below."""
    assert picture((20, 24), GRIDS, TILE, 1) == Picture(1, 2, 2, before=True, box=(2, 0, 27, 32))
    assert picture((16, 32), GRIDS, TILE, 4) == Picture(4, 1, 2, before=True, box=(0, 0, 16, 32))
    assert picture((32, 14), GRIDS, TILE, 1).box == (0, 1, 32, 14)
    assert Picture(4, 1, 2, before=True).thumbnail == 3


def test_what_the_real_processor_cuts_is_explained_by_its_thumbnail() -> None:
    """A smooth picture of odd size: its own place explains it, a place moved by a few pixels does not; padding counts nothing."""
    across, down = np.meshgrid(np.linspace(0, 6, 230), np.linspace(0, 4, 110))
    smooth = (127 + 120 * np.sin(across) * np.cos(down)).astype(np.uint8)
    resolutions = [[64, 128], [128, 64], [128, 128]]
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_grid_pinpoints=resolutions
    )
    made = processor(Image.fromarray(smooth).convert("RGB"), return_tensors="pt")
    tiles, size = made["pixel_values"][0], tuple(made["image_sizes"][0].tolist())
    one = picture(size, resolutions, 64, 1)
    assert one.size + 1 == len(tiles) and one.box is not None
    known = residuals(tiles, one)
    assert known.max() < 0.1
    moved = residuals(tiles, replace(one, box=(one.box[0], one.box[1], one.box[2] - 16, one.box[3])))
    assert moved.max() > 3 * known.max()
    empty = tiles.clone()
    empty[1:] = tiles.amin()  # nothing but padding
    assert residuals(empty, one).max() < 1e-6


def test_a_padded_tile_leaves_before_one_that_says_something() -> None:
    tiles = cut((20, 24), 0)
    tiles[2] = tiles[2] + torch.randn(3, TILE, TILE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    one = picture((20, 24), GRIDS, TILE, 1)
    assert choose(tiles, 0.25, [one]).ran == [True, False, True, False, False]
    assert choose(tiles, 0.0, [one]).ran == [True] + [False] * 4
    assert choose(tiles, 1.0, [one]).counts == [(5, 5)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "side"), [("none", "left"), ("atp", "left"), ("random", "right")])
def test_a_run_without_some_tiles_equals_the_masked_reference(name: str, method: str, side: str) -> None:
    family, model, inputs = FAMILIES[name], model_of(name), drawn(name, side)
    steps = 6 if side == "left" else 1
    plan = Plan("none") if method == "none" else plan_of(model, method)
    plan = replace(plan, options={"merge": False} if method == "atp" else {})  # the reference only hides
    with prune(model, plan=plan, tiles=0.5) as run:
        _, got = said(model, family, inputs, steps=steps)
    assert run.report().tiles == TOLD[name]
    with hiding(model, adapt(model), run.trace, inputs["input_ids"] == IMAGE, inputs["image_sizes"]):
        _, want = said(model, family, inputs, steps=steps)
    rows = slice(None) if side == "left" else inputs["attention_mask"][:, -1].bool()
    assert (got - want)[rows].abs().max() <= 1e-9
    if method == "none":
        assert (said(model, family, inputs, steps=1)[1] - want[:, :1])[rows].abs().max() > 1e-4, "nothing left"


@pytest.mark.parametrize("name", NAMES)
def test_the_tower_runs_on_fewer_rows_and_single_prompts_say_the_same(name: str) -> None:
    family, model, inputs, seen = FAMILIES[name], model_of(name), drawn(name), []
    layer = adapt(model).vision.layers[0]
    with torch.no_grad(), prune(model, plan=plan_of(model, "uniform"), tiles=0.5) as run:
        hook = layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len((*args, *kwargs.values())[0])), with_kwargs=True
        )
        together = said(model, family, inputs, steps=3)[1]
        hook.remove()
    ran, whole = (sum(pair[at] for pair in TOLD[name]) for at in (0, 1))
    uncut = 2 if name == "llava_onevision" else 0
    assert seen == [ran + uncut]
    assert run.report().images == whole + uncut
    for row in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with prune(model, plan=plan_of(model, "uniform"), tiles=0.5):
                alone = said(model, family, family.single(inputs, row), steps=3)[1]
        assert (together[row] - alone[0]).abs().max() <= 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_tiles_is_no_tiles_at_all(name: str) -> None:
    family, model, inputs = FAMILIES[name], model_of(name), drawn(name)
    want = said(model, family, inputs, steps=3)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with prune(model, tiles=1.0) as run:
            assert torch.equal(said(model, family, inputs, steps=3)[1], want)
        assert run.dropped == 0 and run.report().ratio == 1.0


def test_frames_of_videos_are_no_pictures() -> None:
    family, model = FAMILIES["llava_onevision"], model_of("llava_onevision")
    assert family.videos is not None
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        with prune(model, tiles=0.5) as run:
            model(**family.videos(model))
    assert any("is the thumbnail of a picture in tiles" in str(one.message) for one in told)
    assert run.dropped == 0
