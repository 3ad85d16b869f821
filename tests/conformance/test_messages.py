"""Refusals that take some staging: each names what was given and the fix."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import tiny
from atp.adapters import adapt, cache_layer
from atp.budget.calibration import Calibration, fingerprint
from atp.engine import prune
from atp.errors import InvalidPlan, UnsupportedModel
from atp.plan import Plan, Site, Step

PLAN = tiny.plan("atp")


def test_an_offloaded_cache() -> None:
    cache = DynamicCache()
    cache.offloading = True
    with pytest.raises(UnsupportedModel, match=r"offloaded cache .* leave cache_implementation at its default"):
        cache_layer.check_cache(cache)


def test_a_cache_without_layers() -> None:
    with pytest.raises(UnsupportedModel, match="DynamicCache, got dict; pass past_key_values=None"):
        cache_layer.check_cache({})


def test_a_cache_with_too_few_layers() -> None:
    model = tiny.model()
    cache = DynamicCache(config=model.config)
    del cache.layers[1:]
    with pytest.raises(UnsupportedModel, match="has 1 layers, the model at least 3; pass a new cache"):
        cache_layer.replace(cache, 2)


def test_a_lazy_cache_is_filled_up() -> None:
    model = tiny.model()
    with torch.no_grad(), prune(model, plan=PLAN):
        out = model(**tiny.prompts(model), past_key_values=DynamicCache(), use_cache=True)
    assert [layer.get_seq_length() for layer in out.past_key_values.layers] == [27] * 5


def test_a_window_that_already_forgot() -> None:
    model = tiny.make("clip-mistral", sliding=8)
    inputs = tiny.prompts(model, (6,))
    with torch.no_grad(), prune(model, plan=Plan("uniform", (Step(Site("language", 2), 0.5),))):
        with pytest.warns(UserWarning, match="no image"):
            cache = model(input_ids=torch.arange(8, 28)[None], use_cache=True).past_key_values
        with pytest.raises(UnsupportedModel, match="start the prompt with the image, or pass a new cache"):
            model(**inputs | {"attention_mask": torch.ones(1, 44)}, past_key_values=cache)


def test_features_that_are_no_patches() -> None:
    adapter = adapt(tiny.model())
    adapter.shape = dataclasses.replace(adapter.shape, visual=9)
    with pytest.raises(UnsupportedModel, match="gives 9 visual tokens but the tower has 16 patches"):
        adapter.pack(torch.zeros(1, 16, 5), (16,), None)


def test_features_of_other_images() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model, (6,))
    ids = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with torch.no_grad(), prune(model, plan=PLAN):
        features = model.get_image_features(inputs["pixel_values"].repeat(2, 1, 1, 1), return_dict=True)
        features.pooler_output = [features.pooler_output[1].clone()]
        with pytest.raises(UnsupportedModel, match="features of 2 images but the call carries 1"):
            model(**ids, mm_encoder_outputs={"image": features})
        model(**inputs)


def test_pixels_stand_alone() -> None:
    plan = Plan("resize", (Step(Site("pixels", 0), 0.25), Step(Site("language", 2), 0.2)))
    with pytest.raises(InvalidPlan, match="stands alone; remove the plan's other steps"), prune(tiny.model(), plan=plan):
        pass


def calibrated(model: Any, path: Path, **changes: Any) -> Plan:
    plan = dataclasses.replace(tiny.plan("atp", adaptive=True), budget=0.6, options={}, **changes)
    Calibration((plan,), fingerprint(model.named_parameters())).save(path)
    return plan


def test_a_calibration_decides_the_plan(tmp_path: Path) -> None:
    model, path = tiny.make(), tmp_path / "atp_calibration.json"
    plan = calibrated(model, path)
    with prune(model, calibration=path, budget=0.6) as run:
        assert run.plan == plan
        model(**tiny.prompts(model))
    with prune(model, calibration=Calibration.load(path), alpha=0.9) as run:
        assert run.plan.options == {**plan.options, "alpha": 0.9}
        assert run.method.alpha == 0.9  # type: ignore[attr-defined]
    with pytest.raises(InvalidPlan, match="the plan is of method 'atp'"), prune(model, method="fastv", calibration=path):
        pass
    with pytest.raises(InvalidPlan, match="outside this calibration"), prune(model, calibration=path, budget=0.9):
        pass
    other = tiny.make(seed=7)
    with pytest.raises(InvalidPlan, match="other weights"), prune(other, calibration=path):
        pass


def test_the_models_own_calibration_is_used_where_it_fits(tmp_path: Path) -> None:
    model = tiny.make()
    plan = calibrated(model, tmp_path / "atp_calibration.json")
    model.config._name_or_path = str(tmp_path)
    with prune(model, budget=0.6) as run:
        assert run.plan == plan
    for arguments in ({"budget": 0.75}, {"budget": 0.75, "alpha": 0.9}, {"budget": 0.75, "method": "uniform"}):
        with prune(model, **arguments) as run:
            assert not run.plan.adaptive
    other = tiny.make(seed=7)
    other.config._name_or_path = str(tmp_path)
    warned = pytest.warns(UserWarning, match="made for other weights and is not used")
    with warned, prune(other, budget=0.6) as run:
        assert run.plan != plan
    (tmp_path / "atp_calibration.json").write_text(json.dumps({"format": "?"}))
    with pytest.raises(Exception, match="calibration"), prune(model, budget=0.6):
        pass
