"""Windows of Qwen's images leave before the tower runs: which ones, what the model then sees, and what it costs."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

import invariants
from adapters.mixed import Several, mixed
from atp.adapters import adapt
from atp.adapters.base import Images
from atp.adapters.qwen2_vl import NOMINAL
from atp.budget.cost import Workload
from atp.engine import prune
from atp.engine.windows import Layout, choose, contrasts
from atp.explain import story
from atp.plan import Plan, Site, Step
from conformance import hiding as masked
from conformance.hiding import hiding
from conformance.test_families import plan_of, said
from families import FAMILIES
from families.base import IMAGE
from families.packed import FRAMES, GRIDS, MERGE, PATCH

NAMES = [name for name in FAMILIES if name.startswith("qwen")]
SIDES = {"qwen2_vl": 4, "qwen2_5_vl": 2, "qwen3_vl": 4}
COLOUR = 0.3


@cache
def model_of(name: str) -> Any:
    """Built once, read only."""
    return FAMILIES[name].make()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def over(*grids: tuple[int, int]) -> Images:
    """Images of so many visual tokens, as the census sees them."""
    counts = tuple(high * wide for high, wide in grids)
    where = torch.zeros(len(grids), max(counts), MERGE**2, dtype=torch.int64)
    others = torch.zeros(1, sum(counts) * MERGE**2, dtype=torch.bool)
    return Images(where, counts, others, 0, grids, packed=True)


def noise(tokens: int, seed: int = 0) -> Tensor:
    """Contents `[tokens, 3, 8]`."""
    return torch.randn(tokens, 3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flattened(name: str, inputs: Any, share: float = 0.5) -> Any:
    """The same inputs with the first windows of each image of one colour."""
    model = model_of(name)
    layout = Layout.over(over(*[(h // MERGE, w // MERGE) for h, w in GRIDS[: sum(inputs.images)]]), SIDES[name])
    start = 0
    for windows in layout.windows:
        for number in range(start, start + math.ceil(windows * share)):
            rows = (layout.of == number).repeat_interleave(MERGE**2)
            inputs["pixel_values"][rows] = COLOUR
        start += windows
    assert adapt(model).window == SIDES[name]
    return inputs


def test_windows_are_cut_off_at_the_edges() -> None:
    layout = Layout.over(over((3, 5), (2, 2)), 2)
    assert layout.of[:15].view(3, 5).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert layout.of[15:].tolist() == [6] * 4
    assert layout.sizes == [4, 4, 2, 2, 2, 1, 4]
    assert layout.windows == [6, 1]


def test_a_window_of_one_colour_tells_nothing_and_one_token_of_it_stays() -> None:
    images = over((4, 4))
    contents = noise(16)
    layout = Layout.over(images, 2)
    contents[layout.of == 1] = torch.tensor([0.2, -1.0, 3.0], dtype=torch.float64).view(1, 3, 1)
    contents[layout.of == 3] *= 2
    found, own = contrasts(contents, [False], images, layout)
    assert found[1] == 0
    assert found[3] == found.max()
    window = contents[layout.of == 0]
    want = (window - window.mean((0, 2), keepdim=True)).square().mean().sqrt()
    assert found[0] == pytest.approx(float(want))
    chosen = choose(contents, [False], images, 2, ">0.001")
    assert chosen.windows == [(3, 4)]
    assert chosen.counts == [13] == chosen.keep.sum(1).tolist()
    assert chosen.keep[0][layout.of == 1].sum() == 1
    half = choose(contents, [False], images, 2, 0.5)
    assert half.windows == [(2, 4)]
    assert half.counts == [10] == half.keep.sum(1).tolist()
    assert half.keep[0][layout.of == 3].all()
    for number in (0, 2) if found[0] < found[2] else (2, 0):  # of what leaves, the token that differs most stays
        gone = half.keep[0][layout.of == number]
        assert gone.all() or own[layout.of == number][gone].item() == own[layout.of == number].max()
    assert choose(contents, [False], images, 2, 0.0).counts == [4]


@pytest.mark.parametrize("grid", [(6, 5), (5, 9), (7, 7), (12, 9)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_a_share_is_one_of_the_tokens_where_windows_are_cut_off(grid: tuple[int, int], share: float) -> None:
    contents, tokens = noise(grid[0] * grid[1], seed=sum(grid)), grid[0] * grid[1]
    layout = Layout.over(over(grid), 4)
    chosen = choose(contents, [False], over(grid), 4, share)
    whole = chosen.counts[0] - (chosen.windows[0][1] - chosen.windows[0][0])  # one token of each of the others
    assert abs(whole - share * tokens) <= max(layout.sizes) / 2
    assert share not in (0.0, 1.0) or whole == share * tokens


def test_frames_that_repeat_tell_nothing() -> None:
    """Three frames of one video and an image: a window of the second is new, all else repeats."""
    images = over((4, 4), (4, 4), (4, 4), (4, 4))
    layout, frame = Layout.over(images, 2), noise(16)
    second = frame.clone()
    second[Layout.over(over((4, 4)), 2).of == 2] += 0.5
    contents = torch.cat([frame, second, second, frame])
    found, _ = contrasts(contents, [False, True, True, False], images, layout)
    by_frame = found.view(4, 4)
    assert by_frame[1].tolist() == [0, 0, pytest.approx(0.5), 0]
    assert by_frame[2].tolist() == [0] * 4
    assert torch.equal(by_frame[3], by_frame[0])
    chosen = choose(contents, [False, True, True, False], images, 2, ">0.1")
    assert chosen.windows == [(4, 4), (1, 4), (0, 4), (4, 4)]
    assert chosen.counts == [16, 7, 4, 16] == chosen.keep.sum(1).tolist()
    shared = choose(contents, [False, True, True, False], images, 2, 0.5)  # of the video's twelve, of the image's four
    assert sum(ran for ran, _ in shared.windows[:3]) == 6
    assert shared.windows[3] == (2, 4)
    assert shared.windows[2][0] == 0 or shared.windows[2][0] + shared.windows[1][0] == 2


def test_images_of_many_sizes_do_not_know_each_other() -> None:
    grids = [(4, 6), (3, 4), (5, 4), (4, 4)]
    contents = [noise(h * w, seed) for seed, (h, w) in enumerate(grids)]
    together = choose(torch.cat(contents), [False] * 4, over(*grids), 2, 0.4)
    for number, (grid, own) in enumerate(zip(grids, contents, strict=True)):
        alone = choose(own, [False], over(grid), 2, 0.4)
        assert together.counts[number] == alone.counts[0]
        assert torch.equal(together.keep[number, : len(own)], alone.keep[0])
        assert not together.keep[number, len(own) :].any()


def test_contents_are_those_of_the_picture(name: str) -> None:
    """A picture with a colour for each visual token, cut up by the processor's own code."""
    high, wide = (each // MERGE for each in GRIDS[0])
    number = torch.arange(high * wide, dtype=torch.uint8).view(high, wide)
    drawn = number.repeat_interleave(MERGE * PATCH, 0).repeat_interleave(MERGE * PATCH, 1)
    picture = torch.stack([drawn + 100 * channel for channel in range(3)]).numpy()
    cut = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2)
    plain = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
    made = cut([picture, picture[:, : MERGE * PATCH]], input_data_format="channels_first", return_tensors="pt", **plain)
    contents, follows = adapt(model_of(name)).contents((made["pixel_values"], made["image_grid_thw"]), {})
    tokens = torch.cat([torch.arange(high * wide), torch.arange(wide)])
    want = tokens.view(-1, 1, 1) + torch.tensor([0, 100, 200]).view(1, 3, 1)
    assert torch.equal(contents, want.expand_as(contents).to(contents.dtype))
    assert follows == [False, False]


@pytest.mark.parametrize("method", ["none", "atp", "random"])
@pytest.mark.parametrize("tiles", [0.5, ">0.01"])
def test_a_run_without_some_windows_equals_the_masked_reference(name: str, method: str, tiles: float | str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs = flattened(name, family.inputs(model))
    plan = Plan("none") if method == "none" else plan_of(model, method)
    plan = replace(plan, options={"merge": False} if method == "atp" else {})  # the reference only hides
    with prune(model, plan=plan, tiles=tiles) as run:
        _, got = said(model, family, inputs, steps=4)
    first = run.trace.last("vision")[0]
    assert first.layer == 0
    gone = torch.cat(
        [alive[:count] & ~keep[:count] for alive, keep, count in zip(first.alive, first.keep, first.started, strict=True)]
    )
    if isinstance(tiles, str):
        assert (inputs["pixel_values"].unflatten(0, (-1, MERGE**2))[gone] == COLOUR).all(), "only what is of one colour left"
    assert sum(first.counts) < 0.9 * sum(first.started)
    with hiding(model, adapt(model), run.trace, inputs["input_ids"] == IMAGE):
        _, want = said(model, family, inputs, steps=4)
    assert (got - want).abs().max() <= 1e-9
    assert (said(model, family, inputs, steps=1)[1] - want[:, :1]).abs().max() > 1e-4, "nothing left"


def test_a_step_at_the_same_place_takes_of_what_is_left(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs = flattened(name, family.inputs(model))
    plan = Plan("random", (Step(Site("vision", 0), 0.4),))
    with prune(model, plan=plan, tiles=0.5) as run:
        _, got = said(model, family, inputs, steps=2)
    (record,) = run.trace.last("vision")
    with prune(model, tiles=0.5) as windows:
        said(model, family, inputs, steps=1)
    with prune(model, plan=Plan("random", (Step(Site("vision", 0), 1.0),)), tiles=0.5) as idle:
        said(model, family, inputs, steps=1)
    assert idle.report().seconds > sum(record.seconds for record in idle.trace.records), "time of windows is told"
    (before,) = windows.trace.last("vision")
    assert torch.equal(record.alive, before.keep)
    assert not (record.keep & ~before.keep).any()
    assert record.counts == [min(round(0.4 * n), there) for n, there in zip(record.started, before.counts, strict=True)]
    with hiding(model, adapt(model), run.trace, inputs["input_ids"] == IMAGE):
        _, want = said(model, family, inputs, steps=2)
    assert (got - want).abs().max() <= 1e-9


def test_videos_equal_the_masked_reference(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    assert family.videos is not None
    inputs = family.videos(model)
    frames, start = inputs["pixel_values_videos"], 0
    for time, high, wide in inputs["video_grid_thw"].tolist():  # a still video: all frames show the first one
        own = frames[start : start + time * high * wide].view(time, high * wide, -1)
        own[1:] = own[:1]
        start += time * high * wide
    with prune(model, plan=plan_of(model, "random"), tiles=">0.01") as run:
        _, got = said(model, family, inputs, steps=3)
    for number, (whole, every) in enumerate(run.report().tiles):
        assert whole == (0 if number % FRAMES else every)
    with hiding(model, adapt(model), run.trace, inputs["input_ids"] == family.video_token_id):
        _, want = said(model, family, inputs, steps=3)
    assert (got - want).abs().max() <= 1e-9


def test_images_and_videos_in_one_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of the tower are one pass, also where windows leave in one of them only: still videos, images of noise."""
    family, model = FAMILIES[name], model_of(name)
    inputs = mixed(model)
    start = 0
    for time, high, wide in inputs["video_grid_thw"].tolist():
        own = inputs["pixel_values_videos"][start : start + time * high * wide].view(time, high * wide, -1)
        own[1:] = own[:1]
        start += time * high * wide
    plan = plan_of(model, "random")
    with prune(model, plan=plan, tiles=">0.01") as run:
        _, got = said(model, family, inputs, steps=3)
    first = run.trace.last("vision")[0]
    assert len(run.report().tiles) == len(first.counts) == len(first.started)
    assert {a < b for a, b in zip(first.counts, first.started, strict=True)} == {False, True}
    monkeypatch.setattr(masked, "Hiding", Several)
    monkeypatch.setattr(Several, "ids", inputs["input_ids"], raising=False)
    with hiding(model, adapt(model), run.trace, inputs["mm_token_type_ids"] > 0):
        _, want = said(model, family, inputs, steps=3)
    assert (got - want).abs().max() <= 1e-9


def test_keeping_all_windows_changes_no_bit(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs = family.inputs(model)
    want = said(model, family, inputs, steps=3)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for tiles in (1.0, ">0"):
            with prune(model, tiles=tiles) as run:
                assert torch.equal(said(model, family, inputs, steps=3)[1], want)
            assert run.dropped == 0
            assert run.report().ratio == 1.0


def test_a_batch_equals_its_singles(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs = flattened(name, family.inputs(model))
    with prune(model, plan=plan_of(model, "uniform"), tiles=0.5):
        together = said(model, family, inputs, steps=3)[1]
    for row in range(3):
        with prune(model, plan=plan_of(model, "uniform"), tiles=0.5):
            alone = said(model, family, family.single(inputs, row), steps=3)[1]
        assert (together[row] - alone[0]).abs().max() <= 1e-8


def test_the_tower_runs_on_fewer_rows_and_says_so(name: str) -> None:
    model, seen = model_of(name), []
    inputs = flattened(name, FAMILIES[name].inputs(model))
    adapter = adapt(model)
    with torch.no_grad(), prune(model, tiles=0.5) as run:
        hook = adapter.vision.layers[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        model(**inputs)
    hook.remove()
    report = run.report()
    assert seen == [MERGE**2 * sum(report.kept["vision"][0])]
    assert seen[0] < 0.75 * len(inputs["pixel_values"])
    assert report.flops.vision < report.flops_unpruned.vision
    assert report.flops.prefill < report.flops_unpruned.prefill
    shown = ", ".join(f"{ran} of {every}" for ran, every in report.tiles)
    assert f"windows that ran whole: {shown}" in str(report)
    assert report.windows
    assert run.dropped > 0
    told = story(run.trace, image=1)
    assert len(told.stages[0].kept) == report.kept["vision"][0][1]


def test_flops_without_some_windows_are_those_of_torch(name: str) -> None:
    """Windows that stay whole attend as before, and are counted as if they thinned: within one per cent."""
    family, model = FAMILIES[name], model_of(name)
    one = family.single(flattened(name, family.inputs(model)), 0)
    invariants.counted_flops_are_true(model, one, replace(plan_of(model, "uniform"), tiles=0.5))


@pytest.mark.parametrize("tiles", [0.25, 0.5, 0.75, ">0.1"])
@pytest.mark.parametrize("budget", [0.5, 0.7, "300 tokens"])
def test_a_budget_is_not_overspent(tiles: float | str, budget: float | str) -> None:
    """An image of 32 x 32 visual tokens, for which plans are solved."""
    family = FAMILIES["qwen2_5_vl"]
    model = model_of("qwen2_5_vl")
    side = NOMINAL * MERGE
    one = family.single(family.inputs(model, (30,), (1,)), 0)
    ids = [16, 17, *[IMAGE] * NOMINAL**2, *range(20, 50)]
    one["input_ids"] = torch.tensor([ids])
    one["attention_mask"] = torch.ones_like(one["input_ids"])
    one["mm_token_type_ids"] = (one["input_ids"] == IMAGE).int()
    one["image_grid_thw"] = torch.tensor([[1, side, side]])
    one["pixel_values"] = torch.randn(side**2, one["pixel_values"].shape[1], dtype=torch.float64)
    work = Workload(images=1, text=32, answer=1)
    with torch.no_grad(), prune(model, budget=budget, method="uniform", tiles=tiles, workload=work) as run:
        model(**one)
    report = run.report()
    if isinstance(budget, str):
        assert report.equivalent_tokens <= 301
        return
    assert report.ratio <= budget
    if not isinstance(tiles, str):
        assert report.ratio > budget - 0.06 or tiles <= budget
        assert run.plan.budget == budget


def test_bfloat16() -> None:
    name = "qwen2_5_vl"
    model = FAMILIES[name].make(dtype=torch.bfloat16)
    inputs = FAMILIES[name].inputs(model)
    with torch.no_grad(), prune(model, tiles=0.5) as run:
        assert model(**inputs).logits.isfinite().all()
    assert run.report().ratio < 1
