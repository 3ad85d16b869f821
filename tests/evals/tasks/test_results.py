"""Result files: what is written is read back, and bad ones are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from atp.errors import BadInput
from atp.evals.tasks import list_tasks, open_task, read_results, write_results


@pytest.mark.parametrize("name", list_tasks())
def test_written_answers_are_read_back_and_score_the_same(name: str, folder: Path, tmp_path: Path) -> None:
    task = open_task(name, folder)
    said: dict[str, object] = {example.key: example.answer for example in task.examples}
    write_results(task, said, tmp_path / "results.json")
    again = read_results(task, tmp_path / "results.json")
    assert again == said
    assert task.score(again).metrics == task.score(said).metrics
    row = json.loads((tmp_path / "results.json").read_text())[0]
    assert tuple(row) == task.result_fields


def test_keys_have_the_official_types(official: Path, tmp_path: Path) -> None:
    for name, kind in (("vqav2", int), ("coco", int), ("gqa", str)):
        task = open_task(name, official)
        write_results(task, {example.key: None for example in task.examples}, tmp_path / "r.json")
        assert {type(row[task.result_fields[0]]) for row in json.loads((tmp_path / "r.json").read_text())} == {kind}


def test_nan_answers_in_a_file_score_as_empty_ones(official: Path, tmp_path: Path) -> None:
    task = open_task("vqav2", official)
    rows = [{"question_id": int(e.key), "answer": math.nan if i else "yes"} for i, e in enumerate(task.examples)]
    (tmp_path / "r.json").write_text("\n".join(json.dumps(row) for row in rows))
    scores = task.score(read_results(task, tmp_path / "r.json"))
    assert scores.counts["empty"] == 3 and scores.items["accuracy"].tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}], "row 1: a second answer to question_id 1"),
        ([{"id": 1, "answer": "a"}], r"row 0: expected fields 'question_id' and 'answer', got \['answer', 'id'\]"),
        ([3], "row 0: expected fields 'question_id' and 'answer', got int"),
    ],
)
def test_bad_result_files_are_refused(rows: list[object], message: str, official: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(rows))
    with pytest.raises(BadInput, match=message):
        read_results(open_task("vqav2", official), tmp_path / "r.json")


def test_every_example_needs_an_answer_to_upload(official: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"3 examples have no answer \(42001, 73000, 581929000\)"):
        write_results(open_task("vqav2", official), {"42000": "yes"}, tmp_path / "r.json")
