"""What stands beside a method: resize, rounded counts, all the machinery with nothing saved, weights in int8; and the profile."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import atp
import invariants
import tiny
from atp.adapters import adapt
from atp.bench.clock import HostClock
from atp.bench.execute import case, steps
from atp.bench.hooks import HookTimer
from atp.bench.measure import generate
from atp.bench.profiling import gaps, profile
from atp.bench.quantise import quantised, weight_bytes
from atp.bench.settings import Settings
from atp.bench.sides import Side, sides
from atp.bench.subject import Subject
from atp.bench.table import lines
from atp.errors import BadInput, UnreachableBudget
from families import FAMILIES
from families.processors import PROCESSORS

ROUNDED = 5e-4
"""Ours: logits of up to 6 in float32; what quantising changes is a thousand times as much, see below."""


def subject(name: str = "llava-clip-llama", **settings: Any) -> Subject:
    model = FAMILIES[name].make(dtype=torch.float32)
    asked = Settings(arch=name, text=10, rounds=1, **settings)
    return Subject(name, adapt(model), None, asked, adapt(quantised(model, asked.quant)) if asked.quant else None)


def names(own: Subject) -> list[str]:
    inputs = own.inputs(1)
    return [side.name for side in sides(own, own.workload(inputs, 2))[0]]


def test_every_side_that_is_asked_for() -> None:
    own = subject(methods=("random",), budgets=(0.8,), compare=("resize",), keep_all=True, round_to=8)
    found = names(own)
    assert found == ["unpruned", "random 0.8", "random 0.8 /8", "resize 0.8", "random keep-all"]
    told: list[str] = []
    made = case(own, 1, 2, told.append)
    assert len(told) == len(found) * 3 == steps(own.settings)  # warm-up, timed, memory
    assert [side["side"] for side in made["sides"]] == found
    share = {side["side"]: side["flops_share"] for side in made["sides"][1:]}
    assert share["random 0.8 /8"] < share["random 0.8"] <= 0.8 < 0.9 < share["random keep-all"] < 1


def test_a_method_with_options_is_a_side_of_its_own() -> None:
    own = subject(methods=("atp", "atp:sites=vision:2"), budgets=(0.9,), compare=())
    found = sides(own, own.workload(own.inputs(1), 2))[0]
    assert [side.name for side in found] == ["unpruned", "atp 0.9", "atp:sites=vision:2 0.9"]
    plans = [side.plan for side in found[1:]]
    assert [str(step.site) for step in plans[1].steps] == ["vision:2"] != [str(step.site) for step in plans[0].steps]


def test_a_method_as_its_authors_run_it() -> None:
    """FastV reads written attention maps: the language model's alone attends eagerly, while that side runs."""
    own = subject(methods=("random",), budgets=(0.8,), compare=("fastv",), eager=("fastv",))
    model: Any = own.adapter.model
    attending: list[tuple[str, str]] = []
    layer = adapt(model).language.layers[0]
    hook = layer.register_forward_pre_hook(
        lambda *given: attending.append(
            (model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation)
        )
    )
    told: list[str] = []
    made = case(own, 1, 1, told.append)
    hook.remove()
    assert [side["side"] for side in made["sides"]] == ["unpruned", "random 0.8", "fastv 0.8", "fastv 0.8, eager"]
    assert len(told) == steps(own.settings)
    assert attending == ([("sdpa", "sdpa")] * 3 + [("eager", "sdpa")]) * 3
    with pytest.raises(BadInput, match="--eager fastv is measured beside the same method; add it: --compare fastv"):
        Settings(eager=("fastv",))


def test_compared_methods_alone_do_not_hide_an_error() -> None:
    own = subject(methods=("fastv",), budgets=(0.2,), compare=("resize",))
    with pytest.raises(UnreachableBudget, match="fastv"):
        names(own)
    assert "resize 0.9" in names(subject(methods=("random",), budgets=(0.9,), compare=("resize",)))


def test_resize_of_tiles_is_fewer_of_them() -> None:
    own = subject("smolvlm", methods=("random",), budgets=(0.6,), compare=("resize",), tiles=4)
    made = case(own, 1, 2, lambda words: None)
    assert made["tiles"] == {"resize 0.6": 2} and made["images"] == 4
    side = made["sides"][-1]
    assert side["side"] == "resize 0.6" and "plan" not in side and 0.4 < side["flops_share"] <= 0.6
    assert side["kv_bytes"] < made["sides"][0]["kv_bytes"]
    assert side["gains"]["end to end"]["ideal"] == pytest.approx(1 / side["flops_share"])
    one = subject("smolvlm", methods=("random",), budgets=(0.8,), compare=("resize",), tiles=1)
    inputs = one.inputs(1)
    found, left_out = sides(one, one.workload(inputs, 2))
    assert [side.name for side in found] == ["unpruned", "random 0.8"] and "smaller images" in left_out["resize 0.8"]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_resize_of_images_of_any_size_is_a_smaller_grid(name: str) -> None:
    own = subject(name, methods=("random",), budgets=(0.5,), compare=("resize",))
    made = case(own, 1, 2, lambda words: None)
    (whole, grid), side = made["grids"]["resize 0.5"], made["sides"][-1]
    assert tuple(whole) == own.adapter.grid and 0 < grid[0] == grid[1] < whole[0]
    assert side["side"] == "resize 0.5" and "plan" not in side and 0.4 < side["flops_share"] <= 0.5
    assert own.inputs(1, None, grid)["input_ids"].shape[1] - own.settings.text == grid[0] * grid[1]
    assert side["kv_bytes"] < 0.7 * made["sides"][0]["kv_bytes"]
    machine = {"torch": "2", "threads": 1, "cores": 2, "vectors": "", "load": None}
    told = lines({"subject": name, "settings": {"arch": name}, "machine": machine, "cases": [made], "rule": ""})
    assert f"resize 0.5: a smaller image, {grid[0]} x {grid[1]} visual tokens instead of 32 x 32" in list(told)


@pytest.mark.parametrize("name", ["llava-clip-llama", "smolvlm", "blip-2-opt"])
def test_keep_all_leaves_one_out_at_each_site(name: str) -> None:
    own = subject(name, methods=("random",), budgets=(0.9,), keep_all=True)
    inputs = own.inputs(1)
    side = sides(own, own.workload(inputs, 2))[0][-1]
    assert side.plan is not None and side.name == "random keep-all"
    sample = generate(own, inputs, side, 2, HostClock())
    assert sample.report is not None and sample.hooks["prefill"] > 0
    for stack, layers in sample.report.kept.items():
        counts = [rows[0] for rows in layers.values()]
        entered = own.adapter.shape.patches // own.adapter.shape.group if stack == "vision" else max(counts) + 1
        assert counts == [entered - place for place in range(1, len(counts) + 1)]


def test_hook_times_are_of_hooks_only() -> None:
    """A hook of a stranger is not timed, and nothing stays on the model."""
    model = FAMILIES["llava-clip-llama"].make(dtype=torch.float32)
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, args: calls.append(1))
    own = Subject("tiny", adapt(model), None, Settings(arch="tiny", text=10))
    timer = HookTimer(model, None)
    strangers = list(model._forward_pre_hooks.values())
    timer.wrap()
    assert list(model._forward_pre_hooks.values()) == strangers
    plan = atp.Plan("random", (atp.Step(atp.Site("language", 1), 0.5),))
    generate(own, own.inputs(1), Side("random", plan), 2, HostClock())
    assert len(calls) == 2 and timer.seconds == {}
    assert list(model._forward_pre_hooks.values()) == strangers
    handle.remove()


def test_profile_names_our_hooks(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    told = profile(subject(methods=("random",), budgets=(0.8,)), 1, file)
    events = json.loads(file.read_text())["traceEvents"]
    own = [event for event in events if str(event.get("name", "")).startswith("atp: ")]
    assert len(own) == told["hooks"] > 0 and told["side"] == "random 0.8"
    assert 0 < told["own_share"] < 1 and told["own_share"] == told["own_seconds"] / told["seconds"]
    assert 0 < told["idle_seconds"] < sum(event["dur"] for event in own) / 1e6
    assert told["waits"] <= 1 < told["sites"]  # where the visual tokens stand


def test_gaps_are_what_no_operator_fills() -> None:
    """10 us of a hook, of which operators fill 2 to 5 (one inside the other) and 7 to 9: 5 us are left; 3 of another's 3."""
    spans = (
        ("user_annotation", "atp: enter", 100, 10), ("cpu_op", "aten::cat", 102, 3), ("cpu_op", "aten::copy_", 103, 1),
        ("cpu_op", "aten::add", 107, 2), ("cpu_op", "aten::mm", 110, 50), ("user_annotation", "atp: leave", 170, 3),
        ("user_annotation", "theirs", 180, 9),
    )  # fmt: skip
    events = [{"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur} for cat, name, ts, dur in spans]
    told = gaps([*events, {"ph": "s", "name": "flow"}])
    assert told == {"hooks": 2, "idle_seconds": pytest.approx(8e-6), "most_idle": "atp: enter"}


# --- weights in int8 and int4 -------------------------------------------------------------------------------------------------


KINDS = {"int8": "Int8Tensor", "int4": "Int4OpaqueTensor"}


@pytest.fixture(params=KINDS)
def small(request: pytest.FixtureRequest) -> nn.Module:
    pytest.importorskip("torchao")
    made = quantised(plain(), request.param)
    made.quant = request.param
    return made


def plain() -> Any:
    """The tiny model in the widest precision that torchao quantises."""
    return tiny.model().float()


def test_quantising_leaves_the_model_and_its_classes(small: nn.Module) -> None:
    model, again = plain(), plain()
    assert [type(module) for module in small.modules()] == [type(module) for module in model.modules()]
    for (name, weight), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other), name
    linear = [module for module in small.modules() if isinstance(module, nn.Linear)]
    there = [module for module in linear if type(module.weight).__name__ == KINDS[small.quant]]
    if small.quant == "int8":
        assert there == linear
    else:  # rows of 32 weights in sixteens, and none of the tower's
        text = [
            module for module in (*adapt(small).text.modules(), small.get_output_embeddings()) if isinstance(module, nn.Linear)
        ]
        assert there == [module for module in text if module.in_features % 32 == 0] and len(there) > 20
    dense = sum(module.weight.numel() for module in there)
    assert weight_bytes(model) - weight_bytes(small) > 0.7 * dense * (4 - 1)  # float32 before, scales beside


@pytest.mark.parametrize("method", ["atp", "random", "fastv"])
def test_quantised_then_pruned_equals_its_masked_reference(small: nn.Module, method: str) -> None:
    run = invariants.equals_reference(small, tiny.prompts(small, images=(1, 2, 1)), tiny.plan(method), tolerance=ROUNDED)
    assert run.dropped > 0


def test_quantising_changes_more_than_the_tolerance(small: nn.Module) -> None:
    """So the reference above is that of the quantised model, not of the model itself."""
    inputs = tiny.prompts(small)
    with torch.no_grad():
        one, two = small(**inputs).logits, plain()(**inputs).logits
    assert (one - two).abs().max() > 1000 * ROUNDED


@pytest.mark.parametrize("quant", KINDS)
def test_all_sides_once_more_on_the_copy(quant: str) -> None:
    pytest.importorskip("torchao")
    own = subject(methods=("random",), budgets=(0.8,), quant=quant)
    made = case(own, 1, 2, lambda words: None)
    assert [side["side"] for side in made["sides"]] == ["unpruned", "random 0.8", quant, f"{quant} + random 0.8"]
    shares = [side.get("flops_share") for side in made["sides"]]
    assert shares[2] == 1.0 and shares[1] == shares[3] < 0.8
    assert made["quantised_bytes"] < made["weight_bytes"]
    assert steps(own.settings) == 4 * 3


def test_without_torchao_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    for quant in KINDS:
        with pytest.raises(BadInput, match=r"pip install 'atp-vlm\[quant\]'"):
            quantised(tiny.model(), quant)


def test_int4_where_no_layer_fits() -> None:
    pytest.importorskip("torchao")
    model = plain()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.in_features += 1  # as the kernels see it
    with pytest.raises(BadInput, match="a multiple of 32 weights, the language model has none; use --quant int8"):
        quantised(model, "int4")


def test_tiles_leave_before_the_tower_and_patches_in_it() -> None:
    """By the default method, which merges: what merged patches weigh travels on past tiles that did not run."""
    own = subject("smolvlm", methods=("atp",), budgets=(0.5,), tiles=5, keep_tiles=0.5)
    made = case(own, 1, 2, lambda words: None)
    side = made["sides"][1]
    assert side["side"] == "atp 0.5, tiles 0.5" and side["plan"]["tiles"] == 0.5
    assert 0.3 < side["flops_share"] <= 0.5 and side["kv_bytes"] < made["sides"][0]["kv_bytes"]


@pytest.mark.parametrize(("name", "budget"), [("qwen2_vl", 0.5), ("internvl", 0.5)])
def test_resize_of_a_picture_is_a_smaller_picture(name: str, budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loaded model, whose processor decides what becomes of it; FLOPs are those that the model itself takes for it."""
    monkeypatch.setattr("atp.bench.subject.SCENE", 48)
    monkeypatch.setattr("atp.bench.subject.QUESTION", "how many dogs ?")
    model, processor = FAMILIES[name].make(dtype=torch.float32), PROCESSORS[name]()
    asked = Settings(model=name, rounds=1, methods=("random",), budgets=(budget,), compare=("resize",))
    own = Subject(name, adapt(model), processor, asked)
    made = case(own, 1, 2, lambda words: None)
    scale, tokens, whole = made["scales"][f"resize {budget:g}"]
    side, base = made["sides"][-1], made["sides"][0]
    assert side["side"] == f"resize {budget:g}" and 0 < scale < 1 and tokens < whole == own.inputs(1)["input_ids"].shape[1]
    assert own.inputs(1, scale=scale)["input_ids"].shape[1] == tokens and side["kv_bytes"] < base["kv_bytes"]
    assert 0.1 < side["flops_share"] <= budget
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.generate(**own.inputs(1, scale=scale), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert counter.get_total_flops() == pytest.approx(side["flops"]["total"])


def test_a_processor_that_makes_all_pictures_alike_has_no_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atp.bench.subject.SCENE", 48)
    monkeypatch.setattr("atp.bench.subject.QUESTION", "how many dogs ?")
    model = FAMILIES["idefics3"].make(dtype=torch.float32)
    asked = Settings(model="idefics3", methods=("random",), budgets=(0.8,), compare=("resize",))
    own = Subject("idefics3", adapt(model), PROCESSORS["idefics3"](), asked)
    found, left_out = sides(own, own.workload(own.inputs(1), 2))
    assert [side.name for side in found] == ["unpruned", "random 0.8"] and "smaller images" in left_out["resize 0.8"]
