"""Bad files: absent, cut off, mistaken, with bad or doubled rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atp.errors import BadInput
from atp.evals.tasks import open_task
from atp.evals.tasks.files import Source, read_json, read_lines

FILES = {  # task -> the files that it cannot do without
    "vqav2": ["v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"],
    "gqa": ["gqa/val_balanced_questions.json"],
    "coco": ["annotations/captions_val2014.json"],
    "chair": ["annotations/captions_val2014.json", "annotations/instances_val2014.json"],
    "pope": ["pope/coco_pope_popular.json"],
    "textvqa": ["TextVQA_0.5.1_val.json"],
}
PAIRS = [(task, name) for task, names in FILES.items() for name in names]


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_a_missing_file_is_named_with_the_places_looked_at(task: str, name: str, official: Path) -> None:
    (official / name).unlink()
    for other in official.glob("gqa/*_all_*"):
        other.unlink()
    with pytest.raises(BadInput, match=rf"no .* in '.*looked for .*{Path(name).name}.*annotations, .*split='val'"):
        open_task(task, official)


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_a_truncated_file_says_where_it_ends(task: str, name: str, official: Path) -> None:
    path = official / name
    text = path.read_text().rstrip()
    path.write_text(text[: len(text) - 30])
    with pytest.raises(BadInput, match=rf"{path.name}.*: cut off at character \d+ of \d+ .*download it again"):
        open_task(task, official)


@pytest.mark.parametrize(("task", "name"), PAIRS)
@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_file_is_called_empty(task: str, name: str, text: str, official: Path) -> None:
    (official / name).write_text(text)
    with pytest.raises(BadInput, match="the file is empty; download it again"):
        open_task(task, official)


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_another_json_file_under_that_name_is_refused(task: str, name: str, official: Path) -> None:
    (official / name).write_text(json.dumps([{"some": "thing"}]))
    with pytest.raises(BadInput, match=r"expected an object|none of its 1 rows has the fields"):
        open_task(task, official)


def test_binary_text_and_bad_json_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "zipped.json").write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(BadInput, match=r"not UTF-8 text .*Unpack it first"):
        read_json(tmp_path / "zipped.json")
    (tmp_path / "html.json").write_text("<html>not found</html>")
    with pytest.raises(BadInput, match=r"not valid JSON at character 0 of 22"):
        read_json(tmp_path / "html.json")
    with pytest.raises(BadInput, match="no file"):
        read_json(tmp_path / "nothing.json")


def test_json_lines_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    path.write_text('{"a": 1}\n\n{"a": 2\n')
    with pytest.raises(BadInput, match=r"lines.json, line 2: cut off"):
        read_lines(path)
    path.write_text('[{"a": 1}]')
    assert read_lines(path) == [{"a": 1}]


def test_no_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no folder .*python -m atp.scenes .* --images 100"):
        open_task("vqav2", tmp_path / "nowhere")


def test_chunks_of_a_large_file_are_merged(official: Path) -> None:
    path = official / "gqa" / "val_all_questions.json"
    entries = list(json.loads(path.read_text()).items())
    path.unlink()
    path.with_suffix("").mkdir()
    for number, part in enumerate((entries[:2], entries[2:])):
        (path.with_suffix("") / f"val_all_questions_{number}.json").write_text(json.dumps(dict(part)))
    assert len(open_task("gqa", official, everything=True).examples) == len(entries) == 4


def spoiled_vqav2(official: Path) -> None:
    def questions(content: Any) -> None:
        content["questions"] += [content["questions"][0], {"question_id": "7", "image_id": 1, "question": "?"}, None]
        content["questions"].append({"question_id": 9, "image_id": 42, "question": "Nobody answered?"})

    def annotations(content: Any) -> None:
        extra = dict(content["annotations"][0])
        content["annotations"] += [extra, {**extra, "question_id": 123}, {**extra, "question_id": 124, "answers": [{}]}]

    change(official / FILES["vqav2"][0], questions)
    change(official / FILES["vqav2"][1], annotations)


def spoiled_coco(official: Path) -> None:
    def captions(content: Any) -> None:
        first = content["annotations"][0]
        content["annotations"] += [first, {**first, "id": 1, "image_id": 5}, {**first, "id": 2, "caption": " "}, {"id": 3}]
        content["images"].append({"id": 99, "file_name": "COCO_val2014_000000000099.jpg"})

    def instances(content: Any) -> None:
        first = content["annotations"][0]
        content["annotations"] += [first, {**first, "id": 1, "image_id": 5}, {**first, "id": 2, "category_id": 999}]

    change(official / FILES["chair"][0], captions)
    change(official / FILES["chair"][1], instances)


def spoiled_gqa(official: Path) -> None:
    good = {"question": "?", "imageId": "n42"}
    bad = {"1": None, "2": {**good, "imageId": 3}, "3": {**good, "types": "x"}, "4": {**good, "semantic": ["select: x"]}}
    change(official / FILES["gqa"][0], lambda content: content.update(bad))


def spoiled_pope(official: Path) -> None:
    path = official / FILES["pope"][0]
    first = json.loads(path.read_text().splitlines()[0])
    more = [first, {**first, "question_id": 77, "label": "maybe"}, {**first, "question_id": "x"}]
    path.write_text(path.read_text() + "\n".join(json.dumps(row) for row in more))


def spoiled_textvqa(official: Path) -> None:
    def rows(content: Any) -> None:
        first = content["data"][0]
        content["data"] += [first, {**first, "question_id": 1, "answers": [3]}, {**first, "question_id": 2, "answers": []}, 5]

    change(official / FILES["textvqa"][0], rows)


CASES = {
    "vqav2": (
        spoiled_vqav2,
        {
            "doubled question_id in v2_OpenEnded_mscoco_val2014_questions.json": 1,
            "malformed rows in v2_OpenEnded_mscoco_val2014_questions.json": 2,
            "doubled question_id in v2_mscoco_val2014_annotations.json": 1,
            "questions with unreadable answers in v2_mscoco_val2014_annotations.json": 1,
            "questions without answers": 1,
            "answers for unknown questions": 1,
        },
    ),
    "coco": (
        spoiled_coco,
        {
            "doubled id in captions_val2014.json": 1,
            "captions of unknown images": 1,
            "empty captions": 1,
            "malformed rows in captions_val2014.json": 1,
            "images without captions": 1,
            "doubled id in instances_val2014.json": 1,
            "objects of unknown images": 1,
            "objects of unknown categories": 1,
        },
    ),
    "gqa": (spoiled_gqa, {"malformed rows in val_balanced_questions.json": 4}),
    "textvqa": (
        spoiled_textvqa,
        {
            "doubled question_id in TextVQA_0.5.1_val.json": 1,
            "questions with unreadable answers in TextVQA_0.5.1_val.json": 1,
            "questions without answers": 1,
            "malformed rows in TextVQA_0.5.1_val.json": 1,
        },
    ),
    "pope": (
        spoiled_pope,
        {
            "doubled question_id in coco_pope_popular.json": 1,
            "labels other than yes and no in coco_pope_popular.json": 1,
            "malformed rows in coco_pope_popular.json": 1,
        },
    ),
}


@pytest.mark.parametrize("task", CASES)
def test_bad_rows_are_counted_left_out_and_stop_a_strict_run(task: str, official: Path) -> None:
    spoil, expected = CASES[task]
    whole = open_task(task, official)
    spoil(official)
    found = open_task(task, official)
    assert found.problems.counts == expected
    assert [e.key for e in found.examples] == [e.key for e in whole.examples]
    with pytest.raises(BadInput, match="mend the files or open it with strict=False") as stop:
        open_task(task, official, strict=True)
    assert all(f"{kind}: {count} (" in str(stop.value) for kind, count in expected.items())


def test_a_test_split_needs_no_answers_but_cannot_be_scored(official: Path) -> None:
    for before, after in (("val2014_questions", "test2015_questions"),):
        path = official / f"v2_OpenEnded_mscoco_{before}.json"
        path.rename(official / f"v2_OpenEnded_mscoco_{after}.json")
    for path in official.glob("val2014/*"):
        (official / "test2015").mkdir(exist_ok=True)
        path.rename(official / "test2015" / path.name.replace("val2014", "test2015"))
    task = open_task("vqav2", official, split="test", strict=True)
    assert len(task.examples) == 4 and task.examples[0].answer == ""
    with pytest.raises(BadInput, match="answers of VQAv2's test splits are not public"):
        task.score({example.key: "yes" for example in task.examples})


def test_files_are_found_in_any_of_the_usual_folders(official: Path) -> None:
    path = official / "v2_mscoco_val2014_annotations.json"
    (official / "vqav2").mkdir()
    path.rename(official / "vqav2" / path.name)
    assert len(open_task("vqav2", official, strict=True).examples) == 4
    assert Source(official).find("no such file.json") is None
