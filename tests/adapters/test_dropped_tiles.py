"""Whole tiles leave before the tower runs: which ones, what the model then sees, and what it costs."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from atp.adapters import ADAPTERS, adapt, adapter_class
from atp.adapters.llava_next import LlavaNext
from atp.adapters.tiled import Picture, Tiled, Windowed
from atp.engine import prune
from atp.engine.pictures import pictures, residuals
from atp.engine.tiles import choose
from atp.errors import InvalidPlan, UnreachableBudget, UnsupportedModel
from atp.plan import Plan, Site, Step
from conformance.hiding import hiding
from conformance.test_families import plan_of, said
from families import FAMILIES
from families.base import IMAGE
from families.shuffled import TILE, TILES

KNOWN = {name: family for name, family in FAMILIES.items() if family.model_type in ADAPTERS}
SERVED = {
    name: family
    for name, family in KNOWN.items()
    if issubclass(kind := adapter_class(family.model_type), Tiled) and kind.tiled and not issubclass(kind, LlavaNext)
}
ABLE = (LlavaNext, Windowed)  # test_anyres_tiles.py, test_windows.py
OTHERS = [name for name in KNOWN if name not in SERVED and not issubclass(adapter_class(KNOWN[name].model_type), ABLE)]


@cache
def model_of(name: str) -> Any:
    """Built once, read only."""
    return SERVED[name].make()


def picture(rows: int, columns: int, seed: int, blank: int | None = None) -> Tensor:
    """Tiles of a drawn picture and its thumbnail `[rows * columns + 1, 3, TILE, TILE]`; one place may be of one colour."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 3 * rows, 3 * columns, generator=generator, dtype=torch.float64)
    whole = functional.interpolate(coarse, scale_factor=TILE // 3, mode="bicubic", align_corners=False)
    whole += 0.2 * torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    if blank is not None:
        top, left = TILE * (blank // columns), TILE * (blank % columns)
        whole[..., top : top + TILE, left : left + TILE] = 0.3
    thumbnail = functional.interpolate(whole, size=(TILE, TILE), mode="bicubic", antialias=True)
    tiles = whole[0].unflatten(2, (columns, TILE)).unflatten(1, (rows, TILE)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([tiles, thumbnail]) if rows * columns > 1 else tiles


def drawn(name: str, side: str = "left", dtype: torch.dtype = torch.float64) -> Any:
    """The family's batch of four images in three prompts, 3 + (1 + 5) + 1 tiles, with pictures instead of noise."""
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, side=side)
    made = [picture(*TILES[index % 4], seed=index) for index in range(sum(inputs.images))]
    if inputs["pixel_values"].dim() == 4:
        inputs["pixel_values"] = torch.cat(made).to(dtype)
        return inputs
    left = iter(made)
    for row, count in enumerate(inputs.images):
        own = torch.cat([next(left) for _ in range(count)])
        inputs["pixel_values"][row, : len(own)] = own
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    return inputs


def test_pictures_are_found_by_their_thumbnails() -> None:
    grids = [(1, 2), (1, 1), (3, 4), (2, 3), (1, 1), (3, 2), (4, 4)]
    tiles = torch.cat([picture(*grid, seed=index) for index, grid in enumerate(grids)])
    want, start = [], 0
    for rows, columns in grids:
        want += [Picture(start, rows, columns)] if rows * columns > 1 else []
        start += rows * columns + (rows * columns > 1)
    for dtype in (torch.float64, torch.bfloat16):
        assert pictures(tiles.to(dtype)) == want
    assert pictures(torch.randn(9, 3, TILE, TILE, generator=torch.Generator().manual_seed(0))) == []
    assert pictures(torch.zeros(9, 3, TILE, TILE)) == []  # a flat thumbnail proves nothing


def test_a_blank_tile_scores_nothing_and_a_tile_of_noise_most() -> None:
    tiles = picture(2, 2, seed=3, blank=1)
    noise = torch.randn(TILE, TILE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tiles[2] += 0.5 * (noise - noise.mean())
    found = pictures(tiles)
    assert found == [Picture(0, 2, 2)]
    scores = residuals(tiles, found[0])
    assert scores[1] <= 1e-12
    assert scores.argmax() == 2
    assert scores[2] == pytest.approx(math.hypot(0.5, float(scores[[0, 3]].mean())), rel=0.25)  # the two noises add up by squares
    assert choose(tiles, ">0.001").ran == [True, False, True, True, True]
    assert choose(tiles, 0.25).ran == [False, False, True, False, True]
    assert choose(tiles, 0.0).ran == [False] * 4 + [True]
    assert choose(tiles, 1.0).counts == [(5, 5)]


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize(("method", "side"), [("none", "left"), ("atp", "left"), ("random", "right")])
def test_a_run_without_some_tiles_equals_the_masked_reference(name: str, method: str, side: str) -> None:
    family, model, inputs = SERVED[name], model_of(name), drawn(name, side)
    steps = 6 if side == "left" else 1
    plan = Plan("none") if method == "none" else plan_of(model, method)
    plan = replace(plan, options={"merge": False} if method == "atp" else {})  # the reference only hides
    with prune(model, plan=plan, tiles=0.5) as run:
        _, got = said(model, family, inputs, steps=steps)
    assert run.report().tiles == ((2, 3), (3, 5))
    assert run.trace.tiles.count(False) == 3
    with hiding(model, adapt(model), run.trace, inputs["input_ids"] == IMAGE):
        _, want = said(model, family, inputs, steps=steps)
    rows = slice(None) if side == "left" else inputs["attention_mask"][:, -1].bool()
    assert (got - want)[rows].abs().max() <= 1e-9
    if method == "none":
        assert (said(model, family, inputs, steps=1)[1] - want[:, :1])[rows].abs().max() > 1e-4, "nothing left"


@pytest.mark.parametrize("name", SERVED)
def test_the_tower_runs_on_fewer_rows(name: str) -> None:
    model, inputs, seen = model_of(name), drawn(name), []
    adapter = adapt(model)
    with torch.no_grad(), prune(model, tiles=0.5) as run:
        hooks = [
            part.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
            for part in (adapter.vision.layers[0], adapter.connector)
        ]
        model(**inputs)
    for hook in hooks:
        hook.remove()
    assert seen == [7, 7]
    report = run.report()
    assert report.flops.vision == pytest.approx(0.7 * report.flops_unpruned.vision)
    assert report.flops.connector == pytest.approx(0.7 * report.flops_unpruned.connector)
    assert report.flops.prefill < report.flops_unpruned.prefill
    assert report.images == 10
    assert report.seconds > 0, "tiles are chosen in no time"
    assert "tiles that ran, with the thumbnail: 2 of 3, 3 of 5" in str(report)
    assert report.to_dict()["tiles"] == [[2, 3], [3, 5]]


@pytest.mark.parametrize("name", SERVED)
def test_keeping_all_tiles_is_no_tiles_at_all(name: str) -> None:
    family, model, inputs = SERVED[name], model_of(name), drawn(name)
    want = said(model, family, inputs, steps=3)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for tiles in (1.0, ">0"):
            with prune(model, tiles=tiles) as run:
                assert torch.equal(said(model, family, inputs, steps=3)[1], want)
            assert run.dropped == 0
            assert run.report().ratio == 1.0


@pytest.mark.parametrize("name", SERVED)
def test_a_batch_equals_its_singles(name: str) -> None:
    family, model, inputs = SERVED[name], model_of(name), drawn(name)
    with prune(model, plan=plan_of(model, "uniform"), tiles=0.5):
        together = said(model, family, inputs, steps=3)[1]
    for row in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with prune(model, plan=plan_of(model, "uniform"), tiles=0.5):
                alone = said(model, family, family.single(inputs, row), steps=3)[1]
        assert (together[row] - alone[0]).abs().max() <= 1e-8


@pytest.mark.parametrize("tiles", [0.5, 0.75, ">0.1"])
@pytest.mark.parametrize("budget", [0.6, 0.9])
def test_a_budget_is_not_overspent(tiles: float | str, budget: float) -> None:
    """Sixteen tiles and a thumbnail, for which the plan is solved too."""
    from atp.budget.cost import Workload

    model = FAMILIES["internvl"].make(layers=6)
    one = FAMILIES["internvl"].single(FAMILIES["internvl"].inputs(model, (30,), (1,)), 0)
    tokens = adapt(model).shape.visual
    ids = [16, 17, *[IMAGE] * (17 * tokens), *range(20, 50)]
    one["input_ids"] = torch.tensor([ids])
    one["attention_mask"] = torch.ones_like(one["input_ids"])
    one["pixel_values"] = picture(4, 4, seed=2)
    work = Workload(images=17, text=32, answer=1)
    with torch.no_grad(), prune(model, budget=budget, method="uniform", tiles=tiles, workload=work) as run:
        model(**one)
    assert run.report().ratio <= budget + 0.005
    if not isinstance(tiles, str) and budget == 0.6:
        assert run.report().ratio > budget - 0.05 or tiles == 0.5
        assert run.plan.budget == budget


def test_a_budget_out_of_reach_names_one_that_is_within() -> None:
    model = model_of("internvl")
    with pytest.raises(
        UnreachableBudget, match=r"budget 0\.05 cannot be reached with tiles=0\.5: .*; use budget=0\.\d\d"
    ) as told:
        prune(model, budget=0.05, tiles=0.5).__enter__()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with prune(model, budget=told.value.lowest, tiles=0.5) as run:
            assert run.plan.budget == told.value.lowest


def test_plans_remember_tiles() -> None:
    plan = Plan("uniform", (Step(Site("language", 2), 0.5),), tiles=">0.02")
    assert Plan.from_dict(plan.to_dict()) == plan
    assert "tiles" not in Plan("uniform").to_dict()
    for wrong in (1.5, -0.1, "0.5", ">x", True):
        with pytest.raises(InvalidPlan, match="tiles is a share of each picture's tiles in"):
            Plan("uniform", tiles=wrong)


@pytest.mark.parametrize("name", OTHERS)
def test_models_without_such_tiles_are_refused(name: str) -> None:
    model = FAMILIES[name].make()
    try:
        adapt(model)
    except UnsupportedModel as refusal:
        pytest.skip(str(refusal))
    with (
        pytest.raises(
            InvalidPlan,
            match=(
                "whole tiles leave from idefics3, internvl, llava_next, llava_onevision, smolvlm models only, "
                "windows from qwen2_5_vl, qwen2_vl, qwen3_vl, this is a "
            ),
        ),
        prune(model, tiles=0.5),
    ):
        pass


def test_noise_is_no_picture() -> None:
    model = model_of("internvl")
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        with prune(model, tiles=0.5) as run:
            model(**FAMILIES["internvl"].inputs(model))
    assert any("none of the 10 images of a call is the thumbnail of a picture in tiles" in str(one.message) for one in told)
    assert run.dropped == 0


def test_bfloat16() -> None:
    model = SERVED["smolvlm"].make(dtype=torch.bfloat16)
    inputs = drawn("smolvlm", dtype=torch.bfloat16)
    with torch.no_grad(), prune(model, plan=plan_of(model, "atp"), tiles=0.5) as run:
        assert model(**inputs).logits.isfinite().all()
    assert run.report().tiles == ((2, 3), (3, 5))
