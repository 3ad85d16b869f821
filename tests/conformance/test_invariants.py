"""The invariants over every registered method x tiny models with and without class token and grouped queries."""

from __future__ import annotations

import pytest
import torch

import invariants
import tiny
from atp.methods import METHODS

METHOD_NAMES = [name for name in METHODS.names() if not METHODS.get(name).trained]
PRUNING = [name for name in METHOD_NAMES if name != "none"]
HIDING = [name for name in PRUNING if name != "resize" and not METHODS.get(name).fuses]  # merged states: test_fusing.py
IMAGES = (1, 2, 1)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("method", HIDING)
@pytest.mark.parametrize(("adaptive", "side"), [(False, "left"), (False, "right"), (True, "left"), (True, "right")])
def test_pruned_equals_the_masked_reference(kind: str, method: str, adaptive: bool, side: str) -> None:
    model = tiny.model(kind)
    run = invariants.equals_reference(model, tiny.prompts(model, images=IMAGES, side=side), tiny.plan(method, adaptive))
    assert run.dropped > 0


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_keep_all_is_bit_identical(kind: str, method: str) -> None:
    model = tiny.model(kind)
    plan = tiny.plan(method, keep=1.0)
    batch = tiny.prompts(model, images=IMAGES)
    invariants.keep_all_is_identical(model, batch, plan)
    invariants.keep_all_is_identical(model, tiny.single(batch, 1, IMAGES), plan)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("method", PRUNING)
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_batch_equals_its_singles(kind: str, method: str, adaptive: bool) -> None:
    if method == "resize" and adaptive:
        pytest.skip("a smaller image has one size")
    model = tiny.model(kind)
    invariants.batch_equals_singles(model, tiny.prompts(model, images=IMAGES), tiny.plan(method, adaptive), IMAGES)


@pytest.mark.parametrize("method", PRUNING)
def test_permuting_the_batch_permutes_what_is_kept(method: str) -> None:
    model = tiny.model()
    inputs = tiny.prompts(model)
    order = torch.tensor([2, 0, 1])
    kept = []
    for batch in (inputs, {name: value[order] for name, value in inputs.items()}):
        with invariants.prune(model, plan=tiny.plan(method)) as run:
            model(**batch)
        kept.append([record.kept for record in run.trace.records])
    for before, after in zip(*kept, strict=True):
        assert [row.tolist() for row in after] == [before[i].tolist() for i in order]


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("method", PRUNING)
def test_the_cache_keeps_its_lengths(kind: str, method: str) -> None:
    model = tiny.model(kind)
    invariants.cache_keeps_its_lengths(model, tiny.prompts(model, images=IMAGES), tiny.plan(method))


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("method", PRUNING)
def test_counted_flops_are_those_of_torch(kind: str, method: str) -> None:
    model = tiny.model(kind)
    invariants.counted_flops_are_true(model, tiny.prompts(model, (12,)), tiny.plan(method))


@pytest.mark.parametrize("method", ["atp", "uniform"])
def test_counted_flops_know_a_pooling_head(method: str) -> None:
    model = tiny.model("siglip-qwen2", head=True)
    invariants.counted_flops_are_true(model, tiny.prompts(model, (12,)), tiny.plan(method))


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(method: str, fail: bool) -> None:
    model = tiny.model()
    keep = 0.5 if method == "none" else None
    invariants.leaves_no_trace(model, tiny.prompts(model), tiny.plan(method, keep=keep), fail)
