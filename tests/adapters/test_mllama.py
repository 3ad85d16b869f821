"""Mllama: tiles of a tower whose patches are keys that are projected once. What the registry-wide invariants do not ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny
from atp.adapters import adapt
from atp.engine import prune
from atp.errors import UnsupportedModel
from atp.plan import Plan, Site, Step
from atp.trace import Trace
from families import FAMILIES
from families.flamingos import TILES

FAMILY = FAMILIES["mllama"]
LOW = torch.finfo(torch.float64).min
PATCHES, LENGTH = 16, 24
"""Patches of a tile; its places in the tower, with the class token in front and padding behind."""


@cache
def model_of() -> Any:
    return FAMILY.make()


def plan_of(method: str, bar: float | None = None, stacks: Sequence[str] = ("vision", "language")) -> Plan:
    """Cross-attention layers are the language layers 1 and 4."""
    sites = [("vision", 2, 0.8), ("vision", 5, 0.6), ("language", 2, 0.3)]
    return Plan(
        method,
        tuple(Step(Site(stack, layer), keep, bar) for stack, layer, keep in sites if stack in stacks),
        tiny.unmerged(method),
    )


def last_look(inputs: Any, trace: Trace, place: int) -> Tensor:
    """Keys `[B, C]` that are there at a cross-attention layer, of those that the trace says were kept."""
    batch, images = inputs["pixel_values"].shape[:2]
    there = torch.ones(batch * images, TILES, PATCHES + 1, dtype=torch.bool)
    for record in trace.last("vision"):
        there[:, :, 1:] = record.keep.view(-1, TILES, PATCHES)
    there = there.view(batch, -1)
    words = inputs["attention_mask"][..., None, None] * inputs["cross_attention_mask"]
    seen = words.amax(1).bool().repeat_interleave(PATCHES + 1, 2).view(batch, -1)
    lone = ~seen.any(1, keepdim=True)
    records = [record for record in trace.last("language") if record.layer <= place]
    if not records:
        return (seen | lone) & there if trace.last("vision") else torch.ones_like(seen)
    return records[-1].keep | (lone & there)


@contextmanager
def masked(model: Any, inputs: Any, trace: Trace) -> Iterator[None]:
    """Everything runs; what the trace says has left is hidden from everybody."""
    tower, handles = model.model.vision_model, []

    def patches(number: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            mask = kwargs["attention_mask"].clone()
            for record in trace.last("vision"):
                if record.layer <= number:
                    dead = torch.zeros(len(mask), TILES, LENGTH, dtype=torch.bool)
                    dead[:, :, 1 : PATCHES + 1] = ~record.keep.view(-1, TILES, PATCHES)
                    mask = mask.masked_fill(dead.view(len(mask), 1, 1, -1), LOW)
            return args, dict(kwargs, attention_mask=mask)

        return hook

    def keys(place: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = ~last_look(inputs, trace, place)[:, None, None]
            return args, dict(kwargs, cross_attention_mask=kwargs["cross_attention_mask"].masked_fill(hidden, LOW))

        return hook

    for number, layer in enumerate([*tower.transformer.layers, *tower.global_transformer.layers]):
        handles.append(layer.register_forward_pre_hook(patches(number), with_kwargs=True))
    for place in (1, 4):
        handles.append(model.model.language_model.layers[place].register_forward_pre_hook(keys(place), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def said(model: Any, inputs: Any, steps: int = 5, **options: Any) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences[:, -steps:], torch.stack(out.logits, 1)


@pytest.mark.parametrize(
    ("method", "bar", "images"), [("random", None, (1, 2, 1)), ("atp", None, (1, 2, 1)), ("atp", 0.9, (2, 1, 0))]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pruned_equals_the_masked_reference(method: str, bar: float | None, images: tuple[int, ...], side: str) -> None:
    model = model_of()
    inputs = FAMILY.inputs(model, side=side, images=images)
    steps = 5 if side == "left" else 1
    with prune(model, plan=plan_of(method, bar)) as run:
        _, got = said(model, inputs, steps)
        trace = run.trace
        with torch.no_grad():
            logits = model(**inputs).logits
    with masked(model, inputs, trace):
        _, want = said(model, inputs, steps)
        with torch.no_grad():
            expected = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-9)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert (model(**inputs).logits - logits)[real].abs().max() > 1e-3, "pruning changed nothing"


def test_each_key_is_the_patch_that_the_adapter_says() -> None:
    model = model_of()
    inputs = FAMILY.single(FAMILY.inputs(model), 0)
    adapter = adapt(model)
    images = adapter.images((), {"pixel_values": inputs["pixel_values"]})
    states: list[Tensor] = []
    first = model.model.vision_model.transformer.layers[0]

    def follow(module: Any, args: Any, kwargs: Any) -> Any:
        name = next(key for key in kwargs if key.startswith("hidden_state"))
        states.append(kwargs[name].detach().requires_grad_())
        return args, {**kwargs, name: states[0]}

    # Attention mixes all places, so its share is put out: what is left is one place's own way to its key.
    hooks = [first.register_forward_pre_hook(follow, with_kwargs=True)]
    tower = model.model.vision_model
    for layer in [*tower.transformer.layers, *tower.global_transformer.layers]:
        hooks.append(layer.self_attn.register_forward_hook(lambda module, args, out: (0.0 * out[0], out[1])))
    features = tower(**{key: inputs[key] for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}).last_hidden_state
    for hook in hooks:
        hook.remove()
    keys = features.reshape(-1, TILES * (PATCHES + 1), features.shape[-1])[0]
    number = torch.arange(TILES * PATCHES, dtype=torch.float32).view(1, -1, 1)
    facts = adapter.pack(number, (TILES * PATCHES,), None)[0][:, 0]
    for key in (0, 1, 16, 17, 18, 40, 67):
        gradient = torch.autograd.grad(keys[key].sum(), states[0], retain_graph=True)[0][0].abs().sum(-1)
        (place,) = gradient.nonzero().flatten().tolist()
        if facts[key].isnan():
            assert place % LENGTH == 0
            assert images.others[0, place]
        else:
            assert images.where[0, int(facts[key]), 0] == place


def test_the_cache_stores_what_is_left() -> None:
    model = model_of()
    inputs = FAMILY.single(FAMILY.inputs(model), 2)
    with prune(model, plan=plan_of("uniform", stacks=("language",))) as run, torch.no_grad():
        stored = model(**inputs, use_cache=True).past_key_values
    (record,) = run.trace.last("language")
    assert record.started == [3 * (PATCHES + 1)]  # its image has 1 x 3 tiles
    assert record.counts == [round(0.3 * record.started[0])]
    assert stored.layers[1].keys.shape[2] == inputs["pixel_values"].shape[1] * TILES * (PATCHES + 1)
    assert stored.layers[4].keys.shape[2] == record.counts[0]


def test_beams_follow_their_prompt() -> None:
    model, inputs = model_of(), FAMILY.inputs(model_of())
    with prune(model, plan=plan_of("atp")):
        together = model.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False)[:, -4:]
        for row in range(3):
            alone = model.generate(**FAMILY.single(inputs, row), max_new_tokens=4, num_beams=2, do_sample=False)[:, -4:]
            assert together[row].tolist() == alone[0].tolist()


def test_later_turns() -> None:
    model, inputs = model_of(), FAMILY.inputs(model_of())
    turn = torch.tensor([[40, 41, 42]] * 3)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(turn)], 1)
    seen = inputs["cross_attention_mask"][:, -1:]
    found = []
    for sizes in ((3,), (1, 1, 1)):
        with prune(model, plan=plan_of("atp")) as run, torch.no_grad():
            out = model(**inputs, use_cache=True)
            start = 0
            for size in sizes:
                now = mask[:, : inputs["attention_mask"].shape[1] + start + size]
                out = model(
                    input_ids=turn[:, start : start + size], attention_mask=now, past_key_values=out.past_key_values,
                    cross_attention_mask=seen.expand(-1, size, -1, -1), use_cache=True,
                )  # fmt: skip
                start += size
        assert len(run.trace.records) == 3
        found.append(out.logits[:, -1])
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
    pixels = {key: inputs[key] for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
    with prune(model, plan=plan_of("atp")), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(UnsupportedModel, match="later images and other batches need a new cache"):
            model(
                input_ids=turn, attention_mask=mask, past_key_values=cache, **pixels,
                cross_attention_mask=seen.expand(-1, 3, -1, -1),
            )  # fmt: skip


def test_text_alone_is_exact_and_counted() -> None:
    model = model_of()
    inputs = FAMILY.inputs(model, texts=(6, 6), images=(0, 0))
    tokens, logits = said(model, inputs, 3)
    with pytest.warns(UserWarning, match="no image"), prune(model, plan=plan_of("atp")) as run:
        again, same = said(model, inputs, 3)
    assert torch.equal(tokens, again)
    assert torch.equal(logits, same)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        said(model, FAMILY.single(inputs, 0), 3)
    assert run.report().flops == run.report().flops_unpruned
    assert run.report().flops.total == 2 * counter.get_total_flops()


def test_what_cannot_be_right_is_refused() -> None:
    model, inputs = model_of(), FAMILY.inputs(model_of())
    for name in ("input_ids", "cross_attention_mask"):
        less = {key: value for key, value in inputs.items() if key != name}
        if name == "input_ids":
            less["inputs_embeds"] = model.get_input_embeddings()(inputs[name])
        with prune(model, plan=plan_of("atp")), pytest.raises(UnsupportedModel, match=f"the call has none; pass {name}"):
            model(**less)
