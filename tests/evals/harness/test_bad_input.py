"""Files and answers that are not as they should be: counted and said, or, with `strict`, refused."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from atp.cli import main
from atp.errors import BadInput
from atp.evals.harness import asking, execute, gather, header, report
from atp.evals.harness.markdown import markdown
from atp.evals.harness.records import read
from atp.evals.tasks import open_task

QUICK: dict[str, Any] = {"tasks": ("vqav2",), "methods": (), "corruptions": (), "limit": None}
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"


@pytest.fixture
def damaged(scenes: Path, tmp_path: Path) -> tuple[Path, int, int]:
    """The scenes with one image gone and one question doubled; how many questions there were, and are left."""
    folder = tmp_path / "damaged"
    shutil.copytree(scenes, folder)
    task = open_task("vqav2", folder)
    gone = task.examples[0].path
    assert gone is not None
    gone.unlink()
    path = next(folder.rglob(QUESTIONS))
    content = json.loads(path.read_text())
    content["questions"].append(content["questions"][-1])
    path.write_text(json.dumps(content))
    return folder, len(task.examples), sum(example.path != gone for example in task.examples)


def test_absent_images_and_doubled_ids_are_counted(evaluate: Any, damaged: tuple[Path, int, int], tmp_path: Path) -> None:
    folder, before, left = damaged
    done = evaluate(tmp_path / "run", **QUICK, data=str(folder))
    assert done.made == left < before
    said = done.problems["vqav2"]
    assert "images listed but absent: 1 (" in said and f"their image is absent: {before - left} (" in said
    assert f"doubled question_id in {QUESTIONS}: 1 (" in said
    items = [record["item"] for record in read(done.file)[0]]
    assert len(set(items)) == len(items) == left


def test_a_strict_run_stops_before_the_first_answer(
    settings: dict[str, Any], damaged: tuple[Path, int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", settings["model"], "--data", str(damaged[0]), "--device", "cpu", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as left:
        main(["eval", *asked, "--tasks", "vqav2", "--methods", "none", "--strict"])
    assert left.value.code == 2
    assert "images listed but absent: 1" in capsys.readouterr().err
    assert list((tmp_path / "run").glob("records-*")) == []


def test_strictness_is_no_other_run(evaluate: Any, scenes: Path, tmp_path: Path) -> None:
    first = evaluate(tmp_path, **{**QUICK, "limit": 4})
    again = evaluate(tmp_path, **{**QUICK, "limit": 4}, strict=True)
    assert (again.before, again.made) == (first.made, 0)


@pytest.mark.parametrize("strict", [False, True])
def test_answers_to_unknown_questions_and_empty_ones(evaluate: Any, tmp_path: Path, strict: bool) -> None:
    done = evaluate(tmp_path, **{**QUICK, "limit": 6}, strict=strict)
    whole = read(done.file)[0]
    assert all(record["answer"].strip() for record in whole)
    rows = [{**whole[0], "answer": " "}, *whole[1:], {**whole[0], "item": "nobody asked"}]
    done.file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = gather.gather([tmp_path])
    tasks = report.opened(found, [tmp_path])
    if strict:
        with pytest.raises(BadInput, match=r"answer questions that the tasks do not have: .*'vqav2': \['nobody asked'\]"):
            report.build(found, tasks)
        return
    told = report.build(found, tasks)
    (row,) = told["tasks"][0]["rows"]
    assert (row["answered"], row["empty"], row["nan"]) == (6, 1, 0)
    assert told["tasks"][0]["official"]["none"]  # scored all the same
    text = markdown(told)
    assert "none: 1 more answers are empty." in text
    assert "Left out: answers to 1 questions that the task does not have (nobody asked)." in text


def test_a_full_disk_while_scenes_are_drawn(evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, *more: Any) -> None:
        folder.mkdir()
        (folder / "half.jpg").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(asking, "write", full)
    with pytest.raises(BadInput, match=r"cannot draw scenes into .*: No space left on device; free some space"):
        evaluate(tmp_path / "run", **QUICK, data="", scenes=2)
    assert list((tmp_path / "run").iterdir()) == []


def test_an_image_that_is_cut_off_is_named_and_the_run_goes_on_once_it_is_whole(
    evaluate: Any, scenes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(scenes, folder)
    image = open_task("vqav2", folder).examples[0].path
    assert image is not None
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=rf"{image.name}: not a readable image \(.*\); put it there again, then run the same"):
        evaluate(tmp_path / "run", **QUICK, data=str(folder))
    image.write_bytes(whole)
    done = evaluate(tmp_path / "run", **QUICK, data=str(folder))
    assert done.before + done.made == len(open_task("vqav2", folder).examples)


def test_a_full_disk_before_the_first_answer(evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header.os, "link", out_of_space)
    with pytest.raises(BadInput, match=r"cannot write .*run.json': No space left on device; free some space or choose another"):
        evaluate(tmp_path / "run", **QUICK)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_full_disk_while_the_report_is_written(evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(tmp_path, **{**QUICK, "limit": 4})
    monkeypatch.setattr(Path, "write_text", out_of_space)
    with pytest.raises(
        BadInput, match=r"cannot write the report to .*: No space left on device; choose another folder with --out"
    ):
        report.write([tmp_path], tmp_path / "report")


def out_of_space(*given: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cut_off_header_is_refused(evaluate: Any, tmp_path: Path) -> None:
    evaluate(tmp_path, **{**QUICK, "limit": 4})
    path = tmp_path / header.FILE
    path.write_text(path.read_text()[:-20])
    with pytest.raises(BadInput, match=r"run.json' is broken \(.*\); restore it, or begin anew in another folder"):
        evaluate(tmp_path, **{**QUICK, "limit": 4})


def test_a_model_whose_logits_are_all_nan_is_reported_in_every_task(
    settings: dict[str, Any], loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = loaded
    monkeypatch.setattr(execute, "load", lambda *given, **more: (model, processor))
    handle = model.lm_head.register_forward_hook(lambda module, given, logits: logits * float("nan"))
    tasks = "vqav2,gqa,coco,pope,chair"
    asked = ["--model", settings["model"], "--data", settings["data"], "--tasks", tasks, "--limit", "3", "--max-new-tokens", "2"]
    try:
        with pytest.raises(SystemExit) as left:
            main(["eval", *asked, "--methods", "random", "--budgets", "0.8", "--device", "cpu", "--out", str(tmp_path)])
    finally:
        handle.remove()
    assert not left.value.code
    assert "30 answers had NaN logits and count as empty" in capsys.readouterr().out
    text, _ = report.write([tmp_path], tmp_path)
    assert text.count("3 answers had NaN logits and count as empty.") == 5 * 2
    told = json.loads((tmp_path / "report.json").read_text())["tasks"]
    scores = {task["name"]: [row["score"] for row in task["rows"]] for task in told}
    assert scores["vqav2"] == scores["gqa"] == scores["coco"] == [0.0, 0.0]
    assert [row["yes_ratio"] for row in told[3]["official"].values()] == [100.0] * 2  # POPE's official code reads silence as yes


def test_a_truncated_file_of_annotations_is_named(evaluate: Any, scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(scenes, folder)
    path = next(folder.rglob(QUESTIONS))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInput, match=QUESTIONS):
        evaluate(tmp_path / "run", **QUICK, data=str(folder))
    path.unlink()
    with pytest.raises(BadInput, match=f"looked for '{QUESTIONS}'"):
        evaluate(tmp_path / "run", **QUICK, data=str(folder))
