"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL beyond what every family must do: videos, both kinds in one prompt, windows, positions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import invariants
from adapters.mixed import ROWS, Several, alone, mixed
from atp.adapters import adapt
from atp.budget.cost import Workload, count
from atp.engine import prune
from atp.methods.base import METHODS
from atp.plan import Plan, Site, Step
from conformance import hiding as masked
from conformance.test_families import model_of, plan_of, pruned, said
from families import FAMILIES
from families.base import IMAGE
from families.packed import FRAMES
from test_rows import Probe

NAMES = [name for name in FAMILIES if name.startswith("qwen")]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("method", "adaptive"), [("random", False), ("atp", True)])
def test_pruned_videos_equal_the_masked_reference(name: str, method: str, adaptive: bool) -> None:
    family, model = FAMILIES[name], model_of(name)
    assert family.videos is not None
    inputs = family.videos(model)
    _, got, run = pruned(model, family, inputs, plan_of(model, method, adaptive), steps=4)
    assert len(run.trace.last("vision")[0].counts) == 3 * FRAMES, "a frame is an image"
    visual = inputs["input_ids"] == family.video_token_id
    with masked.hiding(model, adapt(model), run.trace, visual):
        _, want = said(model, family, inputs, steps=4)
    assert (got - want).abs().max() <= 1e-9
    assert (said(model, family, inputs, steps=1)[1] - want[:, :1]).abs().max() > 1e-4


@pytest.mark.parametrize(("method", "adaptive"), [("random", False), ("atp", True)])
def test_images_and_videos_in_one_prompt(name: str, method: str, adaptive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs = mixed(model)
    plan = plan_of(model, method, adaptive)
    _, got, run = pruned(model, family, inputs, plan, steps=4)
    sites = run.trace.last("vision")
    assert [record.layer for record in sites] == [1, 3], "both calls of the tower are one pass: images, then frames"
    for record in sites:
        assert [len(one) for one in record.kept] == record.counts == run.report().kept["vision"][record.layer]
        assert record.started == [24, 16, 24] + [12] * 3 + [20] * 3 + [12] * 3
        alive = record.alive.sum(1).tolist()
        assert record.scores is not None
        assert [len(one) for one in record.scores] == alive
    monkeypatch.setattr(masked, "Hiding", Several)
    monkeypatch.setattr(Several, "ids", inputs["input_ids"], raising=False)
    with masked.hiding(model, adapt(model), run.trace, inputs["mm_token_type_ids"] > 0):
        _, want = said(model, family, inputs, steps=4)
    assert (got - want).abs().max() <= 1e-9
    with torch.no_grad(), prune(model, plan=plan):
        assert (model(**inputs).logits[:, -1] - want[:, 0]).abs().max() <= 1e-6
    kept = run.trace.last("language")
    for row in range(len(ROWS)):
        _, one, single = pruned(model, family, alone(inputs, row), plan, steps=4)
        assert (got[row] - one[0]).abs().max() <= 1e-8
        assert [record.kept[row].tolist() for record in kept] == [r.kept[0].tolist() for r in single.trace.last("language")]


def test_beams_of_images_and_videos_keep_what_one_beam_keeps(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs, plan = mixed(model), plan_of(model, "atp", True)
    one = pruned(model, family, inputs, plan, steps=1)[2].trace
    two = pruned(model, family, inputs, plan, steps=3, num_beams=2)[2].trace
    for record, wide in zip(one.last("language"), two.last("language"), strict=True):
        for row in range(len(ROWS)):
            assert wide.kept[2 * row].tolist() == wide.kept[2 * row + 1].tolist() == record.kept[row].tolist()
    assert two.image_rows == [2 * row for row in one.image_rows]


def test_keeping_all_of_images_and_videos_changes_no_bit(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs = mixed(model)
    want = said(model, family, inputs, steps=3)
    state = model.model.rope_deltas.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with prune(model, plan=plan_of(model, "atp", keep=1.0), record_all_scores=True):
            got = said(model, family, inputs, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with prune(model, plan=plan_of(model, "atp")):
        said(model, family, inputs, steps=3)
    assert torch.equal(model.model.rope_deltas, state)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_flops_of_images_and_videos_are_those_of_torch(name: str, row: int) -> None:
    model = model_of(name)
    invariants.counted_flops_are_true(model, alone(mixed(model), row), plan_of(model, "uniform"))


def test_positions_are_those_of_the_model(name: str) -> None:
    """Rows, columns and images of visual tokens against the model's own positions in three directions."""
    model = model_of(name)
    inputs = mixed(model)
    where, _ = model.model.get_rope_index(**{key: value for key, value in inputs.items() if "pixel" not in key})
    seen: list[Any] = []
    with warnings.catch_warnings(), torch.no_grad(), prune(model, plan=Plan("none", ())) as run:
        warnings.simplefilter("ignore", UserWarning)
        look = model.model.language_model.layers[0].register_forward_pre_hook(
            lambda *_: seen.append(run.running(run.adapter.language))
        )
        model(**inputs)
        look.remove()
    census = seen[0].census
    frames = {"image": 1, "video": FRAMES}
    for row, kinds in enumerate(ROWS):
        number = census.started[row]
        places = census.where[row, :number, 0]
        assert inputs["mm_token_type_ids"][row, places].all()
        image, position = census.image[row, :number], census.position[row, :number]
        assert image.unique().tolist() == list(range(sum(frames[kind] for kind in kinds)))
        for each in image.unique():
            own = where[1:, row, places[image == each]].T  # height and width
            assert torch.equal(own - own[0], position[image == each])
    assert run.trace.image_rows == [0, 1, 1, 0, 0, 0, 1, 1, 1, 2, 2, 2], "images first, then the frames of the videos"


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[Probe]:
    monkeypatch.setitem(METHODS._entries, "probe", Probe)
    monkeypatch.setattr(Probe, "name", "probe")
    Probe.seen.clear()
    return Probe


def test_rows_of_the_language_model_are_those_that_it_attends_with(name: str, probe: type[Probe]) -> None:
    """Under three-directional phases, norms of heads and grouped keys, against the model's own eager attention."""
    model = FAMILIES[name].make(attention="eager", dtype=torch.float32, layers=4)
    inputs = mixed(model)
    with torch.no_grad():
        want: Tensor = model(**inputs, output_attentions=True).attentions[1].mean(1)
        with prune(model, plan=Plan("probe", (Step(Site("language", 2), 0.5),))):
            model(**inputs)
    found = probe.seen[0].rows
    for row, kinds in enumerate(inputs["mm_token_type_ids"]):
        visual = kinds.nonzero().flatten()
        for kind, at in (("last", [-1]), ("question", list(range(int(visual[-1]) + 2, len(kinds))))):  # behind the end mark
            got = found[kind].values[row][found[kind].valid[row]][:, : len(visual)]
            torch.testing.assert_close(got, want[row, at][:, visual], rtol=1e-4, atol=1e-6)


def test_rows_of_the_tower_are_those_that_it_attends_with(name: str, probe: type[Probe]) -> None:
    """At a block without windows: what the first patch of a token pays to all patches of each."""
    model = FAMILIES[name].make(dtype=torch.float32)
    inputs, adapter, paid = FAMILIES[name].inputs(model), adapt(model), []

    def spy(module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, **_: Any) -> Any:
        weights = (query @ key.mT * scaling).softmax(-1)
        paid.append(weights[0].mean(0))
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("qwen_spy", spy)
    seen: list[Any] = []
    tower = model.model.visual
    hooks = [
        tower.register_forward_pre_hook(lambda m, a, k: seen.append(adapter.images(a, k)), with_kwargs=True),
        tower.blocks[2].register_forward_pre_hook(lambda *_: paid.clear()),
        tower.blocks[2].register_forward_hook(lambda *_: seen.append(list(paid))),
    ]
    tower.config._attn_implementation = "qwen_spy"
    with torch.no_grad():
        model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        tower.config._attn_implementation = "sdpa"
        for hook in hooks:
            hook.remove()
        with prune(model, plan=Plan("probe", (Step(Site("vision", 3), 0.5),))):
            model(**inputs)
    images, blocks = seen
    got, start = probe.seen[0].rows["visual"], 0
    for image, (tokens, weights) in enumerate(zip(images.counts, blocks, strict=True)):
        places = images.where[image, :tokens] - start
        start += len(weights)
        want = weights[places[:, 0]][:, places].sum(-1)
        torch.testing.assert_close(got.values[image, :tokens, :tokens], want, rtol=1e-4, atol=1e-6)


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Sequences packed into the call of each block of the tower."""
    found: list[int] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        found.append(len(kwargs["cu_seqlens"]) - 1)

    hooks = [block.register_forward_pre_hook(look, with_kwargs=True) for block in model.model.visual.blocks]
    yield found
    for hook in hooks:
        hook.remove()


def test_windows_that_empty_vanish() -> None:
    """One token of each of four images is left: 4 of 20 windows."""
    family, model = FAMILIES["qwen2_5_vl"], model_of("qwen2_5_vl")
    inputs = family.inputs(model)
    plan = Plan("random", (Step(Site("vision", 1), 0.01), Step(Site("language", 2), 0.5)))
    with counting(model) as full, torch.no_grad():
        model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    with prune(model, plan=plan) as run, counting(model) as packed:  # these hooks see what ours leave
        _, got = said(model, family, inputs, steps=2)
    assert full == [20, 20, 4, 20, 4]
    assert packed == [20, 4, 4, 4, 4]
    with masked.hiding(model, adapt(model), run.trace, inputs["input_ids"] == IMAGE):
        _, want = said(model, family, inputs, steps=2)
    assert (got - want).abs().max() <= 1e-9


@pytest.mark.parametrize(("grid", "error"), [((64, 64), 0.0), ((34, 46), 1e-3)])
def test_flops_of_a_tower_of_true_size(grid: tuple[int, int], error: float) -> None:
    """Qwen2.5-VL-7B's tower, without weights. Windows that do not fill the image are counted as if they were whole."""
    tower = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584, "num_heads": 16,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    text = {"hidden_size": 3584, "num_hidden_layers": 1, "num_attention_heads": 28, "num_key_value_heads": 4}
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=tower, text_config=text))
        patches = grid[0] * grid[1]
        pixels, places = torch.empty(patches, 3 * 2 * 14**2), torch.zeros(patches, 2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.model.visual(pixels, grid_thw=torch.tensor([[1, *grid]]), position_ids=places)
    shape = adapt(model).shape
    counted = count(shape.of_size(patches), Workload())
    assert abs((counted.vision + counted.connector) / counter.get_total_flops() - 1) <= error
    if patches == shape.patches:
        assert counter.get_total_flops() == 5_645_449_297_920
