"""The invariants over every family that has an adapter, on tiny models of the true classes. No list to forget."""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import invariants
import tiny
from atp.adapters import ADAPTERS, adapt
from atp.engine import Run, prune
from atp.errors import UnsupportedModel
from atp.plan import Plan, Site, Step
from conformance.hiding import hiding
from families import FAMILIES, Family

SERVED = {name: family for name, family in FAMILIES.items() if family.model_type in ADAPTERS}
SCATTERED = [name for name, family in SERVED.items() if family.image_token_id is not None and not family.seq2seq]
STEPS = 10


@cache
def model_of(name: str) -> Any:
    """Built once, read only. What the adapter refuses by name is skipped with its words."""
    model = SERVED[name].make(dtype=torch.float64)
    try:
        adapt(model)
    except UnsupportedModel as refusal:
        pytest.skip(str(refusal))
    return model


def plan_of(model: Any, method: str, adaptive: bool = False, keep: float | None = None) -> Plan:
    """Two sites in every stack that the model has."""
    adapter, steps = adapt(model), []
    for view in adapter.views:
        layers = getattr(adapter.shape, view.name).layers
        first = next(layer for layer in range(1, layers) if view.before(layer) is not None)
        for layer, share, bar in ((first, 0.7, 0.7), (layers - 2, 0.4, 1.0)):
            own = share if view.name == "vision" else share / 2
            steps.append(Step(Site(view.name, layer), own if keep is None else keep, bar if adaptive else None))
    return Plan(method, tuple(steps), tiny.unmerged(method))


@pytest.mark.parametrize("name", SERVED)
def test_plans_count_the_connector_as_the_engine_runs_it(name: str) -> None:
    """Otherwise budgets would be overspent: some connectors get all patches, dead ones too."""
    adapter = adapt(model_of(name))
    assert adapter.shape.connects == adapter.connects


def said(model: Any, family: Family, inputs: Any, steps: int = STEPS, **options: Any) -> tuple[Tensor, Tensor]:
    """Greedy tokens and raw logits `[B, steps, V]`."""
    special = [one for one in (family.image_token_id, family.video_token_id) if one is not None]
    out = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True,
        suppress_tokens=special or None, **options,
    )  # fmt: skip
    return out.sequences[:, -steps:], torch.stack(out.logits, 1)


def pruned(model: Any, family: Family, inputs: Any, plan: Plan, **options: Any) -> tuple[Tensor, Tensor, Run]:
    with prune(model, plan=plan) as run:
        tokens, logits = said(model, family, inputs, **options)
    return tokens, logits, run


@pytest.mark.parametrize("name", SCATTERED)
@pytest.mark.parametrize(
    ("method", "adaptive", "side"), [("random", False, "left"), ("atp", True, "left"), ("atp", False, "right")]
)
def test_pruned_equals_the_masked_reference(name: str, method: str, adaptive: bool, side: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, side=side)
    steps = STEPS if side == "left" else 1  # transformers generates from the last place
    _, got, run = pruned(model, family, inputs, plan_of(model, method, adaptive), steps=steps)
    assert run.dropped > 0
    visual = inputs["input_ids"] == family.image_token_id
    with hiding(model, adapt(model), run.trace, visual, inputs.get("image_sizes")):
        _, want = said(model, family, inputs, steps=steps)
    rows = slice(None) if side == "left" else inputs["attention_mask"][:, -1].bool()
    assert (got - want)[rows].abs().max() <= 1e-9
    assert (said(model, family, inputs, steps=1)[1] - want[:, :1])[rows].abs().max() > 1e-4, "pruning changed nothing"


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("method", ["none", "atp"])
def test_keep_all_is_bit_identical(name: str, method: str) -> None:
    family, model = SERVED[name], model_of(name)
    batch = family.inputs(model)
    for inputs in (batch, family.single(batch, 0)):
        want_tokens, want = said(model, family, inputs, steps=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with prune(model, plan=plan_of(model, method, keep=1.0), record_all_scores=True) as run:
                tokens, logits = said(model, family, inputs, steps=4)
        assert run.dropped == 0
        assert torch.equal(tokens, want_tokens)
        assert torch.equal(logits, want) or "sliding" in str(getattr(model.config.get_text_config(), "layer_types", ""))
        torch.testing.assert_close(logits, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize(("method", "adaptive"), [("atp", False), ("atp", True), ("uniform", False)])
def test_a_batch_equals_its_singles(name: str, method: str, adaptive: bool) -> None:
    family, model = SERVED[name], model_of(name)
    if adaptive and not adapt(model).vision.maskable:
        pytest.skip("the tower takes no mask: counts per input are the batch's largest, and the report says so")
    batch = family.inputs(model)
    plan = plan_of(model, method, adaptive)
    _, together, run = pruned(model, family, batch, plan, steps=4)
    kept = run.trace.last("language")
    for row in range(len(batch["input_ids"])):
        _, alone, one = pruned(model, family, family.single(batch, row), plan, steps=4)
        assert (together[row] - alone[0]).abs().max() <= 1e-8
        for record, mine in zip(kept, one.trace.last("language"), strict=False):
            assert record.kept[row].tolist() == mine.kept[0].tolist()


@pytest.mark.parametrize("name", SERVED)
def test_counted_flops_are_those_of_torch(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    invariants.counted_flops_are_true(model, family.single(family.inputs(model), 0), plan_of(model, "atp"))


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(name: str, fail: bool) -> None:
    family, model = SERVED[name], model_of(name)
    invariants.leaves_no_trace(model, family.single(family.inputs(model), 0), plan_of(model, "atp"), fail)


@pytest.mark.parametrize("name", SERVED)
def test_layers_really_run_on_fewer_tokens(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    adapter, seen = adapt(model), {"vision": [], "language": []}
    with prune(model, plan=plan_of(model, "uniform")):
        hooks = [
            view.layers[-1].register_forward_pre_hook(
                lambda module, args, kwargs, view=view: seen[view.name].append(view.read(args, kwargs).hidden.shape[:2].numel()),
                with_kwargs=True,
            )
            for view in (adapter.vision, adapter.language)
        ]
        said(model, family, family.inputs(model), steps=1)
    for hook in hooks:
        hook.remove()
    full: dict[str, list[int]] = {"vision": [], "language": []}
    hooks = [
        view.layers[-1].register_forward_pre_hook(
            lambda module, args, kwargs, view=view: full[view.name].append(view.read(args, kwargs).hidden.shape[:2].numel()),
            with_kwargs=True,
        )
        for view in (adapter.vision, adapter.language)
    ]
    said(model, family, family.inputs(model), steps=1)
    for hook in hooks:
        hook.remove()
    assert seen["vision"][0] < full["vision"][0]
    assert seen["language"][0] < full["language"][0]


def depends_on(model: Any, adapter: Any, inputs: Any, wanted: list[int]) -> list[set[tuple[int, int]]]:
    """Places (sequence, place) of the tower's last states that each of the wanted visual features depends on, by gradients."""
    leaves: list[Tensor] = []

    def cut(module: Any, args: Any, output: Any) -> Any:
        leaf = adapter.vision.states(output).detach().requires_grad_()
        leaves.append(leaf)
        return adapter.vision.restated(output, leaf)

    hooks = [layer.register_forward_hook(cut, prepend=True) for layer in adapter.vision.layers]
    known = inspect.signature(model.get_image_features).parameters
    try:
        with torch.enable_grad():
            made = model.get_image_features(**{key: value for key, value in inputs.items() if key in known}, return_dict=True)
            features = torch.cat([one.reshape(-1, one.shape[-1]) for one in made.pooler_output])
            found = []
            for number in wanted:
                grads = torch.autograd.grad(features[number].sum(), leaves, retain_graph=True, allow_unused=True)
                moved = [(g.abs().sum(-1) > 0).nonzero().tolist() for g in grads if g is not None]
                found.append({(row, place) for one in moved for row, place in one})
    finally:
        for hook in hooks:
            hook.remove()
    return found


@pytest.mark.parametrize("name", SCATTERED)
def test_a_visual_token_depends_on_the_patches_that_the_adapter_names(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    adapter, inputs, seen = adapt(model), family.inputs(model), []
    if adapter.connects == "keys":
        pytest.skip("queries look at all patches")
    hook = adapter.tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(adapter.images(args, kwargs)), with_kwargs=True
    )
    total = int((inputs["input_ids"] == family.image_token_id).sum())
    wanted = list(range(0, total, max(1, total // 12)))
    got = depends_on(model, adapter, inputs, wanted)
    hook.remove()
    images = seen[0]
    rows, most = len(images.counts), max(images.counts)
    facts = torch.stack([torch.arange(rows).view(-1, 1).expand(-1, most), torch.arange(most).expand(rows, -1)], -1).float()
    with warnings.catch_warnings(), prune(model, plan=Plan("none", ())) as run:
        warnings.simplefilter("ignore", UserWarning)
        said(model, family, inputs, steps=1)
    layout = inputs.get("image_sizes") if run.trace.layout is None else run.trace.layout
    said_to = torch.cat(adapter.pack(facts, images.counts, layout))
    for number, places in zip(wanted, got, strict=True):
        image, token = said_to[number].tolist()
        if image != image:
            assert not places
            continue
        if name == "llava_onevision" and len(places) > 1:  # interpolated, see tests/adapters/test_llava_next.py
            continue
        sequence = 0 if images.packed else int(image)
        assert places == {(sequence, place) for place in images.where[int(image), int(token)].tolist()}
