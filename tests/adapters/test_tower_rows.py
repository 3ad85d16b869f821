"""Rows that score in a tower are those that it attends with: groups, packed images, masks of padding, phases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atp.adapters import adapt
from atp.adapters.base import Images
from atp.engine import prune
from atp.engine.attention import VISUAL_RATERS
from atp.methods.base import METHODS
from atp.plan import Plan, Site, Step
from families import FAMILIES
from test_rows import Probe

NAMES = ("paligemma", "gemma3", "idefics2", "idefics3", "smolvlm", "mistral3", "llava-pixtral-mistral")


def attended(model: Any, inputs: Any, layer: int) -> tuple[Images, Tensor]:
    """What the adapter reads in the unhooked tower's call, and the mean over heads of a layer's attention `[S, T, T]`."""
    adapter, images, weights = adapt(model), [], []
    attention = getattr(adapter.vision.layers[layer], "self_attn", None) or adapter.vision.layers[layer].attention
    hooks = [
        adapter.tower.register_forward_pre_hook(
            lambda module, args, kwargs: images.append(adapter.images(args, kwargs)), with_kwargs=True
        ),
        attention.register_forward_hook(lambda module, args, output: weights.append(output[1].mean(1))),
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return images[0], weights[0]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_tower_are_those_that_it_attends_with(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of the first patch of each token to all patches of each other, before anything has left."""
    monkeypatch.setitem(METHODS._entries, "probe", Probe)
    monkeypatch.setattr(Probe, "name", "probe")
    Probe.seen.clear()
    family = FAMILIES[name]
    model = family.make(attention="eager", dtype=torch.float32, layers=3)
    inputs = family.inputs(model)
    images, weights = attended(model, inputs, layer=1)
    with torch.no_grad(), prune(model, plan=Plan("probe", (Step(Site("vision", 2), 0.5),))):
        model(**inputs)
    rated = Probe.seen[0].rows["visual"]
    few = [image for image, count in enumerate(images.counts) if count <= VISUAL_RATERS]  # all of their tokens rate
    assert few
    for image in few:
        own, places = weights[0 if images.packed else image], images.where[image, : images.counts[image]]
        want = own[places[:, 0]][:, places.flatten()].view(len(places), *places.shape).sum(-1)
        got = rated.values[image][rated.valid[image]][:, : len(places)]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
