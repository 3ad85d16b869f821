"""A smaller image in families whose connector looks at patches: what the model itself says of it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torch.nn import functional

from atp.adapters import adapt
from atp.engine import prune
from atp.plan import Plan, Site, Step
from conformance.test_families import model_of, said
from families import FAMILIES

NAMES = [
    name for name in FAMILIES if name.startswith(("blip", "instructblip", "idefics")) and name not in ("idefics2", "idefics3")
]


def smaller(pixels: Tensor, side: int) -> Tensor:
    """Half as wide and high, antialiased."""
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    made = functional.interpolate(flat, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return made.reshape(*pixels.shape[:-2], side, side)


@pytest.mark.parametrize("name", NAMES)
def test_a_resized_run_says_what_the_model_says_of_the_smaller_image(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs: Any = family.inputs(model)
    adapter = adapt(model)
    side, patches = inputs["pixel_values"].shape[-1] // 2, adapter.shape.patches
    with prune(model, plan=Plan("resize", (Step(Site("pixels", 0), 0.25),))) as run:
        got = said(model, family, inputs, steps=3)[1]
    small = {**inputs, "pixel_values": smaller(inputs["pixel_values"], side)}
    want = said(model, family, small, steps=3, interpolate_pos_encoding=True)[1]
    assert (got - want).abs().max() <= 1e-9
    assert (got - said(model, family, inputs, steps=3)[1]).abs().max() > 1e-4
    report = run.report()
    assert report.kept["pixels"][0] == [patches // 4] * report.images
    assert report.flops.vision < 0.4 * report.flops_unpruned.vision
    assert report.flops.connector < report.flops_unpruned.connector


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_for_smaller_images_is_met(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs: Any = family.inputs(model, (6,), (1,))
    with prune(model, budget=0.95, method="resize") as run:
        said(model, family, inputs, steps=3)
    assert 0.5 < run.report().ratio <= 0.95
