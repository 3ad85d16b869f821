"""More ways of calling, over every family: sampling, return sequences, assisted decoding, hidden states, training."""

from __future__ import annotations

import pytest
import torch

import invariants
from atp.adapters import adapt
from atp.engine import prune
from conformance.hiding import hiding
from conformance.test_families import SCATTERED, SERVED, model_of, plan_of
from conformance.test_modes import counted

TOLD = {"max_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize("name", SCATTERED)
def test_sampling_and_return_sequences_equal_the_masked_reference(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, texts=(6,), images=(1,))
    told = {**TOLD, "do_sample": True, "num_return_sequences": 2, "suppress_tokens": [family.image_token_id]}
    torch.manual_seed(3)
    with prune(model, plan=plan_of(model, "random")) as run:
        got = model.generate(**inputs, **told)
    visual = inputs["input_ids"] == family.image_token_id
    torch.manual_seed(3)
    with hiding(model, adapt(model), run.trace, visual.repeat_interleave(2, 0), inputs.get("image_sizes")) as state:
        state.copies = 2
        want = model.generate(**inputs, **told)
    assert torch.equal(got.sequences[:, -5:], want.sequences[:, -5:])
    assert (torch.stack(got.logits) - torch.stack(want.logits)).abs().max() <= 1e-9


@pytest.mark.parametrize("name", SCATTERED)
def test_prompt_lookup_says_what_greedy_says(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model, texts=(9,), images=(1,))
    plan = plan_of(model, "uniform")
    told = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [family.image_token_id]}
    try:
        model.generate(**inputs, **told, prompt_lookup_num_tokens=3)
    except (ValueError, TypeError, IndexError, RuntimeError) as refusal:
        pytest.skip(f"transformers itself refuses: {type(refusal).__name__}")
    with prune(model, plan=plan) as run:
        greedy = model.generate(**inputs, **told)
    with prune(model, plan=plan):
        assisted = model.generate(**inputs, **told, prompt_lookup_num_tokens=3)
    assert run.dropped > 0
    assert greedy[:, -8:].tolist() == assisted[:, -8:].tolist()


@pytest.mark.parametrize("name", SCATTERED)
def test_recorded_hidden_states_have_full_length(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model)
    with torch.no_grad():
        want = model(**inputs, **counted(family, model, inputs), output_hidden_states=True)
        with prune(model, plan=plan_of(model, "uniform")):
            got = model(**inputs, **counted(family, model, inputs), output_hidden_states=True)
    states = [getattr(out, "hidden_states", None) or out.language_model_outputs.hidden_states for out in (got, want)]
    assert [state.shape for state in states[0]] == [state.shape for state in states[1]]


@pytest.mark.parametrize("name", SCATTERED)
def test_loss_and_gradients_with_and_without_checkpointing(name: str) -> None:
    family = SERVED[name]
    model_of(name)  # skips what is refused
    model = family.make(dtype=torch.float64)
    model.train()
    inputs = family.inputs(model, texts=(6, 9), images=(1, 1))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == family.image_token_id, -100)
    found = []
    for checkpointing in (False, invariants.HOOKS_RUN_ONCE):  # elsewhere it is refused, see tests/test_generate.py
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        with prune(model, plan=plan_of(model, "uniform")) as run:
            loss = model(**inputs, labels=labels, use_cache=False).loss
            loss.backward()
        assert run.dropped > 0
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9)
    assert found[0][1].keys() == found[1][1].keys()
    for key, before in found[0][1].items():
        torch.testing.assert_close(before, found[1][1][key], rtol=0, atol=1e-9)
