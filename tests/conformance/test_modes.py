"""Ways of calling a pruned model that must agree with each other, over every family that has an adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atp.adapters import adapt
from atp.engine import prune
from atp.plan import Plan, Site, Step
from conformance.test_families import SCATTERED, SERVED, model_of, plan_of, pruned
from families import Inputs
from families.base import WORDS


def counted(family: Any, model: Any, inputs: Any, start: int = 0) -> dict[str, Tensor]:
    """Positions from `start` on by the mask, as `generate` counts them: PaliGemma from 1, Qwen in three directions."""
    if "mm_token_type_ids" in inputs:
        known = ("input_ids", "image_grid_thw", "attention_mask", "mm_token_type_ids")
        return {"position_ids": model.model.get_rope_index(**{key: inputs[key] for key in known})[0][..., start:]}
    first = int(family.model_type == "paligemma")
    return {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, start:] + first}


@pytest.mark.parametrize("name", SCATTERED)
@pytest.mark.parametrize("method", ["random", "fastv"])
def test_forward_says_what_generate_says(name: str, method: str) -> None:
    """`generate` encodes images before its first forward; a plain forward encodes them itself."""
    family, model = SERVED[name], model_of(name)
    inputs, plan = family.inputs(model), plan_of(model, method)
    if method == "fastv":
        plan = Plan(method, tuple(step for step in plan.steps if step.site.stack == "language"))
    _, want, _ = pruned(model, family, inputs, plan, steps=1)
    with torch.no_grad(), prune(model, plan=plan) as run:
        got = model(**inputs, **counted(family, model, inputs)).logits[:, -1]
    assert run.dropped > 0
    torch.testing.assert_close(got.to(want.dtype), want[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCATTERED)
def test_beams_keep_what_one_beam_keeps(name: str) -> None:
    family, model = SERVED[name], model_of(name)
    inputs, plan = family.inputs(model), plan_of(model, "atp", adaptive=adapt(model).vision.maskable)
    one = pruned(model, family, inputs, plan, steps=1)[2].trace.last("language")
    told = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    with prune(model, plan=plan) as run:
        batch = model.generate(**inputs, **told)
        two = run.trace.last("language")
        alone = [model.generate(**family.single(inputs, row), **told) for row in range(len(inputs["input_ids"]))]
    for record, wide in zip(one, two, strict=True):
        for row in range(len(inputs["input_ids"])):
            assert wide.kept[2 * row].tolist() == wide.kept[2 * row + 1].tolist() == record.kept[row].tolist()
    for row, single in enumerate(alone):
        assert batch.sequences[row, -4:].tolist() == single.sequences[0, -4:].tolist()
        assert (batch.sequences_scores[row] - single.sequences_scores[0]).abs() <= 1e-5


@pytest.mark.parametrize("name", SCATTERED)
def test_a_second_turn_on_the_cache_is_the_conversation_in_one_piece(name: str) -> None:
    """By a method that does not read the question, so that both keep the same."""
    family, model = SERVED[name], model_of(name)
    inputs, layers = family.inputs(model), adapt(model).shape.language.layers
    sites = (Site("vision", 1), Site("language", 1), Site("language", layers - 2))
    plan = Plan("uniform", tuple(Step(site, keep) for site, keep in zip(sites, (0.7, 0.5, 0.2), strict=True)))
    length, turn = inputs["input_ids"].shape[1], torch.arange(WORDS, WORDS + 5).expand(len(inputs["input_ids"]), -1)
    whole = Inputs(inputs)
    whole["input_ids"] = torch.cat([inputs["input_ids"], turn], 1)
    whole["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(turn)], 1)
    for kind in ("token_type_ids", "mm_token_type_ids"):
        if kind in inputs:  # in PaliGemma, 1 is the suffix, which is causal
            suffix = torch.full_like(turn, int(family.model_type == "paligemma"), dtype=inputs[kind].dtype)
            whole[kind] = torch.cat([inputs[kind], suffix], 1)
    with torch.no_grad(), prune(model, plan=plan) as run:
        want = model(**whole, **counted(family, model, whole)).logits[:, length:]
        first = model(**inputs, **counted(family, model, inputs), use_cache=True)
        if not hasattr(first, "past_key_values"):
            pytest.skip("its forward gives no cache")
        got = model(
            input_ids=turn, attention_mask=whole["attention_mask"], past_key_values=first.past_key_values,
            **counted(family, model, whole, length),
        ).logits  # fmt: skip
    assert run.dropped > 0
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
