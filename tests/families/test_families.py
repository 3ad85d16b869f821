"""Every family of the conformance suite runs unhooked, reads its images, and answers a prompt alone as in a batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from families import FAMILIES, Family, Inputs
from families.base import PAD, WORDS

VIDEOS = [name for name, family in FAMILIES.items() if family.videos]
KINDS = [(name, "inputs") for name in FAMILIES] + [(name, "videos") for name in VIDEOS]
EXACT = 1e-9
ROUNDED = {"paligemma2": 1e-4}
"""Eager attention takes its softmax in fp32: in longer rows the sums round otherwise."""


@cache
def model(name: str) -> Any:
    return FAMILIES[name].make()


@cache
def batch(name: str, kind: str = "inputs", side: str = "left") -> Inputs:
    made: Inputs = getattr(FAMILIES[name], kind)(model(name), side=side)
    return made


def logits(family: Family, owner: Any, inputs: Inputs) -> Tensor:
    """Logits of one forward, positions by the mask as `generate` counts them."""
    more: dict[str, Tensor] = {}
    if family.seq2seq:
        more["decoder_input_ids"] = torch.tensor([[PAD, WORDS, WORDS + 1]]).expand(len(inputs["input_ids"]), -1)
    elif "mm_token_type_ids" not in inputs:  # Qwen counts in three directions, from the types
        ones = int(family.model_type == "paligemma")
        more["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1 + ones).clamp(min=0)
    with torch.no_grad():
        found: Tensor = owner(**inputs, **more).logits
    return found


def pixels(inputs: Inputs) -> str:
    return "pixel_values" if "pixel_values" in inputs else "pixel_values_videos"


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_runs_and_reads_its_images(name: str, kind: str) -> None:
    family, inputs = FAMILIES[name], batch(name, kind)
    assert model(name).config.model_type == family.model_type
    before = logits(family, model(name), inputs)
    assert before.isfinite().all()
    assert before.dtype == torch.float64
    other = Inputs(inputs)
    other[pixels(inputs)] = -inputs[pixels(inputs)]
    change = (logits(family, model(name), other)[:, -1] - before[:, -1]).abs().amax(-1)
    assert (change > 0.1).all()


@pytest.mark.parametrize(("name", "kind"), KINDS)
@torch.no_grad()
def test_generates_what_forward_says(name: str, kind: str) -> None:
    family, inputs = FAMILIES[name], batch(name, kind)
    out = model(name).generate(**inputs, max_new_tokens=3, do_sample=False)
    prompt = 1 if family.seq2seq else inputs["input_ids"].shape[1]
    assert out.shape == (3, prompt + 3)
    if not family.seq2seq:
        assert torch.equal(out[:, prompt], logits(family, model(name), inputs)[:, -1].argmax(-1))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_prompt_alone_equals_its_row(name: str, kind: str, side: str) -> None:
    family, inputs = FAMILIES[name], batch(name, kind, side)
    together = logits(family, model(name), inputs)
    for row in range(len(together)):
        alone = family.single(inputs, row)
        assert alone["attention_mask"].all()
        own = slice(None) if family.seq2seq else inputs["attention_mask"][row].bool()
        torch.testing.assert_close(
            logits(family, model(name), alone)[0], together[row, own], rtol=0, atol=ROUNDED.get(name, EXACT)
        )


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.several])
def test_prompts_with_and_without_images_together(name: str) -> None:
    family = FAMILIES[name]
    inputs = family.inputs(model(name), images=(1, 0, 2))
    together = logits(family, model(name), inputs)
    for row in range(len(together)):
        alone = logits(family, model(name), family.single(inputs, row))[0]
        own = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(alone, together[row, own], rtol=0, atol=ROUNDED.get(name, EXACT))


@pytest.mark.parametrize("name", FAMILIES)
def test_eager_attention_says_the_same(name: str) -> None:
    family = FAMILIES[name]
    eager = family.make(attention="eager")
    assert all(part._attn_implementation == "eager" for part in parts(eager.config))
    inputs = family.single(batch(name), 0)  # a row of padding is not a number in eager fp64
    torch.testing.assert_close(logits(family, eager, inputs), logits(family, model(name), inputs), rtol=0, atol=1e-3)


def parts(config: Any) -> list[Any]:
    return [getattr(config, key) for key in ("vision_config", "text_config", "qformer_config") if hasattr(config, key)]
