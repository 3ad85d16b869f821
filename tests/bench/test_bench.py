"""`atp bench` on tiny models: what it writes, in which units and with which errors. No assertion is about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import atp
from atp.adapters import adapt
from atp.adapters.examples import MAKERS
from atp.bench import execute, subject
from atp.bench.clock import HostClock
from atp.bench.measure import generate
from atp.bench.settings import Settings
from atp.bench.sides import Side
from atp.bench.subject import Subject, check_room, explained
from atp.budget.cost import cache_bytes
from atp.cli import main
from atp.errors import BadInput
from families import FAMILIES

FEW = ["--rounds", "2", "--answer-tokens", "3", "--device", "cpu"]


def shell(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Run `atp bench`."""
    with pytest.raises(SystemExit) as left:
        main(["bench", *map(str, words)])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model of the true class stands for an architecture."""
    made = FAMILIES["llava-clip-llama"].make

    def small(name: str, device: str = "meta", depth: float = 1.0) -> Any:
        return made(dtype=torch.float32).to(device)

    monkeypatch.setattr(subject, "skeleton", small)


def test_json_has_every_case_and_side(capsys: pytest.CaptureFixture[str], model_dir: Path, tmp_path: Path) -> None:
    words = ["--model", model_dir, "--method", "random,resize", "--budget", "0.8,0.7", "--batch", "1,2", "--out", tmp_path]
    code, out, _ = shell(capsys, *words, *FEW, "--json")
    assert code == 0 and out.count("\n") == 1
    result = json.loads(out)
    assert result == json.loads((tmp_path / "bench.json").read_text())
    assert result["schema"] == 1 and "noise" in result["rule"] and result["settings"]["batches"] == [1, 2]
    assert [case["batch"] for case in result["cases"]] == [1, 2]
    for case in result["cases"]:
        assert case["answer"] == 3 and case["rounds"] == 2 and case["visual"] == 36 and case["left_out"] == {}
        base, *others = case["sides"]
        assert base["side"] == "unpruned"
        assert [side["side"] for side in others] == ["random 0.8", "random 0.7", "resize 0.8", "resize 0.7"]
        for side in others:
            assert len(side["totals"]) == 2
            assert side["flops_share"] == pytest.approx(side["flops"]["total"] / side["flops_unpruned"]["total"])
            assert 0.3 < side["flops_share"] <= 0.8
            assert side["kv_bytes"] < base["kv_bytes"]
            whole = side["gains"]["end to end"]
            assert whole["ideal"] == pytest.approx(1 / side["flops_share"])
            assert whole["realised"] == pytest.approx(whole["measured"]["median"] / whole["ideal"])
            assert side["verdict"] == "too few rounds (2)"
    one, two = result["cases"]
    assert two["sides"][0]["kv_bytes"] == 2 * one["sides"][0]["kv_bytes"]


def test_text_and_plot(capsys: pytest.CaptureFixture[str], model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = shell(capsys, "--model", model_dir, "--method", "random", "--budget", "0.7", "--out", tmp_path, *FEW)
    assert code == 0
    for words in ("unpruned", "random 0.7", "vision+prefill", "end to end", "realised", "too few rounds", "rule: noise"):
        assert words in out
    drawn = (tmp_path / "bench.svg").read_text()
    assert drawn.startswith("<svg") and "random 0.7" in drawn and "quartiles" in drawn


def test_without_matplotlib_there_is_no_plot(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = {"subject": "x", "cases": []}
    assert [file.name for file in execute.write(result, tmp_path)] == ["bench.json"]


def test_an_architecture_needs_no_processor(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: None) -> None:
    words = ["--arch", "tiny", "--text-tokens", "10", "--budget", "0.7", "--dtype", "bf16", "--tiles", "2", "--out", tmp_path]
    code, out, _ = shell(capsys, *words, *FEW, "--json")
    assert code == 0
    case = json.loads(out)["cases"][0]
    assert (case["dtype"], case["images"], case["text"]) == ("bfloat16", 2, 10)
    assert case["visual"] == 2 * adapt(FAMILIES["llava-clip-llama"].make()).shape.visual
    assert case["sides"][1]["flops_share"] <= 0.7


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.model_type in MAKERS])
def test_parts_of_every_family(name: str) -> None:
    model = FAMILIES[name].make(dtype=torch.float32)
    if getattr(model.config.vision_config, "model_type", "") == "pixtral":
        return  # its inputs are its processor's alone: tests/adapters/test_examples.py
    own = Subject(name, adapt(model), None, Settings(arch=name, text=10))
    inputs = own.inputs(2)
    plan = atp.Plan("random", (atp.Step(atp.Site("vision", 2), 0.5),))
    for side in (Side("unpruned"), Side("random", plan)):
        one, many = (generate(own, inputs, side, answer, HostClock()) for answer in (1, 3))
        assert one.seconds["decode"] == 0.0
        for sample in (one, many):
            parts = {part: took for part, took in sample.seconds.items() if part != "total"}
            assert sum(parts.values()) == pytest.approx(sample.seconds["total"])
            assert parts["vision"] > 0 and parts["prefill"] > 0
            assert set(sample.hooks) == (set() if side.plan is None else {"vision", "prefill"} | set(sample.hooks))
            assert sample.selection <= sum(sample.hooks.values()) <= parts["vision"] + parts["prefill"] + parts["decode"]
        assert many.seconds["decode"] > 0
        assert (many.report is None) == (side.plan is None)
        assert many.selection == (0.0 if many.report is None else many.report.seconds)
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_cache_bytes_are_those_of_the_formula() -> None:
    model = FAMILIES["llava-clip-llama"].make(dtype=torch.float32)
    own = Subject("tiny", adapt(model), None, Settings(arch="tiny", text=10))
    inputs = own.inputs(1)
    workload = own.workload(inputs, 4)
    sample = generate(own, inputs, Side("unpruned"), 4, HostClock(), weigh=True)
    assert sample.cache == cache_bytes(own.adapter.shape, workload, value_bytes=4)
    assert sample.peak is None or sample.peak > 4 * sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--arch", "smolvlm-256n"], "Did you mean 'smolvlm-256m'?"),
        (["--arch", "smolvlm-256m", "--model", "x/y"], "give one of them"),
        (["--arch", "smolvlm-256m", "--image", "cat.png"], "leave it away"),
        (["--budget", "0.01"], "the lowest reachable is"),
        (["--budget", "1"], "--budget takes shares"),
        (["--budget", "much"], "got 'much'"),
        (["--batch", "1,0"], "--batch takes whole numbers"),
        (["--method", "atpp"], "Did you mean 'atp'?"),
        (["--method", " , "], "--method is empty"),
        (["--dtype", "bf17"], "Did you mean 'bfloat16'?"),
        (["--device", "gpux"], "cannot use the device 'gpux'"),
        (["--rounds", "0"], "--rounds is at least 1"),
        (["--image", "nowhere.png"], "no such image"),
        (["--quant", "int3"], "--quant is int8 or int4, got 'int3'"),
        (["--round-to", "1"], "--round-to is at least 2"),
        (["--compare", "resized"], "Did you mean 'resize'?"),
        (["--depth", "0.5"], "--depth builds an --arch with fewer layers"),
        (["--arch", "blip2-opt-2.7b", "--depth", "2"], "share of the layers in (0, 1], got 2"),
        (["--arch", "qwen2.5-vl-7b", "--depth", "0.5"], "names layers up to 31"),
        (["--trace", "/proc/nowhere/trace.json"], "choose another folder with --trace"),
        (["--out", "/proc/nowhere"], "choose another folder"),
    ],
)
def test_errors_are_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], model_dir: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    given = words if "--out" in words else [*words, "--out", str(tmp_path)]
    code, out, err = shell(capsys, *(given if "--arch" in words else ["--model", model_dir, *given]))
    assert (code, out) == (2, "")
    assert says in err.strip().splitlines()[-1] and "Traceback" not in err


def test_one_budget_out_of_reach_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], model_dir: Path, tmp_path: Path
) -> None:
    words = ["--model", model_dir, "--method", "random", "--budget", "0.01,0.8", "--out", tmp_path]
    code, out, _ = shell(capsys, *words, *FEW)
    assert code == 0
    assert "random 0.01 left out" in out and "lowest reachable" in out


def test_no_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Settings(arch="smolvlm-256m")
    with (
        pytest.raises(BadInput, match=r"out of memory on cpu while generating at batch 16 .*; use --batch 8"),
        explained("generating", asked, "cpu", 16),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    with pytest.raises(BadInput, match="another --device"), explained("generating", asked, "cpu", 1):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
    with pytest.raises(RuntimeError, match="something else"), explained("generating", asked, "cpu", 1):
        raise RuntimeError("something else")
    monkeypatch.setattr(subject.memory, "free", lambda device: 10**8)
    with pytest.raises(BadInput, match=r"needs 0\.6 GB on cpu, 0\.1 GB are free"):
        check_room("smolvlm-256m", torch.device("cpu"), torch.bfloat16)


def test_a_kill_loses_one_case_only(model_dir: Path, tmp_path: Path) -> None:
    asked = Settings(model=str(model_dir), methods=("random",), budgets=(0.8,), answers=(1, 2), devices=("cpu",), rounds=1)
    seen: list[int] = []
    result = execute.bench(asked, on_case=lambda made: seen.append(len(made["cases"])))
    assert seen == [1, 2] == [case["answer"] for case in result["cases"]]


def test_light() -> None:
    """The command line knows the command without importing what it needs."""
    code = "import atp.bench.command, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    source = str(Path(atp.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": source})
