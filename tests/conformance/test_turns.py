"""A second turn that chooses anew says what a fresh prefill of the whole conversation says, if the same tokens ask."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny
from atp.engine import prune
from atp.engine.run import Run
from atp.errors import InvalidPlan, UnsupportedModel
from conformance.test_families import SERVED, model_of, plan_of
from conformance.test_modes import counted
from conformance.test_text import plan_of as text_plan_of
from families import Inputs
from families.base import WORDS

NEW, SAID = 6, 3
REFUSED = r"a second turn cannot be chosen anew (here|by the \w+ adapter): .*use second_turn='keep'"


def conversation(family: Any, inputs: Any) -> tuple[Any, Tensor]:
    """The prompts with an answer and a second question behind them, and both."""
    generator = torch.Generator().manual_seed(5)
    more = torch.randint(WORDS, WORDS + 40, (len(inputs["input_ids"]), SAID + NEW), generator=generator)
    whole = Inputs(inputs)
    whole["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    whole["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
    for kind in ("token_type_ids", "mm_token_type_ids"):
        if kind in inputs:
            suffix = torch.full_like(more, int(family.model_type == "paligemma"), dtype=inputs[kind].dtype)
            whole[kind] = torch.cat([inputs[kind], suffix], 1)
    return whole, more


def two_turns(family: Any, model: Any, inputs: Any, whole: Any, more: Tensor) -> Any:
    """Prompt, answer token by token, second question, one more token: the outputs."""
    length, found, cache = inputs["input_ids"].shape[1], [], None
    found.append(model(**inputs, **counted(family, model, inputs), use_cache=True))
    cache = found[-1].past_key_values
    places = counted(family, model, whole)["position_ids"]
    spans = [(at, at + 1) for at in range(SAID)] + [(SAID, SAID + NEW - 1), (SAID + NEW - 1, SAID + NEW)]
    for first, last in spans:
        found.append(
            model(
                input_ids=more[:, first:last],
                attention_mask=whole["attention_mask"][:, : length + last],
                past_key_values=cache,
                position_ids=places[..., length + first : length + last],
            )
        )
    return found


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("kind", ["dropped", "merged", "text", "tower"])
def test_it_is_a_fresh_prefill_or_is_refused(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model)
    whole, more = conversation(family, inputs)
    plan, options = (text_plan_of(model) if kind == "text" else plan_of(model, "atp")), {"text_tail": 8}
    if kind in ("merged", "tower"):  # what patches stand for is remembered too
        plan = dataclasses.replace(plan, options={})
    if kind == "tower":  # no question decides: the cache is already what a fresh prefill would make of it
        plan = dataclasses.replace(plan, steps=tuple(step for step in plan.steps if step.site.stack == "vision"))
    refused = ""
    try:
        with torch.no_grad(), prune(model, plan=plan, second_turn="reselect", **options) as run:
            *_, turn, last = two_turns(family, model, inputs, whole, more)
            kept = [record.kept for record in (*run.trace.last("language"), *run.trace.last("text"))]
    except UnsupportedModel as error:
        refused = str(error)
    if refused:
        assert re.search(REFUSED, refused), refused
        return
    asked, arrive = inputs["input_ids"].shape[1] + SAID, Run._arrive

    def arriving(self: Run, prompt: Any) -> Any:
        census = arrive(self, prompt)
        census.turn = asked
        return census

    monkeypatch.setattr(Run, "_arrive", arriving)
    fresh = Inputs({key: value[:, :-1] if key in more_keys(whole) else value for key, value in whole.items()})
    with torch.no_grad(), prune(model, plan=plan, **options) as anew:
        want = model(**fresh, **counted(family, model, fresh), use_cache=True)
        step = model(
            input_ids=more[:, -1:], attention_mask=whole["attention_mask"], past_key_values=want.past_key_values,
            position_ids=counted(family, model, whole)["position_ids"][..., -1:],
        )  # fmt: skip
        same = [record.kept for record in (*anew.trace.last("language"), *anew.trace.last("text"))]
    assert all(a.tolist() == b.tolist() for one, two in zip(kept, same, strict=True) for a, b in zip(one, two, strict=True))
    assert turn.logits.shape[1] == NEW - 1
    torch.testing.assert_close(turn.logits, want.logits[:, asked:], rtol=0, atol=1e-9)
    torch.testing.assert_close(last.logits, step.logits, rtol=0, atol=1e-9)
    for ours, theirs in zip(last.past_key_values.layers, step.past_key_values.layers, strict=True):
        assert ours.get_seq_length() == theirs.get_seq_length()
        if kind != "tower":  # there places of padding hold what they held
            torch.testing.assert_close(ours.keys, theirs.keys, rtol=0, atol=1e-9)
    assert (run.report().turns > 0) == (run.trace.records[-1].forward > 0) == (kind != "tower")


def more_keys(inputs: Any) -> set[str]:
    """What grows with the conversation."""
    return {key for key in inputs if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")}


def test_another_question_keeps_other_tokens_and_the_report_says_what_it_took() -> None:
    model = tiny.model()
    inputs = tiny.prompts(model, (9,))
    generator = torch.Generator().manual_seed(2)
    question = torch.randint(8, tiny.VOCAB, (1, 7), generator=generator)

    def chat(second_turn: str) -> Any:
        with prune(model, plan=tiny.plan("atp"), second_turn=second_turn) as run:
            said = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([said.sequences, question], 1)
            first = run.trace.last("language")
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                model.requires_grad_(False)
                again = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=said.past_key_values, max_new_tokens=1,
                    do_sample=False, output_logits=True, return_dict_in_generate=True,
                )  # fmt: skip
            model.requires_grad_(True)
            return run, first, run.trace.last("language"), again.logits[0], counter.get_total_flops()

    kept_run, first, second, logits, _ = chat("keep")
    assert first[0] is second[0], "the first choice stays"
    run, before, after, anew, spent = chat("reselect")
    assert [record.kept[0].tolist() for record in before] == [record.kept[0].tolist() for record in first]
    assert any(a.kept[0].tolist() != b.kept[0].tolist() for a, b in zip(before, after, strict=True))
    assert (logits - anew).abs().max() > 1e-4
    report = run.report()
    assert report.turns == 1
    chosen = spent - report.turn_flops
    assert 0 < chosen < 0.2 * spent, "what torch counts is the turn and its choosing"
    assert report.flops.prefill == pytest.approx(kept_run.report().flops.prefill + report.turn_flops)
    assert report.turn_flops_unpruned < report.turn_flops
    assert f"second turns: 1 chosen anew for {report.turn_flops / 1e6:.4g} MFLOPs" in str(report)
    assert kept_run.report().turns == 0


def test_what_is_not_remembered_is_refused() -> None:
    model = tiny.model()
    inputs, turn = tiny.prompts(model, (9, 5)), torch.full((2, 4), 9)
    says = "goes on with a cache whose conversation is not remembered.*past_key_values=None, or use second_turn='keep'"
    with torch.no_grad(), prune(model, plan=tiny.plan("atp"), second_turn="reselect"):
        for spoil in (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), lambda cache: cache.crop(-1)):
            cache = model(**inputs, use_cache=True).past_key_values
            spoil(cache)
            with pytest.raises(UnsupportedModel, match=says):
                model(input_ids=turn, past_key_values=cache)
        old = model(**inputs, use_cache=True).past_key_values
        model(**inputs, use_cache=True)
        with pytest.raises(UnsupportedModel, match=says):
            model(input_ids=turn, past_key_values=old)
    says = "second_turn is one of 'keep', 'reselect', got 'new'"
    with pytest.raises(InvalidPlan, match=says), prune(model, plan=tiny.plan("atp"), second_turn="new"):
        pass
