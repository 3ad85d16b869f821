"""Every question has a mask of what it is about, inside the boxes that GQA's files give."""

from __future__ import annotations

import numpy as np

from atp.evals.grounding.subjects import subjects
from atp.scenes import ask, make_scene, render


def test_masks_show_the_objects_of_the_answer() -> None:
    found = list(subjects(30, size=64))
    assert len(found) == 30 == len({subject.key for subject in found})
    for subject in found:
        split, seed, number = subject.key.split(":")
        scene = make_scene(int(seed), split)
        question = ask(scene, 20)[int(number)]
        assert (subject.question, subject.answer, subject.group) == (question.text, question.answer, int(seed))
        owner = render(scene, 64)[1]
        assert set(np.unique(owner[subject.mask])) <= set(question.about)
        assert subject.mask.any()


def test_regions_hold_the_mask_of_a_question_about_one_object() -> None:
    one = [s for s in subjects(60, size=64) if s.question.startswith("What color is")]
    assert len(one) >= 3
    for subject in one:
        ((left, top, right, bottom),) = subject.regions
        rows, columns = np.nonzero(subject.mask)
        inside = (columns >= 64 * left - 1) & (columns <= 64 * right) & (rows >= 64 * top - 1) & (rows <= 64 * bottom)
        assert inside.mean() > 0.95


def test_absent_things_are_not_asked_about() -> None:
    assert not [s for s in subjects(60, size=64) if s.answer == "0"]
