"""What our hooks send to the device while a model decodes, and how often they wait for it: counted, not timed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from atp.bench.counting import Counted
from atp.engine import prune
from atp.plan import Plan
from conformance.test_families import plan_of
from families import FAMILIES

NAMES = ("llava-clip-llama", "llava-siglip-qwen2", "smolvlm", "internvl", "paligemma2", "gemma3", "blip-2-opt")
SILENT = (("llava-clip-llama", 1), ("llava-clip-llama", 2), ("llava-siglip-qwen2", 2), ("smolvlm", 1), ("internvl", 1))
"""Families that decode without a mask; the others make one at every step, whose columns are cut."""


def inside(model: Any, plan: Plan | None) -> Any:
    """The block of a plan, or none."""
    return contextlib.nullcontext() if plan is None else prune(model, plan=plan)


def adaptive(plan: Plan) -> Plan:
    """The same sites with counts by threshold."""
    return replace(plan, steps=tuple(replace(step, threshold=0.9) for step in plan.steps))


def decoded(model: Any, inputs: dict[str, Tensor], plan: Plan | None) -> Counter[str]:
    """The operators of the second decode step, and its waits."""
    given, steps = dict(inputs), Counted()
    mask = given["attention_mask"]
    with torch.no_grad(), inside(model, plan):
        cache = model(**given, use_cache=True).past_key_values
        for counted in (Counted(), steps):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            with counted.watching():
                model(input_ids=mask.new_full((len(mask), 1), 9), attention_mask=mask, past_key_values=cache)
    return steps.operators + Counter(waits=steps.waits)


def waits(model: Any, inputs: dict[str, Tensor], plan: Plan | None) -> int:
    """How often the host waits in one prefill."""
    with torch.no_grad(), inside(model, plan), Counted().watching() as counted:
        model(**inputs, use_cache=True)
    return counted.waits


@pytest.mark.parametrize(("name", "prompts"), SILENT)
def test_a_decode_step_has_no_tensor_of_ours(name: str, prompts: int) -> None:
    """Prompts of one length under fixed counts: not one operator or wait more than in the unhooked model."""
    model = FAMILIES[name].make(dtype=torch.float32)
    inputs = FAMILIES[name].inputs(model, texts=(6,) * prompts, images=(1,) * prompts)
    assert decoded(model, inputs, plan_of(model, "atp")) == decoded(model, inputs, None)


def test_ragged_prompts_cost_one_mask_a_site() -> None:
    """Padding must be masked; layers between two sites share the mask, so a step costs the same in 5 layers and in 9."""
    costs = []
    for layers in (5, 9):
        model = tiny.make(dtype=torch.float32, layers=layers)
        inputs = tiny.prompts(model, (6, 9))
        plan = tiny.plan("random")
        costs.append(decoded(model, inputs, plan) - decoded(model, inputs, None))
    assert costs[0] == costs[1] and sum(costs[0].values()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_site_does_not_wait_and_an_adaptive_one_waits_once(name: str) -> None:
    """Where the visual tokens of a prompt stand is read once, whatever the plan."""
    model = FAMILIES[name].make(dtype=torch.float32)
    inputs = FAMILIES[name].inputs(model, texts=(6, 6), images=(1, 1))
    plan = plan_of(model, "atp")
    whole, fixed, counted = (waits(model, inputs, one) for one in (None, plan, adaptive(plan)))
    assert fixed - whole <= 1
    assert counted - fixed == len(plan.steps) > 1


WAYS: Sequence[tuple[str, Callable[[Tensor], Any], int]] = (
    ("tolist", lambda t: t.tolist(), 1),
    ("item", lambda t: t[0].item(), 1),
    ("bool", lambda t: bool((t > 0).any()), 1),
    ("nonzero", lambda t: t.nonzero(), 1),
    ("mask", lambda t: t[t > 0], 1),
    ("repeats", lambda t: t.repeat_interleave(torch.tensor([1, 2, 3])), 1),
    ("known repeats", lambda t: t.repeat_interleave(torch.tensor([1, 2, 3]), output_size=6), 0),
    ("arithmetic", lambda t: (t + 1).sum(), 0),
    ("places", lambda t: t[torch.tensor([0, 1])], 0),
)


@pytest.mark.parametrize(("name", "way", "times"), WAYS, ids=[name for name, _, _ in WAYS])
def test_what_counts_as_waiting(name: str, way: Callable[[Tensor], Any], times: int) -> None:
    values = torch.ones(3)
    with Counted().watching() as counted:
        way(values)
    assert counted.waits == times
