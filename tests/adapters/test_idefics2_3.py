"""Idefics2, Idefics3 and SmolVLM: masks of patches, tiles that only fill up, what really reaches the connector, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atp.adapters import adapt
from atp.adapters.base import Images
from atp.engine import prune
from atp.plan import Plan, Site, Step
from conformance.hiding import hiding
from families import FAMILIES
from families.base import IMAGE
from families.shuffled import LATENTS, PATCH, PHOTOS, TOKENS

TILED = ("idefics3", "smolvlm")
ALL = (*TILED, "idefics2")
PLAN = Plan("random", (Step(Site("vision", 1), 0.6), Step(Site("vision", 2), 0.4), Step(Site("language", 1), 0.3)))
HALF = Plan("uniform", (Step(Site("language", 1), 0.5),))


def tower_images(model: Any, inputs: Any) -> Images:
    """The adapter's reading of the tower's call."""
    seen: list[Images] = []
    adapter = adapt(model)
    hook = adapter.tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(adapter.images(args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen[0]


def first_logits(model: Any, inputs: Any) -> Tensor:
    """Of the first generated token, `[B, V]`."""
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    logits: Tensor = out.logits[0]
    return logits


@pytest.mark.parametrize("name", TILED)
def test_patches_of_padding_stay_masked(name: str) -> None:
    """The right third of every other tile is padding: no key in the tower, a part of visual tokens all the same."""
    family = FAMILIES[name]
    model = family.make(layers=3)
    inputs = family.inputs(model)
    inputs["pixel_attention_mask"][:, ::2, :, 16:] = 0
    with prune(model, plan=PLAN) as run:
        got = first_logits(model, inputs)
    with hiding(model, adapt(model), run.trace, inputs["input_ids"] == IMAGE):
        want = first_logits(model, inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    inputs["pixel_attention_mask"][:, ::2, :, 16:] = 1
    with prune(model, plan=PLAN):
        free = first_logits(model, inputs)
    assert (free - got).abs().max() > 1e-3, "the mask of patches changes nothing"


@pytest.mark.parametrize("name", TILED)
def test_black_tiles_are_no_images(name: str) -> None:
    family = FAMILIES[name]
    model = family.make(layers=2)
    inputs = family.inputs(model)
    black = (inputs["pixel_values"] == 0).flatten(2).all(-1)
    assert black.any()
    images = tower_images(model, inputs)
    assert images.counts == (TOKENS,) * int((~black).sum())
    assert sorted(images.where[0].flatten().tolist()) == list(range(4 * TOKENS))


@pytest.mark.parametrize("name", ALL)
def test_only_live_tokens_reach_the_connector(name: str) -> None:
    family = FAMILIES[name]
    model = family.make(layers=3)
    inputs, seen = family.inputs(model), []
    inside = list(model.model.connector.modality_projection.children())[-2 if name == "idefics2" else -1]
    hook = inside.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[:2])))
    with torch.no_grad():
        model(**inputs)
        with prune(model, plan=PLAN) as run:
            model(**inputs)
    hook.remove()
    kept = run.trace.last("vision")[-1].counts
    whole = int(seen[0][1])
    assert seen == [(len(kept), whole), (len(kept), max(kept))]
    assert max(kept) < whole


@pytest.mark.parametrize("name", ALL)
def test_features_that_were_encoded_before_the_block(name: str) -> None:
    """Nobody knows their patches; the language model is pruned as if the tower were not."""
    family = FAMILIES[name]
    model = family.make(layers=3)
    inputs = family.inputs(model)
    text = {key: value for key, value in inputs.items() if not key.startswith("pixel")}
    with torch.no_grad():
        made = model.get_image_features(inputs["pixel_values"], inputs["pixel_attention_mask"], return_dict=True)
        with prune(model, plan=HALF):
            want = model(**inputs).logits
        with prune(model, plan=HALF) as run:
            got = model(**text, mm_encoder_outputs={"image": made}).logits
    assert torch.equal(got, want)
    assert run.dropped > 0


@pytest.mark.parametrize("name", ALL)
def test_every_image_knows_its_prompt(name: str) -> None:
    """The features come prompt by prompt, but visual tokens are told apart by image, or tile."""
    family = FAMILIES[name]
    model = family.make(layers=2)
    inputs = family.inputs(model)
    with prune(model, plan=HALF) as run:
        first_logits(model, inputs)
    counts = (inputs["input_ids"] == IMAGE).sum(1) // (LATENTS if name == "idefics2" else TOKENS)
    assert run.trace.image_rows == torch.arange(3).repeat_interleave(counts).tolist()


def test_a_token_of_idefics2_is_a_patch_that_is_no_padding() -> None:
    model = FAMILIES["idefics2"].make(layers=2)
    inputs = FAMILIES["idefics2"].inputs(model)
    images = tower_images(model, inputs)
    assert images.grids == tuple((height // PATCH, width // PATCH) for height, width in PHOTOS)
    assert images.counts == tuple(height * width for height, width in images.grids)
    wide = max(width for _, width in images.grids)
    for count, (_, width), where in zip(images.counts, images.grids, images.where, strict=True):
        number = torch.arange(count)
        assert torch.equal(where[:count, 0], number // width * wide + number % width)
        assert len(set(where.flatten().tolist())) == len(where), "a place stands twice"


def test_an_idefics2_image_without_a_mask_is_whole() -> None:
    model = FAMILIES["idefics2"].make(layers=2)
    pixels = torch.randn(3, 3, 12, 20, dtype=torch.float64)
    images = adapt(model).images((), {"pixel_values": pixels})
    assert (images.counts, images.grids) == ((15,) * 3, ((3, 5),) * 3)


def test_flops_of_the_resampler_are_those_of_torch() -> None:
    model = FAMILIES["idefics2"].make(layers=2).requires_grad_(False)
    shape, connector = adapt(model).shape, model.model.connector
    context = torch.randn(1, 7, 32, dtype=torch.float64)

    def spent(keys: int) -> int:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            connector(context[:, :keys], attention_mask=torch.ones(1, keys, dtype=torch.bool))
        total: int = counter.get_total_flops()
        return total

    assert spent(7) - spent(3) == 4 * shape.key_flops
    assert spent(7) == 7 * shape.key_flops + shape.query_flops
    assert shape.visual == LATENTS


@pytest.mark.parametrize("name", TILED)
def test_shapes_of_tiles_are_those_of_the_parameters(name: str) -> None:
    model = FAMILIES[name].make(layers=2)
    shape = adapt(model).shape
    bridge: Tensor = model.model.connector.modality_projection.proj.weight
    assert shape.connector == ((bridge.shape[1], bridge.shape[0]),)
    assert (shape.visual, shape.patches) == (TOKENS, 4 * TOKENS)
    layer = model.model.vision_model.encoder.layers[0]
    assert tuple(layer.mlp.fc1.weight.shape) == (shape.vision.intermediate, shape.vision.hidden)
