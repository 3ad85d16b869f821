"""Reports on records written by hand, so that every number in the tables is known beforehand."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from atp.cli import main
from atp.errors import BadInput
from atp.evals.harness import header, report
from atp.evals.harness.gather import PARTS, Entry, gather
from atp.evals.harness.markdown import _official, by_name, markdown
from atp.evals.harness.pareto import points
from atp.evals.harness.records import read
from atp.evals.harness.settings import Settings
from atp.evals.tasks import open_task

ITEMS = ("1", "2", "3", "4")
IMAGES = ("x", "x", "y", "y")
ANSWERS = {"none": ("yes", "no", "2", "red"), "atp": ("Yes", "yes", "2", "red")}
SCORES = {
    ("none", "none"): (1, 1, 0, 1),
    ("none", "atp"): (1, 0, 0, 1),
    ("typing:2", "none"): (1, 0, 0, 1),
    ("typing:2", "atp"): (0, 0, 0, 1),
}
FLOPS = {"none": (100.0, 10.0, 80.0, 10.0, 0.0), "atp": (60.0, 10.0, 20.0, 8.0, 2.0)}  # of one item, 10^9


def record(disturbance: str, method: str, number: int) -> dict[str, Any]:
    """One record; items 1 to 3 are one batch, item 4 another of twice the length."""
    size, times = (3, 3.0) if number < 3 else (1, 2.0)
    flops = {part: value * times * 1e9 for part, value in zip(PARTS, FLOPS[method], strict=True)}
    seconds = {"none": 0.3, "atp": 0.15}[method] * (1 if number < 3 else 2)
    score = SCORES[disturbance, method][number]
    return {
        "model": "m",
        **{"task": "vqav2", "disturbance": disturbance, "method": method, "budget": 1.0 if method == "none" else 0.5},
        **{"item": ITEMS[number], "answer": ANSWERS[method][number], "score": score, "scores": {"accuracy": score}},
        **{"nan": 2 if (method, number, disturbance) == ("atp", 3, "none") else 0, "image": IMAGES[number], "kind": "k"},
        **{"plan": "p", "seed": 0, "versions": {"torch": "2"}, "commit": "abc"},
        "batch": {
            "size": size,
            "seconds": seconds,
            "flops": flops | {"total": sum(flops.values())},
            "flops_unpruned": {"total": 200e9 * times},
            "equivalent_tokens": {"none": 100.0, "atp": 40.0}[method] if number < 3 else {"none": 100.0, "atp": 60.0}[method],
        },
    }


def folder(path: Path, shards: Sequence[Sequence[dict[str, Any]]], **change: Any) -> Path:
    """Write a run by hand."""
    path.mkdir()
    asked = Settings("m", ("vqav2",), ("atp",), (1.0, 0.5), corruptions=("typing:2",), data="/nowhere", prompt="plain")
    cells = {
        "none": {"method": "none", "budget": 1.0, "plan_id": "n", "plan": {}},
        "atp 0.5": {"method": "atp", "budget": 0.5, "plan_id": "p", "plan": {}},
        "fastv 0.5": {"method": "fastv", "budget": 0.5, "plan_id": "f", "refused": "out of | reach", "lowest": 0.68},
    }
    head = {"settings": asked.to_dict(), "items": {"vqav2": {"count": 4, "digest": "d"}}, "cells": {"vqav2": cells}, **change}
    (path / header.FILE).write_text(json.dumps(head))
    for number, rows in enumerate(shards, 1):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"records-{number}-of-{len(shards)}.jsonl").write_text(lines)
    return path


ALL = [record(disturbance, method, number) for disturbance, method in SCORES for number in range(4)]


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    return report.build(gather([folder(tmp_path / "run", [ALL])]), {})["tasks"][0]


def test_accuracy_and_cost(told: dict[str, Any]) -> None:
    none, atp, fastv = told["rows"]
    assert (none["score"], atp["score"]) == (75.0, 50.0)
    assert none["against_unpruned"] is None
    # image x lost one of two, image y nothing: resampled means are -50, -25 or 0
    assert atp["against_unpruned"] == {"mean": -25.0, "low": -50.0, "high": 0.0}
    assert atp["flips"] == 25.0  # only item 2: case does not count
    # an item of the first batch costs 100 of 200 units, item 4 twice that of twice that
    assert (none["flops_share"], atp["flops_share"], atp["spent"]) == (1.0, 0.5, 0.5)
    assert atp["gflops"] == {"vision": 75.0, "connector": 12.5, "prefill": 25.0, "decode": 10.0, "selection": 2.5}
    assert (none["equivalent_tokens"], atp["equivalent_tokens"]) == (100.0, 45.0)
    assert (none["ms"], atp["ms"]) == (pytest.approx(100.0), pytest.approx(50.0))
    assert (atp["answered"], atp["nan"], none["nan"]) == (4, 1, 0)
    assert (fastv["lowest"], fastv["score"], fastv["answered"]) == (0.68, None, 0)


def test_robustness(told: dict[str, Any]) -> None:
    assert told["disturbed"] == {"typing:2": {"none": 50.0, "atp 0.5": 25.0}}
    found = told["robustness"]["atp 0.5"]
    assert found["mce"]["mean"] == pytest.approx(150.0)  # three errors, unpruned two
    assert found["retained"] == pytest.approx([50.0, 200 / 3])
    assert found["retained_gap"]["mean"] == pytest.approx(50 - 200 / 3)
    assert found["extra_drop"]["mean"] == 0.0
    assert found["disturbed"] == [25.0, 50.0] and found["disturbed_gap"]["mean"] == found["clean_gap"]["mean"] == -25.0
    assert found["verdict"] == "undecided" and found["items"] == 4


def test_an_unfinished_run_is_paired_over_what_both_answered(tmp_path: Path) -> None:
    rows = [row for row in ALL if not (row["method"] == "atp" and row["item"] == "4")]
    atp = report.build(gather([folder(tmp_path / "run", [rows])]), {})["tasks"][0]["rows"][1]
    assert (atp["answered"], atp["score"]) == (3, pytest.approx(100 / 3))
    assert atp["against_unpruned"]["mean"] == pytest.approx(-100 / 3)


def test_shards_merge_from_one_folder_or_two(tmp_path: Path, told: dict[str, Any]) -> None:
    one = folder(tmp_path / "one", [ALL[::2], ALL[1::2]])
    a, b = folder(tmp_path / "a", [ALL[::2]]), folder(tmp_path / "b", [ALL[1::2]])
    for found in (gather([one]), gather([a, b])):
        assert report.build(found, {})["tasks"][0]["rows"] == told["rows"]


def test_another_run_is_not_merged(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", [ALL[::2]])
    b = folder(tmp_path / "b", [ALL[1::2]], items={"vqav2": {"count": 4, "digest": "other"}})
    with pytest.raises(BadInput, match=r'cannot be merged.*items\.vqav2\.digest: "d" -> "other"'):
        gather([a, b])


def test_the_text_has_the_numbers_and_escapes(tmp_path: Path) -> None:
    text = markdown(report.build(gather([folder(tmp_path / "run", [ALL])]), {"vqav2": "no folder"}))
    assert (
        "| atp 0.5 | 4 of 4 | 50.00 | -25.00 [-50.00, +0.00] | 25.0 | 0.500 | 0.500 | 45.0 | 50.0 | 75.0000 | 12.5000 | 25.0000 |"
        in text
    )
    assert "| fastv 0.5 | not possible; lowest 0.68 |" in text
    assert "atp 0.5: 1 answers had NaN logits" in text
    assert "left out: no folder" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith(("| none | 4", "| setting | ans", "| fastv"))}
    assert len(widths) == 1


def test_pope_by_split_and_pooled(scenes: Path) -> None:
    task = open_task("pope", scenes)
    said = {e.key: "yes" if e.kind == "random" else ("no" if e.kind == "popular" else e.answer) for e in task.examples}
    entries = {key: Entry(text, {}, 0, "", (), 1.0, 1.0, 1.0) for key, text in said.items()}
    found = report.by_split(task, entries)
    assert list(found) == ["random", "popular", "adversarial", "pooled"]
    for name, part in found.items():
        pairs = [(said[e.key], e.answer) for e in task.examples if name in ("pooled", e.kind)]
        hit, yes, true = (sum(keep(s, a) for s, a in pairs) for keep in (lambda s, a: s == a == "yes", said_yes, is_yes))
        assert part["precision"] == pytest.approx(100 * hit / yes if yes else 0.0)
        assert part["recall"] == pytest.approx(100 * hit / true) and part["yes_ratio"] == pytest.approx(100 * yes / len(pairs))
        both = part["precision"] + part["recall"]
        assert part["f1"] == pytest.approx(2 * part["precision"] * part["recall"] / both if both else 0.0)
    whole = report.metrics(task, entries)
    assert found["pooled"]["f1"] != pytest.approx(whole["f1"])  # the mean of the three is another number, and is named so
    assert found["pooled"]["true_yes"] == pytest.approx(100 * sum(e.answer == "yes" for e in task.examples) / len(task.examples))
    told = {"official": {"none": whole}, "splits": {"none": found}, "without_official": ""}
    table = _official(told)
    assert [row[:2] for row in table.rows] == [("none", name) for name in found]
    assert f"Mean of the splits' F1, which papers report too: none {whole['f1']:.2f}." in table.note
    assert report.by_split(open_task("vqav2", scenes), entries) == {}


def test_pope_by_name_with_balance_and_blind_bound_beside_the_score(scenes: Path) -> None:
    task = open_task("pope", scenes)
    entries = {
        label: {e.key: Entry(e.answer if label == "none" else "no", {}, 0, "", (), 1.0, 1.0, 1.0) for e in task.examples}
        for label in ("none", "random 0.5")
    }
    found = report.by_name(task, entries)
    labels: dict[str, list[str]] = {}
    for example in task.examples:
        labels.setdefault(example.question.removeprefix("Is there a ").removesuffix(" in the image?"), []).append(example.answer)
    assert len(found) > 3
    for name, told in found.items():
        true = next(said for question, said in labels.items() if question in (name, f"Is there an {name} in the image?"))
        yes = 100 * true.count("yes") / len(true)
        assert told["questions"] == len(true) and told["true_yes"] == pytest.approx(yes)
        assert told["blind"] == pytest.approx(max(yes, 100 - yes))
        assert told["right"] == pytest.approx({"none": 100.0, "random 0.5": 100 - yes})
    table = by_name({"names": found})
    assert table.columns == ("object", "questions", "true_yes", "blind", "none", "random 0.5")
    assert [row[0] for row in table.rows] == sorted(found)
    assert report.by_name(open_task("vqav2", scenes), entries) == {}


def said_yes(said: str, answer: str) -> bool:
    return said == "yes"


def is_yes(said: str, answer: str) -> bool:
    return answer == "yes"


def test_points_of_the_plot(told: dict[str, Any]) -> None:
    assert points(told, "flops_share") == {"none": [(1.0, 75.0, 75.0, 75.0)], "atp": [(0.5, 50.0, 25.0, 75.0)]}


def test_the_page_is_one_file_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = folder(tmp_path / "run", [ALL])
    _, page = report.write([run], tmp_path / "out")
    text = page.read_text()
    assert "<svg" in text and "-25.00 [-50.00, +0.00]" in text
    assert re.findall(r"<(?:script|link|img|iframe)|(?:src|href)=\"(?!#)|url\((?!#)|@import", text) == []
    names = {"report.json", "report.md", "index.html", "pareto-vqav2.svg"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names


def test_without_matplotlib_the_rest_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _, page = report.write([folder(tmp_path / "run", [ALL])], tmp_path / "out")
    assert "pip install &#x27;atp-vlm[report]" in page.read_text() or "pip install 'atp-vlm[report]'" in page.read_text()
    assert not (tmp_path / "out" / "pareto-vqav2.svg").exists()


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected a folder that `atp eval --out` wrote"):
        gather([tmp_path])


def test_both_commands(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    asked = ["--model", settings["model"], "--data", settings["data"], "--device", "cpu", "--max-new-tokens", "3"]
    asked += ["--tasks", "pope,coco", "--methods", "random,fastv", "--budgets", "1.0,0.8,0.01", "--limit", "5", "--batch", "4"]
    for part in ("1/2", "2/2", "2/2"):
        with pytest.raises(SystemExit) as left:
            main(["eval", *asked, "--out", str(tmp_path / "out"), "--shard", part])
        assert not left.value.code
    out = capsys.readouterr().out
    assert "pope: fastv 0.01 left out: budget 0.01 cannot be reached" in out and "(0 new)" in out
    made = [len(read(path)[0]) for path in sorted((tmp_path / "out").glob("records-*"))]
    assert sum(made) == 3 * (5 + 5) and min(made) > 0
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "## pope" in out and "| random 0.8 | 5 of 5 |" in out and "f1" in out and "BLEU_4" in out
    assert "open" in out and (tmp_path / "out" / "index.html").is_file()
    with pytest.raises(SystemExit) as left:
        main(["eval", *asked, "--out", str(tmp_path / "out"), "--shard", "3/2"])
    assert left.value.code == 2


def test_a_setting_that_rambles_is_counted_at_equal_length_and_what_it_spent_is_said(tmp_path: Path) -> None:
    def long(row: dict[str, Any], steps: int) -> dict[str, Any]:
        decode = 10e9 * (steps - 1)
        flops = {"vision": 50e9, "connector": 0.0, "prefill": 0.0, "decode": decode, "selection": 0.0, "total": 50e9 + decode}
        whole = {"decode": decode, "total": 100e9 + decode}
        flops = flops if row["method"] == "atp" else flops | {"vision": 100e9} | whole
        batch = row["batch"] | {"size": 1, "steps": steps, "flops": flops, "flops_unpruned": whole}
        return row | {"batch": batch, "solved_for": {"images": 1, "text": 7, "answer": 6}}

    rows = [long(row, 6 if row["method"] == "none" else 21) for row in ALL if row["disturbance"] == "none"]
    run = folder(tmp_path / "run", [rows], solved_for={"vqav2": {"images": 1, "text": 7, "answer": 6}})
    told = report.build(gather([run]), {})
    _, atp, _ = told["tasks"][0]["rows"]
    assert atp["flops_share"] == pytest.approx((50 + 50) / (100 + 50))  # both decode 5 tokens
    assert atp["spent"] == pytest.approx((50 + 200) / (100 + 50))  # it went on for 20
    assert "Plans are solved for prompts with 7 text tokens and answers of 6." in markdown(told)
