"""Everything that `generate` and training do, under pruning, on every shape of model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import invariants
import reference
import tiny
from atp.engine import prune
from atp.errors import UnsupportedModel
from atp.plan import Plan, Site, Step
from atp.trace import Trace

GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
PLAN = tiny.plan("atp")
IMAGES = (1, 2, 1)


def one(model: Any, text: int = 6, images: int = 1) -> dict[str, Tensor]:
    return tiny.prompts(model, (text,), (images,))


def trace_of(model: Any, inputs: dict[str, Tensor], plan: Plan = PLAN) -> Trace:
    with torch.no_grad(), prune(model, plan=plan) as run:
        model(**inputs)
    return run.trace


def step_logits(model: Any, inputs: dict[str, Tensor], answer: Tensor, plan: Plan = PLAN) -> Tensor:
    """What the masked reference says before each answer token of one prompt, `[1, n, V]`."""
    logits = reference.logits(model, inputs, trace_of(model, inputs, plan), answer)
    return logits[:, inputs["input_ids"].shape[1] - 1 : -1]


# --- ways to generate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
def test_beams_score_as_the_reference(adaptive: bool) -> None:
    model, plan = tiny.model("siglip-qwen2"), tiny.plan("atp", adaptive)
    inputs = tiny.prompts(model, images=IMAGES)
    with prune(model, plan=plan) as run:
        out = model.generate(
            **inputs, **GREEDY, num_beams=3, num_return_sequences=2, output_scores=True,
            suppress_tokens=[tiny.IMAGE],
        )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    assert len(run.trace.kept("language")[1]) == 9
    for index, (sequence, score) in enumerate(zip(out.sequences, out.sequences_scores, strict=True)):
        answer = sequence[None, length:]
        single = tiny.single(inputs, index // 2, IMAGES)
        logits = step_logits(model, single, answer, plan)
        want = logits.log_softmax(-1).gather(2, answer.unsqueeze(-1)).sum() / answer.shape[1]
        assert abs(float(want - score)) < 1e-5


def test_sampling_with_return_sequences_has_the_logits_of_the_reference() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model)
    torch.manual_seed(0)
    with prune(model, plan=PLAN):
        out = model.generate(
            **inputs, **dict(GREEDY, do_sample=True), num_return_sequences=2, output_logits=True, suppress_tokens=[tiny.IMAGE]
        )
    got = torch.stack(out.logits, 1)
    for row, sequence in enumerate(out.sequences):
        answer = sequence[None, inputs["input_ids"].shape[1] :]
        want = step_logits(model, tiny.single(inputs, row // 2), answer)
        assert (got[row] - want[0]).abs().max() < 1e-5


def test_prompt_lookup_says_what_greedy_says() -> None:
    """Guesses copied from the prompt follow it in the very first call; they must not decide what is pruned."""
    model = tiny.model()
    inputs = one(model, 9)
    ids = inputs["input_ids"]
    ids[0, -2:] = ids[0, -6:-4]  # the prompt ends as it went on before, so there are guesses at once
    for plan in (PLAN, tiny.plan("fastv")):
        with prune(model, plan=plan) as run:
            plain = model.generate(**inputs, **GREEDY)
            kept = [record.kept for record in run.trace.records]
            run.trace.clear()
            lookup = model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3)
        for before, after in zip(kept, (record.kept for record in run.trace.records), strict=True):
            assert [row.tolist() for row in before] == [row.tolist() for row in after]
        assert torch.equal(plain.sequences, lookup.sequences)


def test_a_second_turn_on_the_cache() -> None:
    model = tiny.model()
    inputs = one(model)
    with prune(model, plan=PLAN) as run:
        first = model.generate(**inputs, **GREEDY, suppress_tokens=[tiny.IMAGE])
        more = torch.cat([first.sequences, torch.tensor([[9, 10, 11]])], 1)
        second = model.generate(
            input_ids=more, attention_mask=torch.ones_like(more), past_key_values=first.past_key_values, **GREEDY,
            output_logits=True, suppress_tokens=[tiny.IMAGE],
        )  # fmt: skip
    assert run.forwards == 1
    answer = second.sequences[:, inputs["input_ids"].shape[1] :]
    want = reference.logits(model, inputs, run.trace, answer)[:, more.shape[1] - 1 : -1]
    assert (torch.stack(second.logits, 1) - want).abs().max() < 1e-5


def merged(first: Trace, second: Trace) -> Trace:
    """One trace of two turns, as if both images had been in one prompt."""
    records = []
    for a, b in zip(first.records, second.records, strict=True):
        dim = 0 if a.stack == "vision" else 1
        rows = [*a.started, *b.started] if dim == 0 else [a.started[0] + b.started[0]]
        records.append(dataclasses.replace(a, keep=torch.cat([a.keep, b.keep], dim), started=rows))
    return Trace(records)


def test_a_second_turn_with_a_new_image_on_the_pruned_cache() -> None:
    model = tiny.model()
    both = one(model, 6, 2)
    size = tiny.PATCHES
    ids = torch.cat([both["input_ids"][:, : 2 + size], torch.tensor([[20, 21]]), both["input_ids"][:, 2 + size :]], 1)
    cut = 2 + size + 2
    with torch.no_grad(), prune(model, plan=PLAN) as run:
        out = model(input_ids=ids[:, :cut], pixel_values=both["pixel_values"][:1], use_cache=True)
        first = Trace(list(run.trace.records))
        run.trace.clear()
        out = model(input_ids=ids[:, cut:], pixel_values=both["pixel_values"][1:], past_key_values=out.past_key_values)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": both["pixel_values"]}
    want = reference.logits(model, whole, merged(first, run.trace))[:, cut:]
    assert (out.logits - want)[ids[:, cut:] != tiny.IMAGE].abs().max() < 1e-9
    assert out.past_key_values.get_seq_length() == ids.shape[1]


def test_two_caches_interleaved() -> None:
    model = tiny.model()
    inputs = [tiny.prompts(model, (6,), seed=1), tiny.prompts(model, (9,), seed=2)]
    step = torch.tensor([[15]])
    with torch.no_grad(), prune(model, plan=PLAN):
        outs = [model(**x, use_cache=True) for x in inputs]
        crossed = [model(input_ids=step, past_key_values=out.past_key_values).logits for out in outs]
        for x, got in zip(inputs, crossed, strict=True):
            alone = model(**x, use_cache=True)
            assert torch.equal(model(input_ids=step, past_key_values=alone.past_key_values).logits, got)


def test_a_batch_with_text_only_prompts() -> None:
    model = tiny.model()
    invariants.equals_reference(model, tiny.prompts(model, (6, 30, 4), (1, 0, 2)), tiny.plan("atp", adaptive=True))


def test_precomputed_features_are_told_apart() -> None:
    """Features made inside the block know what is left of them; features from outside are whole."""
    model = tiny.model()
    inputs = one(model)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with torch.no_grad():
        outside = model.get_image_features(inputs["pixel_values"], return_dict=True)
        with prune(model, plan=PLAN) as run:
            inside = model.get_image_features(inputs["pixel_values"], return_dict=True)
            got = model(**rest, mm_encoder_outputs={"image": inside}).logits
            want = model(**inputs).logits
            run.trace.clear()
            model(**rest, mm_encoder_outputs={"image": outside})
    assert torch.equal(got, want)
    assert run.trace.kept("vision") == {}
    assert run.trace.kept("language") == {1: [6], 3: [3]}


# --- what a model may look like ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"vision_feature_layer": -1},
        {"vision_feature_layer": [-2, 1]},
        {"vision_feature_select_strategy": "full"},
        {"kind": "siglip-qwen2", "vision_feature_select_strategy": "default"},
    ],
    ids=["last layer", "two layers", "class token is visual", "first patch is no feature"],
)
@pytest.mark.parametrize("method", ["atp", "uniform"])
def test_feature_selections(options: dict[str, Any], method: str) -> None:
    model = tiny.make(**options)
    inputs = tiny.prompts(model, images=IMAGES)
    invariants.equals_reference(model, inputs, tiny.plan(method, adaptive=True), steps=4)
    invariants.equals_reference(model, inputs, tiny.plan(method), steps=4)


@pytest.mark.parametrize("layer", [0, 1])
def test_sliding_windows(layer: int) -> None:
    model = tiny.make("clip-mistral", sliding=12)
    plan = Plan("uniform", (Step(Site("language", layer), 0.5), Step(Site("language", 3), 0.25)))
    for side in ("left", "right"):
        invariants.equals_reference(model, tiny.prompts(model, (20, 9, 4), IMAGES, side), plan, steps=6)
    invariants.equals_reference(model, one(model), plan, steps=6)


def test_pruning_at_the_first_layer_of_both_stacks_and_down_to_one_token() -> None:
    model = tiny.model()
    plan = Plan("uniform", tuple(Step(Site(stack, 0), keep) for stack, keep in (("vision", 0.5), ("language", 0.0))))
    run = invariants.equals_reference(model, tiny.prompts(model, images=IMAGES), plan)
    assert run.trace.kept("language") == {0: [1, 1, 1]}


@pytest.mark.parametrize("method", ["atp", "fastv", "uniform"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_eager_attention_equals_sdpa(method: str, adaptive: bool) -> None:
    """In float32: the eager softmax of transformers is float32 whatever the model's type."""
    logits = []
    for attention in ("sdpa", "eager"):
        model = tiny.model("siglip-qwen2", attention=attention, dtype=torch.float32)
        inputs = tiny.prompts(model, images=IMAGES)
        with prune(model, plan=tiny.plan(method, adaptive)) as run:
            got, answer, _ = invariants.decode(model, inputs, 4)
        logits.append(got[invariants.readable(inputs, answer)])
        assert run.dropped
    assert (logits[0] - logits[1]).abs().max() < 2e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype: torch.dtype) -> None:
    model = tiny.make(dtype=dtype)
    with prune(model, plan=tiny.plan("atp", adaptive=True)) as run:
        out = model.generate(**tiny.prompts(model), max_new_tokens=3, do_sample=False)
    assert out.shape[0] == 3
    assert run.report().ratio < 1


def test_recorded_hidden_states_have_full_length() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model)
    plan = Plan("uniform", tuple(Step(Site(stack, layer), 0.5) for stack in ("vision", "language") for layer in (0,)))
    with torch.no_grad(), prune(model, plan=plan):
        out = model(**inputs, output_hidden_states=True)
    length = inputs["input_ids"].shape[1]
    assert [state.shape[1] for state in out.hidden_states] == [length] * 6
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    text = inputs["input_ids"] != tiny.IMAGE
    assert torch.equal(out.hidden_states[0][text], embedded[text])


@pytest.mark.skipif(invariants.HOOKS_RUN_ONCE, reason="this transformers keeps hooks out of what is checkpointed")
def test_checkpointing_that_would_run_hooks_twice() -> None:
    model = tiny.make()
    model.train()
    inputs = tiny.prompts(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with prune(model, plan=PLAN), pytest.raises(UnsupportedModel, match=r"transformers>=5\.23"):
        model(**inputs, labels=inputs["input_ids"], use_cache=False)


@pytest.mark.skipif(
    not invariants.HOOKS_RUN_ONCE, reason="this transformers runs the hooks of checkpointed layers twice, which is refused"
)
def test_training_with_and_without_checkpointing() -> None:
    model = tiny.make()
    model.train()
    inputs = tiny.prompts(model)
    found = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with prune(model, plan=PLAN):
            loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
            loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert found[0][0] == found[1][0]
    assert len(found[0][1]) == len(found[1][1]) > 50
    for before, after in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(before, after)
