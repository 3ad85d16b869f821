"""Reading questions back, answering them from the scene, and questions whose answer changes."""

from __future__ import annotations

import collections
import re
from dataclasses import replace

import pytest

from atp.errors import BadInput
from atp.evals.robustness.contrast import CHANGES, OPPOSITE, contrast, contrasts
from atp.evals.robustness.grammar import parse
from atp.evals.robustness.truth import Truth, execute
from atp.scenes import Scene, Thing, ask, make_scene
from atp.scenes.catalog import BY_NAME, COLOR_NAMES

SCENES = [make_scene(seed, "val") for seed in range(28)]
ASKED = [(scene, question) for scene in SCENES for question in ask(scene, 20)]


def thing(name: str, x: float, y: float = 0.5, side: float = 0.2, color: str = "") -> Thing:
    return Thing(BY_NAME[name], COLOR_NAMES.index(color) if color else -1, x, y, side, False)


ROOM = Scene(0, "val", "noto", (thing("cup", 0.2, color="red"), thing("cup", 0.5, color="blue"), thing("cat", 0.8, 0.2, 0.3)), 0)


def test_every_question_is_read_back_and_answered_alike() -> None:
    for scene, question in ASKED:
        program = parse(question.text)
        assert program == tuple((n, re.sub(r" \(\d+\)$", "", a), i) for n, a, i in question.program), question
        assert execute(program, scene) == Truth(question.answer, tuple(sorted(question.about))), question


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is there a red cup?", Truth("yes", (0,))),
        ("Is there a green cup?", Truth("no", ())),
        ("Is there a cup or a dog?", Truth("yes", (0, 1))),
        ("How many cups are there?", Truth("2", (0, 1))),
        ("Are there more cups than cats?", Truth("yes", (0, 1, 2))),
        ("What color is the red cup?", Truth("red", (0,))),
        ("Is the cat bigger than the red cup?", Truth("yes", (0, 2))),
        ("Is the cat left or right of the red cup?", Truth("right", (0, 2))),
        ("Is the red cup above the cat?", Truth("no", (0, 2))),
        ("What is the leftmost object?", Truth("cup", (0,))),
        ("Is the cup red?", None),  # which of the two
        ("What color is the cat?", None),  # the artist's own colours
        ("Is the red cup above the blue cup?", None),  # neither
        ("Is the red cup bigger than the blue cup?", None),
        ("What is the lowest object?", None),
        ("Is the cat above the cat?", None),
    ],
)
def test_truth_of_a_room_with_two_cups_and_a_cat(text: str, expected: Truth | None) -> None:
    program = parse(text)
    assert program is not None
    assert execute(program, ROOM) == expected


@pytest.mark.parametrize(
    "text", ["", "Is there a unicorn?", "What is the man doing?", "Is there a cup, please?", "How many cup are there?"]
)
def test_other_sentences_are_not_read(text: str) -> None:
    assert parse(text) is None


def test_unknown_operation_is_named() -> None:
    with pytest.raises(BadInput, match=r"unknown operation 'exists' in a program\. Did you mean 'exist'"):
        execute((("select", "cup", ()), ("exists", "?", (0,))), ROOM)


def test_contrast_changes_the_answer_and_the_new_one_is_true() -> None:
    changes: collections.Counter[str] = collections.Counter()
    for scene, question in ASKED:
        found = contrast(scene, question)
        if found is None:
            continue
        changes[found.change] += 1
        assert found.original is question
        assert found.changed.answer != question.answer and found.changed.text != question.text
        program = parse(found.changed.text)
        assert program is not None and program == found.changed.program
        assert execute(program, scene) == Truth(found.changed.answer, found.changed.about)
    assert set(changes) == set(CHANGES)
    assert changes.total() > 0.9 * len(ASKED)  # nearly every question has one


def test_contrast_is_one_small_change() -> None:
    for scene, question in ASKED[:200]:
        for change in ("color", "direction", "connective"):
            found = contrast(scene, question, changes=(change,))
            if found is not None:
                before, after = (re.findall(r"\w+", t) for t in (question.text, found.changed.text))
                assert len(before) == len(after)
                assert 1 <= sum(a != b and {a, b} != {"a", "an"} for a, b in zip(before, after, strict=True)) <= 2


def test_a_mirrored_picture_gives_the_direction_contrasts_their_answers() -> None:
    compared = 0
    for scene, question in ASKED:
        found = contrast(scene, question, changes=("direction",))
        if found is None or not re.search(r"to the (left|right) of|leftmost|rightmost", question.text):
            continue
        mirror = replace(scene, things=tuple(replace(t, x=1 - t.x) for t in scene.things))
        truth = execute(parse(question.text) or (), mirror)
        assert truth is not None and truth.answer == found.changed.answer, question
        compared += 1
    assert compared > 10


def test_answers_stay_balanced() -> None:
    answers = collections.Counter(c.changed.answer for s in SCENES for c in contrasts(s, ask(s, 20)))
    assert 0.4 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.6


def test_same_seed_same_contrast_other_seed_other() -> None:
    first = [contrast(s, q) for s, q in ASKED[:60]]
    assert first == [contrast(s, q) for s, q in ASKED[:60]]
    assert first != [contrast(s, q, seed=1) for s, q in ASKED[:60]]


def test_choice_questions_change_by_their_arguments_only() -> None:
    asked = [(s, q) for s, q in ASKED if " or " in q.text and q.kind == "relation"]
    assert asked
    for scene, question in asked:
        found = contrast(scene, question, changes=("arguments",))
        assert found is not None and found.changed.answer == OPPOSITE[question.answer]
        assert contrast(scene, question, changes=("direction",)) is None


def test_unknown_change_is_named() -> None:
    with pytest.raises(BadInput, match=r"unknown change 'colour'\. Did you mean 'color'\? Known: name, color"):
        contrast(*ASKED[0], changes=("colour",))
