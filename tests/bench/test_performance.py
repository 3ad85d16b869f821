"""`docs/performance.md` is what `runs/performance.py` writes, and its tables say what the results say."""

from __future__ import annotations

import importlib
import json
import math
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
    for script in ("speed", "overhead", "growth", "quant"):
        assert f"Not measured yet: `bash runs/{script}.sh`" in text
        assert (ROOT / "runs" / f"{script}.sh").is_file()


def test_every_table_from_results(tmp_path: Path) -> None:
    made = importlib.import_module("performance")
    folder = tmp_path / "results" / "performance"
    for kind in ("speed-x-bf16", "overhead-x", "growth", "quant-x"):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "bench.json").write_text(json.dumps(result(kind)))
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
        "Measured on: cpu, 2 cores, 2 threads, AVX512, torch 2, transformers 5.",
    ):
        assert words in text
    assert {file.name for file in folder.glob("*.md")} == {"speed.md", "overhead.md", "growth.md", "quant.md", "accuracy.md"}


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
