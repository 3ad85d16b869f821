"""The spurious-correlation probe on planted images, for models with and without the fault."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from atp.errors import BadInput
from atp.evals.tasks import open_task
from atp.evals.tasks.spurious import SORTS, Spurious, build, companions

TAUGHT = [("fork", "knife")] * 8 + [("knife",), ("fork",)] + [("dog",)] * 5 + [("dog", "cat")]


def planted(folder: Path, taught: list[tuple[str, ...]], asked: list[tuple[str, ...]]) -> Path:
    """Write instances of training and asked images."""
    names = sorted({name for found in (*taught, *asked) for name in found})
    for split, images in (("train2014", taught), ("val2014", asked)):
        content = {
            "images": [{"id": i, "file_name": f"{split}_{i}.jpg"} for i in range(len(images))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": 100 * i + k, "image_id": i, "category_id": names.index(name)}
                for i, found in enumerate(images)
                for k, name in enumerate(found)
            ],
        }
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def test_companions_raise_the_chance_most() -> None:
    # P(knife | fork) = 8/9 against 9/16; P(cat | dog) = 1/6 against 1/16; a cat raises dogs from 6/16 to 1
    assert companions(TAUGHT) == {"knife": "fork", "fork": "knife", "cat": "dog", "dog": "cat"}
    assert companions([("a", "b"), ("a",), ("b",), ()]) == {}  # 1/2 against 2/4: nothing is raised
    assert companions([("a",)] * 3) == {}


@pytest.fixture
def probe(tmp_path: Path) -> Spurious:
    asked = [("fork", "knife")] * 4 + [("knife",)] * 4 + [("fork",)] * 4 + [("cup",)] * 4
    task = open_task("spurious", planted(tmp_path, TAUGHT, asked), images=False, strict=True)
    assert isinstance(task, Spurious)
    return task


def test_each_name_is_asked_equally_often_in_each_sort(probe: Spurious) -> None:
    counted = Counter((example.question, example.kind) for example in probe.examples)
    assert {question for question, _ in counted} == {"Is there a fork in the image?", "Is there a knife in the image?"}
    assert set(counted.values()) == {4} and len(counted) == 2 * len(SORTS)
    assert probe.source == "what goes together in train"


@pytest.mark.parametrize(
    ("yes_in", "gap", "recall", "accuracy"),
    [
        (("present",), 0.0, 100.0, 100.0),  # sees
        (("present", "companion"), 100.0, 100.0, 200 / 3),  # guesses from the company
        (("present", "companion", "control"), 0.0, 100.0, 100 / 3),  # says yes
        ((), 0.0, 0.0, 200 / 3),  # says no
    ],
)
def test_the_gap_finds_the_fault_and_only_it(
    probe: Spurious, yes_in: tuple[str, ...], gap: float, recall: float, accuracy: float
) -> None:
    scores = probe.score({example.key: "yes" if example.kind in yes_in else "no" for example in probe.examples})
    assert (scores.metrics["gap"], scores.metrics["recall"]) == (gap, recall)
    assert scores.metrics["accuracy"] == pytest.approx(accuracy)
    assert scores.tables["gap"] == {"fork": gap, "knife": gap}


def test_most_and_seed_choose_the_images() -> None:
    objects = {f"{i}.jpg": found for i, found in enumerate([("a", "b")] * 6 + [("b",)] * 6 + [("c",)] * 6)}
    first, again, other = (build(objects, {"a": "b"}, 2, seed) for seed in (0, 0, 1))
    assert first == again != other and Counter(p.sort for p in first) == dict.fromkeys(SORTS, 2)
    assert all(("b" in objects[p.poll.image]) for p in first if p.sort == "companion")


def test_without_training_instances_the_asked_ones_are_counted(scenes: Path, tmp_path: Path) -> None:
    task = open_task("spurious", scenes)
    assert isinstance(task, Spurious) and task.source == "what goes together in val"
    lonely = planted(tmp_path, [("a",)], [("a",)])
    with pytest.raises(BadInput, match="no question can be made from 1 images: every sort of image needs one; add images"):
        open_task("spurious", lonely, images=False)
