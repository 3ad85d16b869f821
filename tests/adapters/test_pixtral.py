"""Pixtral's tower: images of several sizes in one sequence, squares of patches, sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch

from atp.adapters import adapt
from atp.adapters.pixtral import packed_images
from atp.engine import prune
from atp.errors import UnsupportedModel
from atp.plan import Plan, Site, Step
from families import FAMILIES

NAMES = ("mistral3", "llava-pixtral-mistral")
PLAN = Plan("random", (Step(Site("vision", 1), 0.6), Step(Site("language", 1), 0.3)))


def test_places_of_packed_images() -> None:
    images = packed_images([(2, 4), (4, 2), (2, 2)], 2, torch.device("cpu"))
    assert images.where[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert images.where[1].tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert images.where[2, 0].tolist() == [16, 17, 18, 19]
    assert (images.counts, images.grids) == ((2, 2, 1), ((1, 2), (2, 1), (1, 1)))
    assert images.packed
    assert images.others.shape == (1, 20)


def test_an_image_that_leaves_patches_over_is_refused() -> None:
    family = FAMILIES["mistral3"]
    model = family.make(layers=2)
    inputs = family.inputs(model, (4,), (1,))
    inputs["image_sizes"] = inputs["image_sizes"] - torch.tensor([4, 0])
    told = pytest.raises(UnsupportedModel, match="7 x 12 patches does not divide into squares of 2 x 2")
    with torch.no_grad(), told, prune(model, plan=PLAN):
        model(**inputs)


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_several_images_are_those_of_each_alone(name: str) -> None:
    family = FAMILIES[name]
    model = family.make(layers=3)
    inputs = family.inputs(model)
    with torch.no_grad():
        with prune(model, plan=PLAN) as run:
            model(**inputs)
        parts = []
        for row, count in enumerate(inputs.images):
            with prune(model, plan=PLAN) as one:
                own = family.single(inputs, row)
                sizes = own["image_sizes"].tolist()
                assert len(sizes) == count
                model(**own)
            parts.append(one.report())
    for name in ("vision", "connector", "prefill"):
        assert getattr(run.report().flops, name) == pytest.approx(sum(getattr(part.flops, name) for part in parts))
        whole = sum(getattr(part.flops_unpruned, name) for part in parts)
        assert getattr(run.report().flops_unpruned, name) == pytest.approx(whole)


def test_shapes_are_those_of_the_parameters() -> None:
    model = FAMILIES["mistral3"].make(layers=2)
    shape, bridge = adapt(model).shape, model.model.multi_modal_projector
    matrices = (bridge.patch_merger.merging_layer, bridge.linear_1, bridge.linear_2)
    assert shape.connector == tuple((one.in_features, one.out_features) for one in matrices)
    assert (shape.patches, shape.visual, shape.group) == (256, 64, 4)
    layer = model.model.vision_tower.transformer.layers[0]
    assert tuple(layer.feed_forward.gate_proj.weight.shape) == (shape.vision.intermediate, shape.vision.hidden)
    assert sum(one.dim() == 2 for one in layer.feed_forward.parameters()) == shape.vision.mlp_matrices
    assert model.model.vision_tower.patch_conv.weight[0].numel() == shape.patch_inputs


def test_only_live_patches_pass_the_linear_layers_of_llava() -> None:
    family = FAMILIES["llava-pixtral-mistral"]
    model = family.make(layers=2)
    inputs, seen = family.inputs(model), []
    hook = model.model.multi_modal_projector.linear_1.register_forward_hook(
        lambda module, args, output: seen.append(output.shape[1])
    )
    with torch.no_grad():
        model(**inputs)
        with prune(model, plan=PLAN) as run:
            model(**inputs)
    hook.remove()
    record = run.trace.last("vision")[-1]
    assert seen == [sum(record.started), sum(record.counts)]
    assert sum(record.counts) < sum(record.started)


def test_a_llava_that_cuts_the_first_patch_of_pixtral_is_refused() -> None:
    model = FAMILIES["llava-pixtral-mistral"].make(layers=2)
    model.config.vision_feature_select_strategy = "default"
    with pytest.raises(UnsupportedModel, match=r"is 'default', which leaves out the first patch .* = 'full'"):
        adapt(model)


@pytest.mark.parametrize("name", ["mistral3", "mistral3-ministral3"])
def test_positions_reach_the_layers_that_read_them(name: str) -> None:
    """Of the rows that run, as the model gave them; other layers get none: gaps in them say that sequences are packed."""
    family = FAMILIES[name]
    model = family.make(layers=3)
    inputs, seen = family.inputs(model), []
    hook = model.model.language_model.layers[2].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with prune(model, plan=Plan("uniform", (Step(Site("language", 1), 0.5),))) as run:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    hook.remove()
    if name == "mistral3":
        assert seen == [None]
        return
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for row, kept in enumerate(run.trace.last("language")[-1].kept):
        stays = inputs["attention_mask"][row].bool() & (inputs["input_ids"][row] != family.image_token_id)
        visual = (inputs["input_ids"][row] == family.image_token_id).nonzero().flatten()
        stays[visual[kept]] = True
        assert seen[0][row][-int(stays.sum()) :].tolist() == positions[row][stays].tolist()
