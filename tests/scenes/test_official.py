"""Scenes written in the official schemas of VQAv2, GQA and COCO."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp.scenes import ask, make_scene, render
from atp.scenes.official import annotators, answer_type, run_lengths, write

REAL = Path(__file__).parents[3] / "shared" / "data" / "vqav2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("official")
    made = write(out, range(6), size=112)
    assert made["images"] == 6
    return out


def _read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def test_vqav2_files_have_the_official_keys(folder: Path) -> None:
    questions = _read(folder, "v2_OpenEnded_mscoco_val2014_questions.json")
    annotations = _read(folder, "v2_mscoco_val2014_annotations.json")
    assert {q["question_id"] for q in questions["questions"]} == {a["question_id"] for a in annotations["annotations"]}
    for entry in annotations["annotations"]:
        assert len(entry["answers"]) == 10 and [a["answer_id"] for a in entry["answers"]] == list(range(1, 11))
        counts = collections.Counter(a["answer"] for a in entry["answers"])
        assert counts[entry["multiple_choice_answer"]] == max(counts.values())
    assert "simulated" in annotations["info"]["description"]


@pytest.mark.skipif(not REAL.exists(), reason="the genuine VQAv2 sample is not beside this checkout")
def test_vqav2_keys_equal_the_genuine_files(folder: Path) -> None:
    for name, rows in (
        ("v2_OpenEnded_mscoco_val2014_questions.json", "questions"),
        ("v2_mscoco_val2014_annotations.json", "annotations"),
    ):
        ours, real = _read(folder, name), _read(REAL, name)
        genuine = {k: type(v) for k, v in real[rows][0].items() if k != "split"}  # the sample adds where a row came from
        assert {k: type(v) for k, v in ours[rows][0].items()} == genuine
        assert set(real) - {"task_type"} <= set(ours)


def test_gqa_programs_point_backwards_and_annotations_at_objects(folder: Path) -> None:
    questions, graphs = _read(folder, "gqa/val_questions.json"), _read(folder, "gqa/val_sceneGraphs.json")
    for entry in questions.values():
        for number, op in enumerate(entry["semantic"]):
            assert all(d < number for d in op["dependencies"])
        for found in entry["annotations"]["question"].values():
            assert found in graphs[entry["imageId"]]["objects"]
        assert entry["types"]["structural"] in {"verify", "query", "choose", "logical", "compare"}
        assert all(twin in questions for twin in entry["entailed"])


def test_coco_masks_boxes_and_areas_agree_with_the_picture(folder: Path) -> None:
    instances = _read(folder, "annotations/instances_val2014.json")
    categories = {c["id"]: c["name"] for c in instances["categories"]}
    for entry in instances["annotations"]:
        scene = make_scene(entry["image_id"] - 1, "val")
        index = entry["id"] - entry["image_id"] * 100
        assert categories[entry["category_id"]] == scene.things[index].name
        runs = entry["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
        mask = flat.reshape(entry["segmentation"]["size"], order="F")
        assert (mask == (render(scene, 112)[1] == index)).all()
        assert mask.sum() == entry["area"]
        x, y, w, h = (int(v) for v in entry["bbox"])
        assert mask[y : y + h, x : x + w].sum() == mask.sum()
    captions = _read(folder, "annotations/captions_val2014.json")
    assert len(captions["annotations"]) == 5 * len(captions["images"])
    with Image.open(folder / "val2014" / captions["images"][0]["file_name"]) as picture:
        assert picture.size == (112, 112)


def test_run_lengths_start_with_zeros() -> None:
    assert run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert run_lengths(np.array([[False, False]])) == [2]


def test_simulated_annotators_agree_as_often_as_people() -> None:
    hits: dict[str, list[float]] = collections.defaultdict(list)
    for seed in range(200):
        for question in ask(make_scene(seed), 20):
            answers = [a["answer"] for a in annotators(question, seed)]
            for k, answer in enumerate(answers):
                others = answers[:k] + answers[k + 1 :]
                hits[answer_type(question.answer)].append(min(1.0, others.count(answer) / 3))
    human = {"yes/no": 0.951, "number": 0.795, "other": 0.667}  # real set, leave-one-out
    for kind, real in human.items():
        assert abs(np.mean(hits[kind]) - real) < 0.08, (kind, np.mean(hits[kind]))
