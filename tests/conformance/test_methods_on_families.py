"""Every method on every family: it prunes within its budget, or refuses in words that say what to do instead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import invariants
import tiny
from atp.adapters import adapt
from atp.budget.cost import Workload
from atp.engine import prune
from atp.errors import InvalidPlan, UnreachableBudget
from atp.methods import METHODS
from atp.plan import Plan, Site, Step
from conformance.test_families import SERVED, model_of, said
from gate import parts

NAMES = [name for name in METHODS.names() if not METHODS.get(name).trained and name != "none"]
REFUSALS = (
    r"does not take smaller images .*; use method='uniform'",
    r"keys of its cross-attention layers; prune the tower only, or use method='atp'",
    r"got no attention of the tower: .* use alpha=1",
    r"lowest reachable is 1\.00; use budget=1\.00 or ",
)


def within(model: Any, family: Any, inputs: Any, name: str, budget: float) -> Any:
    """Answer within the budget, or within the lowest one that the method can reach; the refusal's words, where there is one."""
    try:
        with prune(model, method=name, budget=budget) as run:
            _, logits = said(model, family, inputs, steps=2)
    except UnreachableBudget as error:
        return str(error) if error.lowest >= 1 else within(model, family, inputs, name, error.lowest)
    except InvalidPlan as error:
        return str(error)
    assert logits.isfinite().all()
    return run


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("name", NAMES)
def test_it_prunes_or_says_why_not(family: str, name: str) -> None:
    model, served = model_of(family), SERVED[family]
    run = within(model, served, served.inputs(model), name, 0.8)
    if isinstance(run, str):
        assert any(re.search(words, run) for words in REFUSALS), run
        assert name == "resize" or adapt(model).connects == "keys" or adapt(model).shape.cross is not None
        return
    assert run.dropped > 0
    report = run.report()
    assert report.flops.total < report.flops_unpruned.total
    kept = {stack for stack, layers in report.kept.items() if layers}
    assert kept & set(METHODS.get(name).stacks)


@pytest.mark.parametrize("kind", ["clip-llama", "siglip-qwen2"])
@pytest.mark.parametrize("name", NAMES)
def test_the_solved_budget_is_met_as_torch_counts_it(kind: str, name: str) -> None:
    """Selection included: the plan is solved for what really runs, so it may not spend more than was asked."""
    model = tiny.model(kind)
    inputs = tiny.prompts(model, (30,))
    work, budget = Workload(1, 32, 3), 0.85
    try:
        with prune(model, method=name, budget=budget, workload=work) as run:
            torch_says = counted(model, inputs)
    except UnreachableBudget as error:
        budget = error.lowest
        with prune(model, method=name, budget=budget, workload=work) as run:
            torch_says = counted(model, inputs)
    report = run.report()
    assert report.flops.total == pytest.approx(torch_says, rel=0.01)
    assert report.ratio <= budget * 1.01


def counted(model: Any, inputs: Any) -> int:
    """FLOPs of three tokens by torch's counter."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    total: int = counter.get_total_flops()
    return total


@pytest.mark.parametrize("method", ["gate", "lvpruning"])
def test_trained_modules_with_their_weights(method: str, tmp_path: Path) -> None:
    model = tiny.model()
    sites = (Site("vision", 2), Site("language", 2)) if method == "gate" else (Site("language", 2),)
    path = parts.written(tmp_path / "w.safetensors", method, model, sites)
    plan = Plan(method, tuple(Step(site, 0.5) for site in sites), {"weights": str(path)})
    inputs = tiny.prompts(model, images=(1, 2, 1))
    assert invariants.equals_reference(model, inputs, plan, steps=3).dropped > 0
    invariants.batch_equals_singles(model, inputs, plan, (1, 2, 1))
    invariants.counted_flops_are_true(model, tiny.prompts(model, (12,)), plan)


@pytest.mark.parametrize(("name", "site"), [("prumerge", "vision:0"), ("dart", "language:0")])
def test_keys_need_a_layer_before_the_site(name: str, site: str) -> None:
    plan = Plan(name, (Step(Site.parse(site), 0.5),))
    says = f"method '{name}' scores with attention or keys of the layer before a site, so {site} is too early; use {site[:-1]}1"
    with pytest.raises(InvalidPlan, match=says), prune(tiny.model(), plan=plan):
        pass
