"""Hiding a token while training does to the others what removing it does in use, and its gradient is the true one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from atp.adapters import adapt
from atp.engine import prune
from atp.errors import UnsupportedModel
from atp.gate import hiding
from atp.gate.hiding import check, hidden
from atp.gate.trainees import GateTrainee
from atp.methods.gate import Gate
from atp.plan import Plan, Site, Step
from atp.tokens import Tokens
from conformance.test_families import SERVED, model_of, plan_of
from gate import parts

REFUSED = {
    "keys of its cross-attention layers": ("idefics", "mllama"),
    "rows of an encoder": ("blip-2", "instructblip"),
    "its connector looks at patches as keys": ("blip-2", "instructblip", "idefics2"),
    "its layers take no mask": ("internvl",),
}


def trainee_of(path: Path, shares: dict[str, float]) -> GateTrainee:
    """What would be trained, with the modules of a file."""
    gate = Gate(str(path))
    return GateTrainee(torch.nn.ModuleDict(gate._read[1]), {}, shares)


def last_logits(model: Any, inputs: Any) -> Tensor:
    """Of the last prompt token."""
    with torch.no_grad():
        found: Tensor = model(**inputs, use_cache=False).logits[:, -1]
    return found


def refusal(call: Callable[[], object]) -> str:
    """The words of `UnsupportedModel`, or nothing."""
    try:
        call()
    except UnsupportedModel as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", SERVED)
def test_hidden_is_removed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of a pruned call, to 1e-5, from a call in which nothing was removed; every family, or its refusal."""
    monkeypatch.setattr(hiding, "EPS", 1e-30)
    model, family = model_of(name), SERVED[name]
    adapter, inputs = adapt(model), family.inputs(model)
    steps = plan_of(model, "gate").steps
    says = refusal(lambda: check(adapter, [step.site for step in steps]))
    if says:
        assert any(why in says and family.model_type in kinds for why, kinds in REFUSED.items()), says
        steps = tuple(step for step in steps if step.site.stack == "language")
        again = refusal(lambda: check(adapter, [step.site for step in steps]))
        if again:
            assert "method='atp'" in again
            return
    sites = [step.site for step in steps]
    path = parts.written(tmp_path / "gate.safetensors", "gate", model, sites)
    with prune(model, plan=Plan("gate", steps, {"weights": str(path)})) as run:
        want = last_logits(model, inputs)
    assert run.dropped > 0
    trainee = trainee_of(path, {str(step.site): step.keep for step in steps})
    plain = last_logits(model, inputs)
    with hidden(model, None, "gate", str(path), sites, trainee.hide) as state:
        got: list[Tensor] = []

        def call() -> None:
            with state.calls(0):
                got.append(last_logits(model, inputs))

        says = refusal(call)
        assert torch.equal(last_logits(model, inputs), plain), "the model's own calls changed"
    if says:
        assert "--sites language:2,language:4" in says
        return
    assert (want - plain).abs().max() > 1e-3
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-5)  # some families take softmax in float32
    assert torch.equal(last_logits(model, inputs), plain), "hooks were left behind"


SITES = (Site("vision", 2), Site("language", 1), Site("language", 3))


def test_gradients_are_differences(tmp_path: Path) -> None:
    """d loss / d decision by autograd = central difference, at every site, (the norms of these models run in float32)."""
    model, inputs = tiny.model(), tiny.prompts(tiny.model(), (6, 4))
    path = parts.written(tmp_path / "gate.safetensors", "gate", model, SITES)
    torch.manual_seed(0)
    shape = (2, tiny.PATCHES)
    weights = {str(site): (torch.rand(shape, dtype=torch.float64) * 0.3 + 0.6).requires_grad_() for site in SITES}

    def hide(tokens: Tokens) -> Tensor:
        return weights[f"{tokens.stack}:{tokens.layer}"]

    def loss() -> Tensor:
        with state.calls(0):
            found: Tensor = model(**inputs, use_cache=False).logits[:, -1].logsumexp(1).sum()
        return found

    with hidden(model, None, "gate", str(path), SITES, hide) as state:
        gradients = torch.autograd.grad(loss(), list(weights.values()))
        for found, given in zip(gradients, weights.values(), strict=True):
            assert found.abs().max() > 1e-6
            for place in ((0, 3), (1, 9)):
                with torch.no_grad():
                    given[place] += 5e-3
                    above = loss()
                    given[place] -= 1e-2
                    below = loss()
                    given[place] += 5e-3
                torch.testing.assert_close(found[place], (above - below) / 1e-2, rtol=5e-3, atol=5e-5)


def test_the_answer_does_not_decide(tmp_path: Path) -> None:
    """With the answer's tokens appended as guesses, the same tokens are hidden and the prompt's last logits are the same."""
    model, inputs = tiny.model(), tiny.prompts(tiny.model(), (6, 4))
    path = parts.written(tmp_path / "gate.safetensors", "gate", model, SITES)
    trainee = trainee_of(path, {str(site): share for site, share in zip(SITES, (0.7, 0.5, 0.3), strict=True)})
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[20, 30], [40, 50]])], 1)
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(2, 2, dtype=torch.int64)], 1)
    with torch.no_grad(), hidden(model, None, "gate", str(path), SITES, trainee.hide) as state:
        with state.calls(0):
            want = model(**inputs, use_cache=False).logits[:, -1]
        with state.calls(2):
            got = model(**longer, use_cache=False).logits[:, -3]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["gate"])
def test_untrained_is_atp_without_merging(method: str, tmp_path: Path) -> None:
    """Before any training the gate keeps what ATP keeps, in the tower and after it."""
    model, inputs = tiny.model(), tiny.prompts(tiny.model())
    steps = tuple(Step(site, share) for site, share in zip(SITES, (0.7, 0.5, 0.3), strict=True))
    path = parts.written(tmp_path / "gate.safetensors", method, model, SITES)
    gate = Gate(str(path))
    for module in gate._read[1].values():
        torch.nn.init.zeros_(module.out.weight)
    parts.files.save(path, gate.header, torch.nn.ModuleDict(gate._read[1]).state_dict())
    kept = []
    for plan in (Plan("atp", steps, {"merge": False}), Plan(method, steps, {"weights": str(path)})):
        with prune(model, plan=plan) as run, torch.no_grad():
            model(**inputs)
        kept.append([record.keep for record in run.trace.records])
    assert len(kept[0]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


@torch.no_grad()
def test_hidden_behind_a_merging_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With modules for the language model only, the tower merges in training as in use, and untrained all is as with atp."""
    monkeypatch.setattr(hiding, "EPS", 1e-30)
    model, inputs = tiny.model(), tiny.prompts(tiny.model(), (6, 4))
    tower, sites = [site for site in SITES if site.stack == "vision"], [site for site in SITES if site.stack != "vision"]
    path = parts.written(tmp_path / "gate.safetensors", "gate", model, sites)
    steps = tuple(Step(site, share) for site, share in zip(SITES, (0.7, 0.5, 0.3), strict=True))
    trainee = trainee_of(path, {str(step.site): step.keep for step in steps if step.site in sites})
    whole = last_logits(model, inputs)
    with prune(model, plan=Plan("gate", steps, {"weights": str(path)})):
        want = last_logits(model, inputs)
    with hidden(model, None, "gate", str(path), sites, trainee.hide, tower) as state:
        state.tower = {step.site: step.keep for step in steps if step.site in tower}
        with state.calls(0):
            got = last_logits(model, inputs)
        torch.testing.assert_close(last_logits(model, inputs), whole, rtol=0, atol=0)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    for module in trainee.modules.values():
        torch.nn.init.zeros_(module.out.weight)
        torch.nn.init.zeros_(module.out.bias)
    parts.files.save(path, Gate(str(path)).header, trainee.modules.state_dict())
    kept = []
    for plan in (Plan("atp", steps), Plan("gate", steps, {"weights": str(path)})):
        with prune(model, plan=plan) as run:
            last_logits(model, inputs)
        kept.append([record.keep for record in run.trace.records])
    assert len(kept[0]) == 3 and all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
