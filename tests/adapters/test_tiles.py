"""Families that read an image tile by tile: newlines, shrunk pictures, sizes, and what is refused."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config

import invariants
import tiny
from atp.adapters import adapt
from atp.engine import prune
from atp.errors import InvalidPlan, UnsupportedModel
from atp.plan import Plan, Site, Step
from conformance.hiding import hiding
from conformance.test_families import plan_of, pruned, said
from families import FAMILIES
from families.base import IMAGE, TEXT, VIDEO, WORDS

ANY = ["llava_next", "llava_onevision"]
NAMES = [*ANY, "internvl", "vipllava"]
PLAN = Plan("random", (Step(Site("vision", 2), 0.6), Step(Site("language", 1), 0.5), Step(Site("language", 3), 0.3)))


@cache
def model_of(name: str) -> Any:
    """Built once, read only."""
    return FAMILIES[name].make(layers=4)


def encoded(model: Any, inputs: Any) -> Tensor:
    """The visual features of all prompts, in a row."""
    known = ("pixel_values", "image_sizes", "batch_num_images")
    made = model.get_image_features(**{name: inputs[name] for name in known if name in inputs}, return_dict=True)
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in made.pooler_output])


def layout_of(model: Any, inputs: Any) -> Any:
    """What a run says about the layout of the tiles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.no_grad(), prune(model, plan=Plan("none")) as run:
            model(**inputs)
    return run.trace.layout


@pytest.mark.parametrize("name", ANY)
def test_newlines_stand_for_no_patch(name: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model)
    layout = layout_of(model, inputs)
    packed = torch.cat(adapt(model).pack(torch.ones(sum(layout.tiles), 16, 5), (16,) * sum(layout.tiles), layout))
    with torch.no_grad():
        newlines = (encoded(model, inputs) == model.model.image_newline).all(-1)
    assert 0 < newlines.sum() < len(newlines)
    assert torch.equal(packed[:, 0].isnan(), newlines)


def test_a_token_of_a_shrunk_picture_is_the_mean_of_its_live_patches() -> None:
    """The first picture: 2 x 2 tiles of 4 x 4 patches, without its first and last row, 6 x 8, shrunk to 4 x 6."""
    model = model_of("llava_onevision")
    inputs = FAMILIES["llava_onevision"].inputs(model, (4,), (1,))
    seen: list[Tensor] = []
    with torch.no_grad(), prune(model, plan=Plan("random", (Step(Site("vision", 1), 0.6),))) as run:
        hook = model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: seen.append(output))
        made = encoded(model, inputs)
        model.generate(**inputs, max_new_tokens=1)
        hook.remove()

    def shrunk(tiles: Tensor) -> Tensor:
        picture = tiles.view(2, 2, 4, 4, -1).permute(4, 0, 2, 1, 3).reshape(1, -1, 8, 8)[:, :, 1:-1]
        return torch.nn.functional.interpolate(picture, (4, 6), mode="bilinear")[0].permute(1, 2, 0)

    live = (seen[0][1:].abs().sum(-1) > 0).double()
    share = shrunk(live)
    assert 0 < ((share > 0.01) & (share < 0.99)).sum() < share.numel()
    half = share[..., 0] > 0.4999
    got = made[16:].view(4, 7, -1)
    assert torch.allclose(got[:, :6][half], (shrunk(seen[0][1:]) / share)[half], rtol=0, atol=1e-12)
    assert torch.equal(got[:, 6], model.model.image_newline.expand(4, -1))
    base = int((seen[0][0].abs().sum(-1) > 0).sum())
    arrived = torch.cat(adapt(model).pack(torch.cat([live.new_ones(1, 16), live]).unsqueeze(-1), (), run.trace.layout))
    assert int((arrived[16:].nan_to_num(1.0) > 0.4999).sum()) == int(half.sum()) + 4
    assert run.report().equivalent_tokens == base + int(half.sum()) + 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["random", "uniform", "atp", "fastv"])
def test_beams_and_a_second_turn(name: str, method: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].single(FAMILIES[name].inputs(model), 1)
    steps = [step for step in PLAN.steps if method != "fastv" or step.site.stack == "language"]
    plan = Plan(method, tuple(steps), tiny.unmerged(method))
    with torch.no_grad(), prune(model, plan=plan) as run:
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=[IMAGE], return_dict_in_generate=True)
        more = torch.cat([first.sequences, torch.full((1, 4), WORDS + 3)], 1)
        second = model.generate(
            input_ids=more, past_key_values=first.past_key_values, max_new_tokens=2, do_sample=False, suppress_tokens=[IMAGE]
        )
        beams = model.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False, suppress_tokens=[IMAGE])
    length, visual = inputs["input_ids"].shape[1], int((inputs["input_ids"] == IMAGE).sum())
    assert second.shape[1] == length + 3 + 4 + 2
    assert beams.shape == (1, length + 3)
    assert run.trace.kept("language")[3] == [round(0.3 * visual)] * 2
    assert first.past_key_values.get_seq_length() == length + 3 + 4 + 1
    assert first.past_key_values.layers[3].keys.shape[-2] == length - visual + round(0.3 * visual) + 3 + 4 + 1


@pytest.mark.parametrize(("name", "method", "images"), [("llava_next", "atp", 1), ("internvl", "uniform", 4)])
def test_a_budget_is_meant_for_a_tiled_image(name: str, method: str, images: int) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, (30,), (images,))
    with torch.no_grad(), prune(model, budget=0.6, method=method) as run:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert run.report().ratio == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("name", ["llava_next", "vipllava"])
def test_a_smaller_image(name: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model)
    with torch.no_grad(), prune(model, plan=Plan("resize", (Step(Site("pixels", 0), 0.25),))) as run:
        model(**inputs)
    whole = int((inputs["input_ids"][0] == IMAGE).sum())
    report = run.report()
    assert report.equivalent_tokens < 0.5 * whole
    assert report.flops.vision < 0.3 * report.flops_unpruned.vision


@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
def test_a_smaller_image_is_refused(name: str) -> None:
    plan = Plan("resize", (Step(Site("pixels", 0), 0.25),))
    said = rf"a {name} model does not take smaller images .*; use method='uniform'"
    with pytest.raises(InvalidPlan, match=said), prune(model_of(name), plan=plan):
        pass


def test_internvl_with_qwen3() -> None:
    model = FAMILIES["internvl"].make(layers=3)
    config = model.config
    config.text_config = Qwen3Config(num_hidden_layers=3, num_key_value_heads=2, head_dim=8, **TEXT)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = type(model)(config).double().eval()
    inputs = FAMILIES["internvl"].inputs(model)
    with torch.no_grad():
        want = model(**inputs).logits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with prune(
                model, plan=Plan("atp", (Step(Site("vision", 1), 1.0), Step(Site("language", 1), 1.0))), record_all_scores=True
            ):
                assert torch.equal(model(**inputs).logits, want)
        with prune(model, plan=Plan("atp", (Step(Site("language", 1), 0.5),))) as run:
            assert (model(**inputs).logits - want).abs().max() > 1e-6
    assert run.dropped > 0


@pytest.mark.parametrize(("method", "adaptive"), [("random", False), ("atp", True)])
def test_pruned_videos_equal_the_masked_reference(method: str, adaptive: bool) -> None:
    family, model = FAMILIES["llava_onevision"], model_of("llava_onevision")
    assert family.videos is not None
    inputs = family.videos(model)
    _, got, run = pruned(model, family, inputs, plan_of(model, method, adaptive), steps=4)
    assert run.dropped > 0
    with hiding(model, adapt(model), run.trace, inputs["input_ids"] == VIDEO):
        _, want = said(model, family, inputs, steps=4)
    assert (got - want).abs().max() <= 1e-9
    assert (said(model, family, inputs, steps=1)[1] - want[:, :1]).abs().max() > 1e-4, "pruning changed nothing"


def test_videos_keep_the_invariants() -> None:
    family, model = FAMILIES["llava_onevision"], model_of("llava_onevision")
    assert family.videos is not None
    batch = family.videos(model)
    one = family.single(batch, 0)
    invariants.counted_flops_are_true(model, one, plan_of(model, "atp"))
    invariants.leaves_no_trace(model, one, plan_of(model, "atp"))
    want = said(model, family, batch, steps=3)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert torch.equal(pruned(model, family, batch, plan_of(model, "atp", keep=1.0), steps=3)[1], want)
    together = pruned(model, family, batch, plan_of(model, "atp"), steps=3)[1]
    for row in range(3):
        alone = pruned(model, family, family.single(batch, row), plan_of(model, "atp"), steps=3)[1]
        assert (together[row] - alone[0]).abs().max() <= 1e-8
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        model.generate(**one, max_new_tokens=2, num_beams=2, do_sample=False)
    assert run.trace.kept("language")[3] == [round(0.3 * int((one["input_ids"] == VIDEO).sum()))] * 2


def test_images_and_videos_in_one_prompt() -> None:
    """Both keep what is asked; the forward with pixels and generate, which encodes first, agree."""
    family, model = FAMILIES["llava_onevision"], model_of("llava_onevision")
    assert family.videos is not None
    image, video = family.inputs(model, (3,), (1,)), family.videos(model, (4,), (1,))
    inputs = {**image, **video, "input_ids": torch.cat([image["input_ids"], video["input_ids"]], 1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    visual = int((inputs["input_ids"] == IMAGE).sum() + (inputs["input_ids"] == VIDEO).sum())
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        logits = model(**inputs).logits[:, -1]
        kept = run.trace.kept("language")
        out = model.generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert torch.allclose(out.logits[0], logits.to(out.logits[0].dtype), rtol=0, atol=1e-6)
    assert kept == run.trace.kept("language")
    assert kept[3] == [round(0.3 * visual)]


def test_tiles_laid_out_by_others_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="not laid out by the model's own pack_image_features inside the block"):
        adapt(model_of("llava_next")).pack(torch.ones(5, 16, 5), (16,) * 5, None)


def test_a_method_that_someone_else_replaced_stays_replaced() -> None:
    model = FAMILIES["llava_next"].make(layers=3)
    mine, said = model.model.pack_image_features, []

    def replaced(*args: Any, **kwargs: Any) -> Any:
        said.append(len(args[0]))
        return mine(*args, **kwargs)

    model.model.pack_image_features = replaced
    with torch.no_grad(), prune(model, plan=Plan("random", PLAN.steps[:2])) as run:
        model(**FAMILIES["llava_next"].inputs(model))
    assert run.dropped > 0
    assert said == [4]
    assert model.model.pack_image_features is replaced


@pytest.mark.parametrize("name", NAMES)
def test_beams_of_a_batch_with_a_prompt_without_image(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs = family.inputs(model, (6, 9, 4), (1, 0, 2))
    options = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
    with torch.no_grad(), prune(model, plan=plan_of(model, "atp")) as run:
        together = model.generate(**inputs, **options)
    assert run.trace.kept("language")[2][2] == 0
    for row in (0, 2):
        with torch.no_grad(), prune(model, plan=plan_of(model, "atp")):
            alone = model.generate(**family.single(inputs, row), **options)
        assert torch.equal(together[row, -3:], alone[0, -3:])
