"""GQA's metrics against values worked out by hand from the definitions of the official script."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from atp.errors import BadInput
from atp.evals.tasks import gqa_rules as rules
from atp.evals.tasks import open_task
from atp.evals.tasks.gqa import Gqa

COLOR, WHITE, RED, COMMON = "07333408", "07333409", "07333410", "07333411"


def opened(folder: Path, **options: object) -> Gqa:
    task = open_task("gqa", folder, **options)  # type: ignore[arg-type]
    assert isinstance(task, Gqa)
    return task


def test_accuracy_is_over_balanced_questions_and_exact(official: Path) -> None:
    task = opened(official, everything=True)
    scores = task.score({COLOR: "white", WHITE: "yes", RED: "yes", COMMON: "Color"})
    assert scores.metrics["accuracy"] == pytest.approx(200 / 3)
    assert scores.metrics["open"] == 50.0 and scores.metrics["binary"] == 100.0
    assert math.isnan(scores.items["accuracy"][[e.key for e in task.examples].index(RED)])
    assert scores.tables["structural"] == {"query": 50.0, "verify": 100.0}
    assert scores.tables["words"] == {"4": 100.0, "5": 100.0, "6": 0.0}
    assert scores.counts["balanced"] == 3


@pytest.mark.parametrize(("mode", "right"), [("gqa", 0), ("llava", 1), ("lavis", 1)])
def test_modes_differ_in_what_they_forgive(mode: str, right: int, official: Path) -> None:
    assert opened(official, mode=mode).score({WHITE: "Yes."}).items["accuracy"][1] == right


def test_lavis_normalises_both_sides() -> None:
    assert rules.same("The Two", "2", "lavis") and not rules.same("The Two", "2", "llava")


def test_steps_leave_out_the_final_query(official: Path) -> None:
    questions = opened(official).questions
    assert questions[COLOR].steps == 2  # select, query: color
    assert questions[WHITE].steps == 2  # select, verify color; not exist
    entry = {"question": "q", "semantic": [{"operation": "query", "argument": "name", "dependencies": []}]}
    assert rules.parse("1", entry).steps == 0
    assert rules.parse("1", {"question": "a b"}).structural == "unknown"


def test_consistency_needs_all_entailed_questions(official: Path) -> None:
    task = opened(official, everything=True)
    scores = task.score({COLOR: "white", WHITE: "yes", RED: "yes", COMMON: "shape"})
    # colour is right and entails "is it white" (right) and "is it red" (wrong): 1/2; "white" entails colour: 1
    assert scores.metrics["consistency"] == pytest.approx(75.0)
    wrong = task.score({COLOR: "red", WHITE: "yes", RED: "no", COMMON: "shape"})
    assert wrong.metrics["consistency"] == 0.0  # only "white" counts, and what it entails is wrong
    assert "consistency" not in task.score({COLOR: "red", WHITE: "no"}).metrics
    balanced = opened(official).score({COLOR: "white", WHITE: "yes"})
    assert balanced.counts["consistency_skipped"] == 1 and balanced.metrics["consistency"] == 100.0


def test_validity_and_plausibility_by_the_choices(official: Path) -> None:
    task = opened(official)
    scores = task.score({COLOR: "red", WHITE: "white", COMMON: "shape"})
    assert scores.items["validity"].tolist() == [1.0, 1.0, 1.0]
    assert scores.items["plausibility"].tolist() == [0.0, 1.0, 1.0]  # "common" asks for color, material or shape
    assert task.score({COMMON: "white"}).items["validity"][2] == 0.0
    (official / "gqa" / "val_choices.json").unlink()
    assert "validity" not in opened(official).score({COLOR: "red"}).metrics  # never printed as 0


def test_distribution_is_the_weighted_chi_square() -> None:
    gold = [("color", "red")] * 3 + [("color", "blue")] + [("size", "big")] * 2 + [(None, "x")]
    said = ["red", "blue", "green", "blue", "big", "big", "y"]
    # color: (1-3)^2/3 + (2-1)^2/1 = 7/3 over 4 questions; size: 0 over 2
    assert rules.distribution(gold, said) == pytest.approx(7 / 3 * 4 / 6 / 100)
    assert math.isnan(rules.distribution([(None, "x")], ["y"]))


def test_grounding_takes_the_first_index_as_x() -> None:
    attention = np.array([[0.1, 0.2], [0.3, 0.4]])
    left, top = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5)
    assert rules.grounding([left], attention) == pytest.approx(0.1 + 0.2)
    assert rules.grounding([top], attention) == pytest.approx(0.1 + 0.3)
    assert rules.grounding([(0.0, 0.0, 0.25, 1.0)], attention) == pytest.approx(0.5 * 0.3)  # half of each cell
    assert rules.grounding([left, left], attention) == pytest.approx(0.6)  # counted twice, as officially
    assert rules.grounding([], attention) == 0.0
    boxes = [[0.0, 0.0, 0.5, 0.5, 0.7], [0.5, 0.5, 1.0, 1.0, 0.3]]
    assert rules.grounding([left], boxes, boxes=True) == pytest.approx(0.7)


def test_grounding_of_a_task(official: Path) -> None:
    task = opened(official, everything=True)
    even = np.full((2, 2), 0.25)
    scores = task.grounding({COLOR: even, WHITE: even, RED: even})
    # colour points at the wall (left half) in the question and in the full answer: twice; the other balanced one at nothing
    assert scores.items["grounding"][:2].tolist() == [1.0, 0.0]
    assert scores.metrics["grounding"] == 50.0
    assert scores.counts == {"asked": 4, "without_attention": 1, "without_objects": 0}
    with pytest.raises(BadInput, match="no question has attention and a scene graph: 3 without attention"):
        task.grounding({})
    (official / "gqa" / "val_sceneGraphs.json").unlink()
    with pytest.raises(BadInput, match="no scene graphs beside these questions"):
        opened(official).grounding({COLOR: even})


def test_scenes_ground_perfect_attention_higher_than_even(scenes: Path) -> None:
    task = opened(scenes)
    size = 8
    perfect, even = {}, {}
    for example in task.examples:
        question, graph = task.questions[example.key], task.graphs[example.group]
        if not question.pointed:
            continue
        x0, y0, x1, y1 = rules.region(graph, question.pointed[0])
        spot = np.zeros((size, size))
        spot[min(size - 1, int((x0 + x1) / 2 * size)), min(size - 1, int((y0 + y1) / 2 * size))] = 1.0
        perfect[example.key], even[example.key] = spot, np.full((size, size), size**-2)
    assert len(perfect) > 20
    assert task.grounding(perfect).metrics["grounding"] > 3 * task.grounding(even).metrics["grounding"]


def test_coco_names_are_never_taken_for_official_gqa_images(official: Path) -> None:
    (official / "images" / "2370799.jpg").rename(official / "val2014" / "COCO_val2014_000002370799.jpg")
    task = opened(official)
    assert [example.group for example in task.examples] == ["n42"]
    assert task.problems.counts["images listed but absent"] == 1
