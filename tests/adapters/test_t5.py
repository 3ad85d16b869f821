"""T5 behind a Q-Former: an encoder with a bias by distance, and a decoder that looks at what is left of it."""

from __future__ import annotations

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
from atp.engine import prune
from atp.errors import UnsupportedModel
from atp.plan import Plan, Site, Step
from atp.trace import Trace
from families import FAMILIES
from families.base import IMAGE, PAD, WORDS

NAMES = ("blip-2-t5", "instructblip-t5")


@cache
def model_of(name: str) -> Any:
    return FAMILIES[name].make(layers=4)


def plan_of(method: str, bar: float | None = None, first: int = 1) -> Plan:
    return Plan(method, (Step(Site("language", first), 0.6, bar), Step(Site("language", 3), 0.3, bar)), tiny.unmerged(method))


@contextmanager
def masked(model: Any, inputs: Any, trace: Trace) -> Iterator[None]:
    """Everything runs; what the trace says has left is hidden from everybody."""
    visual, real = inputs["input_ids"] == IMAGE, inputs["attention_mask"].bool()
    handles = []

    def there(layer: int) -> Tensor:
        found = real.clone()
        for record in trace.last("language"):
            if record.layer <= layer:
                found[visual] = record.keep.flatten()
        return found

    def hide(layer: int) -> Any:
        return lambda module, args: (args[0], there(layer)[:, None, None, :], *args[2:])

    def cut(module: Any, args: Any, kwargs: Any) -> Any:
        return args, dict(kwargs, encoder_attention_mask=there(99).long())

    for number, block in enumerate(model.language_model.encoder.block):
        handles.append(block.register_forward_pre_hook(hide(number)))
    handles.append(model.language_model.decoder.register_forward_pre_hook(cut, with_kwargs=True))
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "bar", "first"), [("random", None, 0), ("uniform", None, 1), ("atp", None, 1), ("atp", 0.9, 1)]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pruned_equals_the_masked_reference(name: str, method: str, bar: float | None, first: int, side: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, side=side)
    asked = torch.tensor([[PAD, WORDS, WORDS + 1]]).expand(3, -1)
    with prune(model, plan=plan_of(method, bar, first)) as run, torch.no_grad():
        _, got = said(model, inputs)
        logits = model(**inputs, decoder_input_ids=asked).logits
    with masked(model, inputs, run.trace), torch.no_grad():
        _, want = said(model, inputs)
        expected = model(**inputs, decoder_input_ids=asked).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert (model(**inputs, decoder_input_ids=asked).logits - logits).abs().max() > 1e-3, "pruning changed nothing"


def test_scores_count_the_bias_by_distance() -> None:
    model = model_of("blip-2-t5")
    inputs = FAMILIES["blip-2-t5"].single(FAMILIES["blip-2-t5"].inputs(model), 0)
    eager, seen = FAMILIES["blip-2-t5"].make(layers=4, attention="eager"), []
    hook = (
        eager.language_model.encoder.block[1]
        .layer[0]
        .SelfAttention.register_forward_hook(lambda module, args, out: seen.append(out[2]))
    )
    with torch.no_grad():
        eager(**inputs, decoder_input_ids=torch.tensor([[PAD]]))
    hook.remove()
    plan = Plan("atp", (Step(Site("language", 2), 0.5),), {"alpha": 1.0})
    with prune(model, plan=plan) as run, torch.no_grad():
        model(**inputs, decoder_input_ids=torch.tensor([[PAD]]))
    (record,) = run.trace.last("language")
    visual = inputs["input_ids"][0] == IMAGE
    want = seen[0][0].mean(0)[~visual][:, visual].mean(0)
    assert record.raw_scores is not None
    torch.testing.assert_close(record.raw_scores[0], want / want.mean(), rtol=1e-9, atol=1e-9)


def test_beams_follow_their_prompt() -> None:
    model = model_of("blip-2-t5")
    family = FAMILIES["blip-2-t5"]
    inputs = family.inputs(model)
    with prune(model, plan=plan_of("atp", 0.9)):
        together, _ = said(model, inputs, 4, num_beams=3)
        for row in range(3):
            alone, _ = said(model, family.single(inputs, row), 4, num_beams=3)
            assert together[row].tolist() == alone[0].tolist()


def test_the_decoder_projects_fewer_keys_and_they_are_counted() -> None:
    model = model_of("instructblip-t5")
    inputs = FAMILIES["instructblip-t5"].single(FAMILIES["instructblip-t5"].inputs(model), 0)
    widths: list[int] = []
    hook = (
        model.language_model.decoder.block[0]
        .layer[1]
        .EncDecAttention.k.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    )
    with prune(model, plan=plan_of("atp")) as run, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        said(model, inputs, 4)
    hook.remove()
    text = int((inputs["input_ids"] != IMAGE).sum())
    assert widths == [text + run.trace.last("language")[-1].counts[0]]
    assert run.report().flops.total == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert run.report().flops.decode > 0


def test_a_text_alone_is_left_as_it_is() -> None:
    model = model_of("blip-2-t5")
    family = FAMILIES["blip-2-t5"]
    words = torch.arange(WORDS, WORDS + 6).view(1, -1)
    want = model.language_model.generate(words, max_new_tokens=3, do_sample=False)
    with prune(model, plan=plan_of("atp")):
        said(model, family.single(family.inputs(model), 0), 2)
        with pytest.warns(UserWarning, match="no image"):
            got = model.language_model.generate(words, max_new_tokens=3, do_sample=False)
    assert torch.equal(want, got)


def test_states_of_other_prompts_are_refused() -> None:
    model = model_of("blip-2-t5")
    family = FAMILIES["blip-2-t5"]
    inputs = family.inputs(model)
    with prune(model, plan=plan_of("atp")), torch.no_grad():
        first = model(**family.single(inputs, 0), decoder_input_ids=torch.tensor([[PAD]])).language_model_outputs
        model(**family.single(inputs, 1), decoder_input_ids=torch.tensor([[PAD]]))
        with pytest.raises(UnsupportedModel, match="encode and decode one batch after the other"):
            model.language_model.decoder(
                input_ids=torch.tensor([[PAD]]), encoder_hidden_states=first.encoder_last_hidden_state
            )  # fmt: skip
