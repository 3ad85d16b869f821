"""What cannot be right is refused by name, in every family that has an adapter: no way of calling it gives another answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    QuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

import invariants
from atp.adapters import adapt, cache_layer
from atp.engine import prune
from atp.errors import UnsupportedModel
from conformance.test_families import SERVED, model_of, plan_of

FIX = r"cache_implementation at its default|prefill_chunk_size=None"


@pytest.fixture
def config(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """A model and the configuration of its language model, whose attributes are given back."""
    model = model_of(request.getfixturevalue("name"))
    text = adapt(model).text.config
    before = dict(vars(text))
    yield model, text
    vars(text).clear()
    vars(text).update(before)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("kind", ["flash_attention_2", "flex_attention", "paged|sdpa"])
def test_attention_whose_masks_nobody_cuts(name: str, kind: str, config: tuple[Any, Any]) -> None:
    model, text = config
    text._attn_implementation_internal = kind
    with pytest.raises(UnsupportedModel, match=r"use one of sdpa, eager: model\.set_attn_implementation\('sdpa'\)"):
        adapt(model)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("kind", ["linear_attention", "mamba", "recurrent"])
def test_layers_that_carry_all_tokens_in_one_state(name: str, kind: str, config: tuple[Any, Any]) -> None:
    model, text = config
    vars(text)["layer_types"] = ["full_attention", kind, kind]
    with pytest.raises(UnsupportedModel, match=rf"layer 1 .* of type '{kind}' \(2 such layers\).*; use a model with attention"):
        adapt(model)


@pytest.mark.parametrize("name", SERVED)
def test_layers_that_share_keys(name: str, config: tuple[Any, Any]) -> None:
    model, text = config
    vars(text)["num_kv_shared_layers"] = 2
    with pytest.raises(UnsupportedModel, match=r"the last 2 layers .* look at the keys of earlier layers.*; expected .*gemma3"):
        adapt(model)


def said(model: Any, inputs: Any, **options: Any) -> Tensor:
    out = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )  # fmt: skip
    return torch.stack(out.logits, 1)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("option", [{"cache_implementation": "static"}, {"prefill_chunk_size": 8}], ids=str)
def test_caches_and_chunks_are_refused_or_exact(name: str, option: dict[str, Any]) -> None:
    """And what transformers itself refuses stays refused by it. The run goes on."""
    family, model = SERVED[name], model_of(name)
    inputs = family.single(family.inputs(model), 0)
    if "prefill_chunk_size" in option and not invariants.HOOKS_RUN_ONCE:
        pytest.skip("before transformers 5.23 the unpruned model's chunks lose their image")
    try:
        said(model, inputs, **option)
    except (ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, UnsupportedModel):
            raise
        pytest.skip(f"the unpruned model raises {type(error).__name__}")
    with prune(model, plan=plan_of(model, "atp")) as run:
        want = said(model, inputs)
        refusal = ""
        try:
            got = said(model, inputs, **option)
        except UnsupportedModel as error:
            refusal, got = str(error), said(model, inputs)
    assert not refusal or any(fix in refusal for fix in FIX.split("|"))
    assert run.dropped
    assert torch.equal(got, want)


QUANTISED = type("QuantoLayer", (QuantizedLayer,), {"_quantize": None, "_dequantize": None})
PAGED = type("PagedLayer", (DynamicLayer,), {})


@pytest.mark.parametrize("kind", [StaticLayer, StaticSlidingWindowLayer, QUANTISED, PAGED])
def test_cache_layers_that_hold_no_subset(kind: Any) -> None:
    cache = DynamicCache()
    cache.layers.append(object.__new__(kind))
    with pytest.raises(UnsupportedModel, match=rf"layer 0 of the cache is a {kind.__name__}, which cannot store .*{FIX}"):
        cache_layer.check_cache(cache)
