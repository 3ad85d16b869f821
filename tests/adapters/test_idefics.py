"""IDEFICS: visual tokens are keys of cross-attention layers. What the registry-wide invariants do not ask."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
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
from atp.errors import InvalidPlan, UnsupportedModel
from atp.plan import Plan, Site, Step
from atp.trace import Trace
from families import FAMILIES
from families.flamingos import LATENTS

FAMILY = FAMILIES["idefics"]
LOW = torch.finfo(torch.float64).min


@cache
def model_of() -> Any:
    return FAMILY.make(layers=6)


def plan_of(method: str, adaptive: bool = False, tower: bool = True) -> Plan:
    """Cross-attention layers stand in front of language layers 0, 2 and 4."""
    sites = [("language", 1, 0.6), ("language", 4, 0.25), *([("vision", 2, 0.6), ("vision", 5, 0.4)] if tower else [])]
    steps = tuple(
        Step(Site(stack, layer), keep, 0.9 if adaptive and stack == "language" else None) for stack, layer, keep in sites
    )
    return Plan(method, steps, tiny.unmerged(method))


@contextmanager
def masked(model: Any, trace: Trace) -> Iterator[None]:
    """Everything runs; what the trace says has left is hidden from everybody."""
    adapter, handles = adapt(model), []
    patches, latents = trace.last("vision"), trace.last("language")

    def tower(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            mask = torch.zeros(args[0].shape[0], 1, 1, args[0].shape[1], dtype=torch.float64)
            for record in patches:
                if record.layer <= layer:
                    mask[:, 0, 0, 1:].masked_fill_(~record.keep, LOW)
            return (args[0], mask), kwargs

        return hook

    def resampler(module: Any, args: Any) -> Any:
        if not patches:
            return None
        kept = [torch.cat([torch.tensor([0]), row + 1]) for row in patches[-1].kept]
        return (torch.stack([states[rows] for states, rows in zip(args[0], kept, strict=True)]),)

    def cross(place: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            mask = kwargs["image_attention_mask"].clone()
            for record in latents:
                if record.layer <= place:
                    mask = mask.masked_fill(~record.keep[:, None, None, :], LOW)
            return args, dict(kwargs, image_attention_mask=mask)

        return hook

    for number, layer in enumerate(adapter.vision.layers):
        handles.append(layer.register_forward_pre_hook(tower(number), with_kwargs=True))
    handles.append(adapter.connector.register_forward_pre_hook(resampler))
    for place, layer in zip(adapter.language.places, adapter.language.layers, strict=True):  # type: ignore[attr-defined]
        handles.append(layer.register_forward_pre_hook(cross(place), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def said(model: Any, inputs: Any, steps: int = 6, **options: Any) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences[:, -steps:], torch.stack(out.logits, 1)


@pytest.mark.parametrize(("method", "adaptive"), [("random", False), ("uniform", False), ("atp", False), ("atp", True)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pruned_equals_the_masked_reference(method: str, adaptive: bool, side: str) -> None:
    model = model_of()
    inputs = FAMILY.inputs(model, side=side)
    steps = 6 if side == "left" else 1
    with prune(model, plan=plan_of(method, adaptive)) as run:
        _, got = said(model, inputs, steps)
        trace = run.trace
        with torch.no_grad():
            logits = model(**inputs).logits
    with masked(model, trace):
        _, want = said(model, inputs, steps)
        with torch.no_grad():
            expected = model(**inputs).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-9)
    with torch.no_grad():
        whole = model(**inputs).logits
    assert (whole - logits)[real].abs().max() > 1e-3, "pruning changed nothing"


@pytest.mark.parametrize("method", ["atp", "fastv"])
def test_every_image_keeps_its_own_share(method: str) -> None:
    model = model_of()
    inputs = FAMILY.inputs(model)
    plan = Plan(method, (Step(Site("language", 4), 0.25),))
    with prune(model, plan=plan) as run:
        said(model, inputs, 2)
    (record,) = run.trace.last("language")
    assert record.counts == [LATENTS // 4 * images for images in inputs.images]
    per_image = record.keep.view(3, -1, LATENTS).sum(2).tolist()
    assert per_image == [[LATENTS // 4 if place < images else 0 for place in range(2)] for images in inputs.images]
    assert run.report().kept["language"][4] == record.counts


def test_one_latent_an_image_stays_whatever_is_asked() -> None:
    model = model_of()
    inputs = FAMILY.inputs(model)
    with prune(model, plan=Plan("atp", (Step(Site("language", 1), 0.0),))) as run:
        _, logits = said(model, inputs, 2)
    assert run.trace.last("language")[0].counts == list(inputs.images)
    assert logits.isfinite().all()


def test_scores_are_what_the_images_own_text_pays() -> None:
    model = model_of()
    inputs = FAMILY.single(FAMILY.inputs(model), 1)
    seen: list[Tensor] = []
    eager = FAMILY.make(layers=6, attention="eager")
    hook = eager.model.gated_cross_attn_layers[1].cross_attn.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    with torch.no_grad():
        eager(**inputs)
    hook.remove()
    with prune(model, plan=Plan("atp", (Step(Site("language", 4), 0.5),), {"alpha": 1.0})) as run, torch.no_grad():
        model(**inputs)
    (record,) = run.trace.last("language")
    assert record.raw_scores is not None
    for image in range(2):
        looks = inputs["image_attention_mask"][0, :, image].bool()
        want = seen[0][0].double().mean(0)[looks][:, image * LATENTS : (image + 1) * LATENTS].mean(0)
        torch.testing.assert_close(
            record.raw_scores[0, image * LATENTS : (image + 1) * LATENTS], want / want.mean(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_decoded_tokens_project_nothing_again(mode: Any) -> None:
    model, inputs = model_of(), FAMILY.inputs(model_of())
    attention = model.model.gated_cross_attn_layers[2].cross_attn
    plain, widths = type(attention.k_proj).forward, []

    def count(states: Tensor) -> Tensor:
        widths.append(states.shape[1])
        return plain(attention.k_proj, states)

    attention.k_proj.forward = count
    try:
        with prune(model, plan=plan_of("uniform")) as run, mode():
            said(model, inputs, 3)
            said(model, inputs, 2)
        assert attention.k_proj.forward is count
    finally:
        del attention.k_proj.forward
    assert widths == [LATENTS // 4 * 2] * 2  # once a prompt
    assert run.report().recalled == 1.0
    assert "100% of their cross-attention keys remembered" in str(run.report())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_remembered_of_other_images_or_weights(mode: Any) -> None:
    model, inputs = model_of(), FAMILY.single(FAMILY.inputs(model_of()), 1)
    turn = torch.tensor([[40]])
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(turn)], 1)

    def after(out: Any, latents: Tensor) -> Tensor:
        last, cache = inputs["image_attention_mask"][:, -1:], copy.deepcopy(out.past_key_values)
        found: Tensor = model(
            input_ids=turn, attention_mask=mask, perceiver_embeddings=latents, past_key_values=cache, image_attention_mask=last
        ).logits
        return found

    with mode():
        out = model(**inputs, use_cache=True)
        latents = out.image_hidden_states
        other = latents.flip(1).contiguous()
        want, changed, doubled = after(out, latents), after(out, other), after(out, 2 * other)
        assert (want - changed).abs().max() > 1e-3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with prune(model, plan=Plan("none", ())) as run:
                out = model(**inputs, use_cache=True)
                latents = out.image_hidden_states
                assert torch.equal(after(out, latents), want)
                assert run.memory.share == 1.0
                assert torch.equal(after(out, other), changed)
                latents.copy_(2 * other)
                assert torch.equal(after(out, latents), doubled)
                assert run.memory.share == 1 / 3
                weight = model.model.gated_cross_attn_layers[0].cross_attn.v_proj.weight
                weight.mul_(2.0)
                twice = after(out, latents)
                weight.div_(2.0)
                assert (twice - doubled).abs().max() > 1e-6


def test_beams_and_samples_follow_their_prompt() -> None:
    model, inputs = model_of(), FAMILY.inputs(model_of())
    with prune(model, plan=plan_of("atp")):
        together = model.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False)[:, -4:]
        for row in range(3):
            alone = model.generate(**FAMILY.single(inputs, row), max_new_tokens=4, num_beams=2, do_sample=False)[:, -4:]
            assert together[row].tolist() == alone[0].tolist()


def test_a_second_turn_follows_the_first() -> None:
    model, inputs = model_of(), FAMILY.inputs(model_of())
    turn = torch.tensor([[40, 41, 42]] * 3)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(turn)], 1)
    last = inputs["image_attention_mask"][:, -1:]
    found = []
    for sizes in ((3,), (1, 1, 1)):
        with prune(model, plan=plan_of("atp")) as run, torch.no_grad():
            out = model(**inputs, use_cache=True)
            start = 0
            for size in sizes:
                seen = mask[:, : inputs["attention_mask"].shape[1] + start + size]
                out = model(
                    input_ids=turn[:, start : start + size], attention_mask=seen, past_key_values=out.past_key_values,
                    perceiver_embeddings=out.image_hidden_states, image_attention_mask=last.expand(-1, size, -1), use_cache=True,
                )  # fmt: skip
                start += size
        assert len(run.trace.records) == 4
        found.append(out.logits[:, -1])
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
    with prune(model, plan=plan_of("atp")), torch.no_grad():
        out = model(**inputs, use_cache=True)
        more = torch.cat([out.image_hidden_states, out.image_hidden_states[:, :1]], 1)
        with pytest.raises(UnsupportedModel, match="later images and other batches need a new cache"):
            model(
                input_ids=turn, attention_mask=mask, past_key_values=out.past_key_values, perceiver_embeddings=more,
                image_attention_mask=torch.ones(3, 3, 3, dtype=torch.int64),
            )  # fmt: skip


def test_what_cannot_be_right_is_refused() -> None:
    model = model_of()
    with (
        pytest.raises(InvalidPlan, match="language:0 is too early; use language:1 or later"),
        prune(model, plan=Plan("atp", (Step(Site("language", 0), 0.5),))),
    ):
        pass
    with (
        pytest.raises(InvalidPlan, match="no layer behind layer 4 looks at visual tokens; use 'language:4'"),
        prune(model, plan=Plan("atp", (Step(Site("language", 5), 0.5),))),
    ):
        pass
    inputs = FAMILY.inputs(model)
    embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
    with prune(model, plan=plan_of("atp")), pytest.raises(UnsupportedModel, match="pass input_ids"):
        model(inputs_embeds=embedded, **inputs)
    del model.model.perceiver_resampler
    try:
        with pytest.raises(UnsupportedModel, match="no resampler"):
            adapt(model)
    finally:
        model_of.cache_clear()


def test_flops_of_a_whole_run_are_torchs() -> None:
    model = model_of()
    inputs = FAMILY.single(FAMILY.inputs(model), 1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        said(model, inputs, 4)
    full = counter.get_total_flops()
    with prune(model, plan=plan_of("atp")) as run, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        said(model, inputs, 4)
    assert run.report().flops_unpruned.total == pytest.approx(full, rel=1e-3)
    assert run.report().flops.total == pytest.approx(counter.get_total_flops(), rel=1e-3)
