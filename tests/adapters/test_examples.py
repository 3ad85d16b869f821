"""Prompts made without a processor: every family that has them runs on them, pruned too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import atp
from atp.adapters import adapt
from atp.adapters.architectures import ARCHITECTURES, skeleton
from atp.adapters.examples import MAKERS, example
from atp.errors import BadInput, UnsupportedModel
from families import FAMILIES

RUN = [name for name, family in FAMILIES.items() if family.model_type in MAKERS]


@pytest.mark.parametrize("name", [name for name, fields in ARCHITECTURES.items() if fields["model_type"] in MAKERS])
def test_true_sizes(name: str) -> None:
    """The image id of an architecture that has a maker has a row in the table of embeddings."""
    model: Any = skeleton(name)
    adapter = adapt(model)
    made = example(adapter, batch=2, text=10)
    ids = made["input_ids"]
    assert ids.device.type == "meta" and ids.shape[0] == 2
    assert made["pixel_values"].dtype == model.dtype
    if adapter.shape.cross is None:
        own = adapter.tiles * adapter.shape.visual
        rows = ids.shape[1] - 10 - own
        assert 0 <= rows <= own * 0.05  # newline tokens
        assert model.config.image_token_id < model.get_input_embeddings().num_embeddings or "gemma" in name


@pytest.mark.parametrize("name", RUN)
def test_every_family_answers(name: str) -> None:
    model = FAMILIES[name].make(dtype=torch.float32)
    adapter = adapt(model)
    if getattr(model.config.vision_config, "model_type", "") == "pixtral":
        with pytest.raises(UnsupportedModel, match="only be made by its processor"):
            example(adapter)
        return
    inputs = example(adapter, batch=2, text=10)
    with torch.inference_mode(), atp.prune(model, plan=atp.Plan("random", (atp.Step(atp.Site("vision", 2), 0.5),))) as run:
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert len(out) == 2
    assert run.report().ratio < 1


def test_tiles_are_those_that_the_family_makes() -> None:
    adapter = adapt(skeleton("llava-onevision-0.5b"))
    few, many = (example(adapter, text=10, tiles=tiles) for tiles in (3, 7))
    assert few["pixel_values"].shape[1] == 3 and many["pixel_values"].shape[1] == 7
    assert few["input_ids"].shape[1] == 10 + 27 * 27 + (2 * 27) * (27 + 1)
    with pytest.raises(BadInput, match="use one of these"):
        example(adapter, text=10, tiles=8)
    with pytest.raises(BadInput, match="has one image"):
        example(adapt(skeleton("blip2-opt-2.7b")), tiles=2)
    with pytest.raises(BadInput, match="--text-tokens"):
        example(adapter, text=1)


def test_seed_decides() -> None:
    adapter = adapt(FAMILIES["llava-clip-llama"].make(dtype=torch.float32))
    one, same, other = (example(adapter, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one["pixel_values"], same["pixel_values"]) and torch.equal(one["input_ids"], same["input_ids"])
    assert not torch.equal(one["pixel_values"], other["pixel_values"])
