"""The pages of docs/results from records written by hand, and what the scripts say of models that are absent."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from atp.evals.harness import header, report
from atp.evals.harness.gather import PARTS
from atp.evals.harness.settings import Settings

RUNS = Path(__file__).parents[2] / "runs"
SCRIPTS = sorted(path.name for path in RUNS.glob("*.sh") if "models.sh" in path.read_text())
SCORES = {"none": "11111111", "atp": "11111110", "random": "00000011"}
SHARE = {"none": 1.0, "atp": 0.4, "random": 0.42}


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RUNS))
    return importlib.import_module("pages")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RUNS))
    return importlib.import_module("peers")


def record(method: str, disturbance: str, number: int) -> dict[str, Any]:
    budget = 1.0 if method == "none" else 0.4
    score = float(SCORES[method][number]) * (disturbance == "none" or number > 1)
    flops = dict.fromkeys(PARTS, 0.0) | {"prefill": SHARE[method] * 100}
    batch = {"size": 1, "seconds": 0.1, "flops": flops, "flops_unpruned": {"total": 100.0}, "equivalent_tokens": 9.0}
    place = {"task": "vqav2", "disturbance": disturbance, "method": method, "budget": budget, "item": str(number)}
    told = {"answer": str(score), "score": score, "scores": {"accuracy": score}, "nan": 0, "image": str(number), "kind": "k"}
    return {"model": "m", **place, **told, "plan": "p", "seed": 0, "batch": batch, "versions": {"torch": "2"}, "commit": "abc"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight items, three settings and one that is out of reach, clean and under one disturbance."""
    place = tmp_path / "m"
    place.mkdir()
    asked = Settings("m", ("vqav2",), ("atp", "random", "fastv"), (1.0, 0.4), corruptions=("typing:2",), data="/nowhere")
    cells = {
        name if name == "none" else f"{name} 0.4": {"method": name, "budget": 1.0 if name == "none" else 0.4, "plan_id": "p"}
        for name in (*SCORES, "fastv")
    }
    cells["fastv 0.4"] |= {"refused": "out of reach", "lowest": 0.68}
    head = {"settings": asked.to_dict(), "items": {"vqav2": {"count": 8, "digest": "d"}}, "cells": {"vqav2": cells}}
    (place / header.FILE).write_text(json.dumps(head))
    rows = [record(method, disturbance, n) for method in SCORES for disturbance in ("none", "typing:2") for n in range(8)]
    (place / "records-1-of-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.write([place], place)
    return place


def test_accuracy(pages: ModuleType, folder: Path, tmp_path: Path) -> None:
    pages.main("accuracy", [folder], tmp_path / "docs", "atp")
    text = (tmp_path / "docs" / "accuracy.md").read_text()
    assert "| none | 100.00 | - | 1.000 | - | - |  |" in text
    assert "| atp 0.4 | 87.50 | -12.50 [" in text
    assert "| 0.420† | 75.0 | +62.50 [" in text  # random costs five per cent more, and says so
    assert text.count("| win |") == 3  # heads of two tables, and random's row
    assert "| fastv 0.4 | lowest 0.68 | - | - | - | - | - |" in text
    assert "1 settings are not possible" in text
    assert "Losses: 0 of 1." in text
    assert "| atp | 87.5 |" in text  # of the unpruned model's score
    assert "\n\n\n" not in text
    assert (tmp_path / "docs" / "accuracy.svg").read_text().count("out of reach") == 0
    pages.main("accuracy", [folder], tmp_path / "docs", "random")
    assert "Losses: 1 of 1." in (tmp_path / "docs" / "accuracy.md").read_text()


def test_peers(peers: ModuleType, folder: Path, tmp_path: Path) -> None:
    peers.main([folder], tmp_path / "docs", "atp")
    text = (tmp_path / "docs" / "peers.md").read_text()
    assert "| none | 100.0 |  |  |  |" in text
    assert "| **atp** | **87.5** | 1.0 | 87.5 of 1 | 87.5 |" in text
    assert "| random | 25.0 (+62.5\\*)† | 2.0 | 25.0 of 1 | 87.5 |" in text  # significantly better, at other FLOPs
    assert "| 0.4 | 1 | 87.5 | random 25.0 | +62.5 |" in text
    assert "| fastv | m | all | out of reach; the lowest is 0.68 |" in text
    assert "| random | m vqav2 | 0.4 | 0.420 |" in text and "| atp | m vqav2" not in text
    assert "Losses: 0 of 1." in text and "\n\n\n" not in text
    assert "<svg" in (tmp_path / "docs" / "peers-m.svg").read_text()
    peers.main([folder], tmp_path / "docs", "random")
    text = (tmp_path / "docs" / "peers.md").read_text()
    assert "| atp | 87.5 (-62.5 **!**)† | 1.0 |" in text and "Losses: 1 of 1." in text


def test_reasons_are_told_once_for_all_tasks_and_models(peers: ModuleType) -> None:
    def refused(why: str, lowest: float | None) -> dict[str, Any]:
        return {"refused": why, "lowest": lowest, "score": None}

    words = "budget 0.4 cannot be reached by method 'dart' at the sites language:2 (images=1, text=11): the lowest reachable is"
    rows = {
        (("atp-mini-a", "vqav2"), "dart 0.4"): refused(f"{words} 0.69; use ...", 0.69),
        (("atp-mini-a", "coco"), "dart 0.4"): refused(f"{words} 0.71; use ...", 0.71),
        (("atp-mini-a", "coco"), "dart 0.25"): refused(f"{words} 0.71; use ...", 0.71),
    }
    for model, task in (("a", "vqav2"), ("a", "coco"), ("b", "vqav2")):
        both = {((f"atp-mini-{model}", task), f"gate {budget}"): refused("needs weights=", None) for budget in (0.4, 0.25)}
        rows |= both
    found = peers.missing(peers.Peers("atp", (), rows, {}, ("dart", "gate"), (0.4, 0.25)))
    assert found[3:-1] == [
        "| dart | a | 0.4, 0.25 (coco) | cannot be reached at the sites language:2; the lowest is 0.69 to 0.71 |",
        "| gate | a, b | all | needs weights= |",
    ]


def test_robustness(pages: ModuleType, folder: Path, tmp_path: Path) -> None:
    (folder / "contrast.json").write_text(
        json.dumps({"pairs": 3, "scores": {"none": {"original": 90.0, "changed": 80.0, "both": 75.0, "unmoved": 5.0}}})
    )
    pages.main("robustness", [folder], tmp_path / "docs", "atp")
    text = (tmp_path / "docs" / "robustness.md").read_text()
    assert "| typing:2 | 75.00 | 62.50 | 25.00 | - |" in text or "| typing:2 | 75.00 | 62.50 | 25.00 |" in text
    assert "| none | 90.0 | 80.0 | 75.0 | 5.0 |" in text
    assert "| m | vqav2 | atp 0.4 | " in text


def test_unknown_page(pages: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="unknown page 'beauty'; expected one of accuracy, robustness"):
        pages.main("beauty", [tmp_path], tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_absent_models_are_skipped_aloud(script: str, tmp_path: Path) -> None:
    told = {**os.environ, "MODELS": "atp-no-such-model", "OUT": str(tmp_path), "DOCS": str(tmp_path), "PYTHON": "false"}
    done = subprocess.run(["bash", str(RUNS / script)], env=told, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "SKIPPED: the model atp-no-such-model is neither in src/atp/models nor a folder" in done.stderr
    assert "none of the models is there" in done.stderr


def test_every_table_has_its_script() -> None:
    assert {"accuracy.sh", "grounding.sh", "hallucination.sh", "peers.sh", "robustness.sh"} <= set(SCRIPTS)
