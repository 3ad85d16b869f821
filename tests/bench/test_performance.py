"""`docs/performance.md` is what `runs/performance.py` writes, and its tables say what the results say."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atp.bench.summary import summary
from bench.timings import sample

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "runs"))


def result(kind: str = "speed", **more: Any) -> dict[str, Any]:
    """A case of three sides: unpruned 6 + 4 + 2 s, pruned twice as fast but for decoding, and a smaller image."""
    samples = {
        "unpruned": [sample(6.0, 4.0, 2.0)] * 3,
        "atp 0.5": [sample(3.0, 2.0, 2.0, True)] * 3,
        "resize 0.5": [sample(2.0, 2.0, 2.0, True)] * 3,
    }
    case = {
        "device": "cpu", "dtype": "bfloat16", "batch": 1, "visual": 196, "patches": 196, "text": 5, "answer": 3,
        "weight_bytes": 10**9, "quantised_bytes": 3 * 10**8,
        "images": 5, "tiles": {"resize 0.5": 3}, "left_out": {"fastv 0.5": "it cannot"}, **summary(samples, 3, 2), **more,
    }  # fmt: skip
    machine = {"torch": "2", "transformers": "5", "threads": 2, "cores": 2, "vectors": "AVX512", "load": 0.1}
    return {"subject": kind, "settings": {"quant": "int8", "arch": kind}, "machine": machine, "rule": "", "cases": [case]}


def test_the_document_is_generated() -> None:
    made = importlib.import_module("performance")
    text = made.page(made.read(ROOT / "docs" / "results" / "performance"))
    assert (ROOT / "docs" / "performance.md").read_text() == text, "run: python runs/performance.py"


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    made = importlib.import_module("performance")
    (tmp_path / "results" / "performance").mkdir(parents=True)
    text = made.write(tmp_path).read_text()
    for script in ("speed", "overhead", "sites", "growth", "quant", "throughput", "decode"):
        assert f"Not measured yet: `bash runs/{script}.sh`" in text
        assert (ROOT / "runs" / f"{script}.sh").is_file()


def test_every_table_from_results(tmp_path: Path) -> None:
    made = importlib.import_module("performance")
    folder = tmp_path / "results" / "performance"
    profile = {
        "side": "atp 0.5", "hooks": 40, "own_share": 0.1, "seconds": 2.0, "idle_seconds": 0.05, "most_idle": "atp: enter",
        "waits": 1, "waits_unpruned": 3, "sites": 4,
    }  # fmt: skip
    for kind in ("speed-x-bf16", "overhead-x", "growth", "quant-x", "decode-x", "even"):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "bench.json").write_text(json.dumps({**result(kind), "profile": profile}))
    (folder / "sites-x" / "0.5").mkdir(parents=True)
    (folder / "sites-x" / "bench.json").write_text(json.dumps(result("x")))
    step_of = {"site": "vision:0"}, {"site": "vision:3"}
    asked = {
        "name": "atp", "accuracy": 90.0, "against_unpruned": {"mean": -0.5, "low": -1.0, "high": 0.25}, "plan": {"steps": step_of}
    }  # fmt: skip
    (folder / "sites-x" / "0.5" / "table.json").write_text(json.dumps({"model": "x", "budget": 0.5, "rows": [asked]}))
    for name, made_of in (("throughput", queue()), ("steps", steps())):
        (folder / f"{name}-x").mkdir()
        (folder / f"{name}-x" / f"{name}.json").write_text(json.dumps(made_of))
    (folder / "speed-killed").mkdir()
    (folder / "speed-killed" / "bench.json").touch()
    row = {
        "name": "int8", "accuracy": 95.0, "flops_ratio": 1.0, "changed": 1.5,
        "against_unpruned": {"mean": -0.25, "low": -1.0, "high": 0.5},
    }  # fmt: skip
    (folder / "quant-x" / "accuracy.json").write_text(json.dumps({"rows": [row]}))
    text = made.write(tmp_path).read_text()
    assert "Not measured" not in text
    for words in (
        "| speed-x-bf16 | bfloat16 | 1 | 3 | atp 0.5 | 0.500 | x2.00 | x2.02 | 0.99 | **x1.71** | 1.71 - 1.71 | faster |",
        "- speed-x-bf16, bfloat16, batch 1, 3 answer tokens: resize 0.5 x2.00 against x1.71 of atp 0.5.",
        "- speed-x-bf16: resize 0.5 is a smaller image, 3 tiles instead of 5.",
        "- speed-x-bf16, 3 answer tokens: no fastv 0.5: it cannot.",
        "- atp 0.5: faster at every measured size from 196 visual tokens on.",
        "| int8 | 1.000 | 95.00 | -0.25 [-1.00, +0.50] | 1.5 % |",
        "| 250.0 ms | 50.0 ms | 6.0% | 20000 us | +1.0% |",
        "| overhead-x | atp 0.5 | 40 | 10.0% | 2.5% | atp: enter | 3 | 1 | 4 |",
        "- 5 words and answers of 3: pruning is faster from 196 visual tokens on.",
        "| 196 | 5 | atp 0.5 | x2.00 | x1.71 | faster | 46 tokens | 16 tokens |",
        "| x | float32 | batch | unpruned | 16 |  |  | 2 |  | 10 MB | 2.00 MB |  |",
        "|  |  |  | atp 0.5 | 16 | 25% | 5% | 4 | x2.00 | 10 MB | 2.00 MB | faster |",
        "| decode-x | 1 | 196 | unpruned | 1.00 s |  |  | 0.00 MB |  |",
        "|  |  |  | atp 0.5 | 1.00 s | x1.00 | 20000 us | 0.00 MB | x1.71 |",
        "| 1 | atp 0.5 | 459 | 1 | 900 | 100 |",
        "| x | 2 | atp 0.5 | 0.500 | x1.71 |  |  | 90.00 | -0.50 [-1.00, +0.25] | vision:0, vision:3 |",
        "| 4 | atp 0.5 | yes | 40.00 s | 10.0 ms | **x1.50** | 1.40 - 1.60 | x3.00 | 2.0e-05 | yes | faster |",
        "Measured on: cpu, 2 cores, 2 threads, AVX512, torch 2, transformers 5.",
    ):
        assert words in text
    assert {file.name for file in folder.glob("*.md")} == {
        "speed.md",
        "overhead.md",
        "growth.md",
        "quant.md",
        "accuracy.md",
        *MORE,
    }


MORE = ("sites.md", "decode.md", "even.md", "throughput.md", "steps.md")


def queue() -> dict[str, Any]:
    """Eight answers in four seconds, and in two."""
    row = {"side": "unpruned", "batch": 16, "padding": {}, "answers_per_second": 2.0, "gain": {"median": 1.0}, "verdict": ""}
    row |= {"peak_bytes": 10**7, "kv_bytes": 2 * 10**6}
    pruned = {**row, "side": "atp 0.5", "padding": {"vision": 0.25, "language": 0.05}, "answers_per_second": 4.0}
    pruned |= {"gain": {"median": 2.0}, "verdict": "faster"}
    return {"subject": "x", "dtype": "float32", "machine": result()["machine"], "equal_batch": {"sides": [row, pruned]}}


def steps() -> dict[str, Any]:
    """A counted step, and compiled prefills in two thirds of the time; the script keeps them in two files, here are both."""
    whole = {
        "batch": 4, "side": "unpruned", "compiled": False, "first_seconds": 0.0, "seconds": {"median": 0.03}, "apart": 0.0,
        "same_answer": True, "gain": {"median": 1.0, "low": 1.0, "high": 1.0}, "verdict": "",
    }  # fmt: skip
    one = {"compiled": True, "first_seconds": 40.0, "seconds": {"median": 0.015}, "apart": 2e-5}
    own = {"side": "atp 0.5", "seconds": {"median": 0.01}, "gain": {"median": 1.5, "low": 1.4, "high": 1.6}, "verdict": "faster"}
    step = {"batch": 1, "side": "atp 0.5", "operators": 459, "waits": 1, "calls": 900, "own_calls": 100}
    return {"machine": result()["machine"], "steps": [step], "compiled": [whole, {**whole, **one}, {**whole, **one, **own}]}


@pytest.mark.parametrize(
    ("found", "is_whole"),
    [
        ({"settings": {"devices": [""], "batches": [1, 4], "answers": [3]}, "cases": [1, 2]}, True),
        ({"settings": {"devices": [""], "batches": [1, 4], "answers": [3]}, "cases": [1]}, False),
        ({"settings": {}, "wanted": 3, "cases": [1], "refused": [1, 1]}, True),
        ({"equal_batch": {}, "unfinished": True}, False),
        ({"rows": []}, True),
    ],
)
def test_what_was_cut_off_is_measured_again(tmp_path: Path, found: dict[str, Any], is_whole: bool) -> None:
    whole = importlib.import_module("whole").whole
    (tmp_path / "x.json").write_text(json.dumps(found))
    assert whole(tmp_path / "x.json") == is_whole
    (tmp_path / "x.json").write_text(json.dumps(found)[:-1])
    assert not whole(tmp_path / "x.json") and not whole(tmp_path / "missing.json")


def test_parts_run_in_the_order_asked_for_and_unknown_ones_are_named() -> None:
    script = "source runs/measure.sh; one() { echo ran one; }; two() { echo ran two; }; parts '2 one' '3 two' -- "
    shell = {"cwd": ROOT, "env": {**os.environ, "OUT": "nowhere"}, "capture_output": True, "text": True, "check": False}
    both, few, odd = (subprocess.run(["bash", "-c", script + asked], **shell) for asked in ("", "two one", "three"))
    assert both.stdout.split("\n")[:2] == ["ran one", "ran two"] and few.stdout.split("\n")[:2] == ["ran two", "ran one"]
    assert "one: about 2 of the 5 minutes" in both.stderr and (odd.returncode, odd.stdout) == (2, "")
    assert "no part three; known: one two" in odd.stderr


def test_longest_answer_worth_it() -> None:
    """12 s against 7 s with two decode steps of 1 s in both: at n tokens (10 + n - 1) / (5 + n - 1) = 1.25 where n = 16."""
    longest = importlib.import_module("performance_tables").longest
    base, side, _ = result()["cases"][0]["sides"]
    assert longest(base, side, 3, 1.25) == pytest.approx(16)
    assert longest(base, side, 3, 2.0) == pytest.approx(1.0)
    assert longest(base, side, 3, 3.0) == 0.0
    assert math.isinf(longest(base, side, 3, 1.0))


def test_growth_of_two_tiny_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    from atp.bench.settings import Settings

    made = importlib.import_module("growth")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    language = {**made.LANGUAGE, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 64}
    language |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    asked = Settings(arch="growth", budgets=(0.7,), rounds=1, dtype="bfloat16", text=10, answers=(1,))
    found = made.measure(asked, (4, 6), tower, language)
    assert [case["visual"] for case in found["cases"]] == [16, 36]
    assert [side["side"] for side in found["cases"][0]["sides"]] == ["unpruned", "atp 0.7"]
    drawn = made.plot(found)
    assert drawn.startswith("<svg") and "atp 0.7" in drawn and "visual tokens" in drawn
