"""POPE: reading answers, scores by hand, the blind bound, and questions made by the known rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from atp.errors import BadInput
from atp.evals.tasks import open_task
from atp.evals.tasks import pope_rules as rules

OBJECTS = {
    "a.jpg": ("dog", "cat", "car", "bus"),
    "b.jpg": ("dog", "cat", "person"),
    "c.jpg": ("person", "dog", "orange"),
    "d.jpg": ("cat", "car"),
}


@pytest.mark.parametrize(
    ("said", "pope", "exact"),
    [
        ("yes", "yes", "yes"),
        ("No", "no", "no"),
        ("no, there is not", "no", ""),
        ("There is not a dog", "no", ""),
        ("Yes. There is no cat.", "yes", ""),  # only the first sentence is read
        ("NO", "yes", "no"),  # the official code knows No, not and no
        ("nothing", "yes", ""),
        ("", "yes", ""),
        (" Yes ", "yes", "yes"),
    ],
)
def test_answers_are_read_by_the_official_rule(said: str, pope: str, exact: str) -> None:
    assert rules.parse(said) == pope
    assert rules.parse(said, "exact") == exact


def test_measures_by_hand() -> None:
    said = ["yes", "yes", "yes", "no", "no", "no"]
    labels = ["yes", "yes", "no", "yes", "no", "no"]
    found = rules.measured(said, labels)
    assert found == pytest.approx({"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.5})
    always = rules.measured(["yes"] * 4, ["yes", "no", "yes", "no"])
    assert always == pytest.approx({"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_ratio": 1.0})
    never = rules.measured(["no"] * 4, ["yes", "no", "yes", "no"])
    assert (never["precision"], never["recall"], never["f1"], never["yes_ratio"]) == (0.0, 0.0, 0.0, 0.0)


def test_the_blind_bound_answers_each_name_with_its_majority() -> None:
    names = ["dog", "dog", "dog", "cat", "cat", "car"]
    labels = ["yes", "yes", "no", "no", "yes", "no"]
    assert rules.blind(names, labels) == pytest.approx((2 + 1 + 1) / 6)
    assert rules.yes_share(names, labels) == pytest.approx({"car": 0.0, "cat": 0.5, "dog": 2 / 3})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Is there a dog in the image?", "dog"),
        ("Is there an umbrella in the image?", "umbrella"),
        ("Is there an orange in the imange?", "orange"),  # what the released generator prints for vowels
        ("What is this?", "What is this?"),
    ],
)
def test_names_in_questions(text: str, name: str) -> None:
    assert rules.named(text) == name


def test_made_questions_have_the_right_article() -> None:
    assert rules.Poll("a.jpg", "orange", "yes").text == "Is there an orange in the image?"
    assert rules.named(rules.Poll("a.jpg", "dining table", "no").text) == "dining table"


def pairs(variant: str) -> list[tuple[str, str, str]]:
    return [(poll.image[0], poll.name, poll.label) for poll in rules.build(rules.sample(OBJECTS, 500, 0), variant)]


def test_popular_takes_the_most_frequent_absent_names() -> None:
    # dog 3, cat 2, person 2, then bus, car, orange 1 each, ties by name; d.jpg has too few objects to be drawn
    assert [name for image, name, label in pairs("popular") if image == "a" and label == "no"] == ["person", "orange"]
    assert [name for image, name, label in pairs("popular") if image == "b" and label == "no"] == ["bus", "car", "orange"]
    assert [name for image, name, label in pairs("popular") if image == "c" and label == "no"] == ["cat", "bus", "car"]


def test_adversarial_takes_what_stands_with_the_object_just_asked_for() -> None:
    # with person: dog 2, cat 1, orange 1; with dog: cat 2, person 2, bus, car, orange; with orange: dog, person
    found = [(name, label) for image, name, label in pairs("adversarial") if image == "c"]
    assert found == [("person", "yes"), ("cat", "no"), ("dog", "yes"), ("bus", "no"), ("orange", "yes"), ("car", "no")]


@pytest.mark.parametrize("variant", rules.VARIANTS)
def test_made_questions_are_true_balanced_and_repeatable(variant: str, scenes: Path) -> None:
    task = open_task("pope", scenes, variants=(variant,))
    again = open_task("pope", scenes, variants=(variant,), seed=0)
    assert task.examples == again.examples
    labels = Counter(example.answer for example in task.examples)
    assert labels["yes"] == labels["no"]
    asked = {(example.group, rules.named(example.question)) for example in task.examples}
    assert len(asked) == len(task.examples)  # nothing is asked twice of an image
    positive = {(e.group, rules.named(e.question)) for e in task.examples if e.answer == "yes"}
    for image in {example.group for example in task.examples}:
        assert sum(1 for group, _ in positive if group == image) == rules.POSITIVES


def test_another_seed_draws_other_negatives(scenes: Path) -> None:
    first, second = ([e.question for e in open_task("pope", scenes, variants=("random",), seed=seed).examples] for seed in (0, 1))
    assert first != second


def test_balanced_questions_leave_nothing_to_guess(scenes: Path) -> None:
    task = open_task("pope", scenes, variants=("balanced",))
    scores = task.score({example.key: "yes" for example in task.examples})
    assert scores.tables["balanced"]["blind"] == 50.0 and set(scores.tables["yes_share"].values()) == {50.0}
    others = open_task("pope", scenes).score({})
    assert others.tables["popular"]["blind"] > 60


def test_official_files_are_read_as_they_are(official: Path) -> None:
    task = open_task("pope", official, strict=True)
    assert len(task.examples) == 18 and Counter(e.kind for e in task.examples) == dict.fromkeys(rules.VARIANTS, 6)
    scores = task.score({example.key: "no" if example.kind == "random" else example.answer for example in task.examples})
    assert scores.tables["random"]["f1"] == 0.0 and scores.tables["popular"]["f1"] == 100.0
    assert scores.metrics["f1"] == pytest.approx(200 / 3)  # the mean over variants, as LLaVA-1.5 reports it
    assert scores.metrics["accuracy"] == pytest.approx((50 + 100 + 100) / 3)
    assert scores.tables["random"]["yes_ratio"] == 0.0  # of the answers, not of the labels
    assert scores.tables["random"]["blind"] == 100.0
    one = open_task("pope", official, variants=["adversarial"])
    assert {e.kind for e in one.examples} == {"adversarial"}


def test_questions_are_made_on_demand_or_where_there_are_no_files(official: Path) -> None:
    made = open_task("pope", official, generate=True, variants=("random",))
    assert [e.question for e in made.examples][:2] != [e.question for e in open_task("pope", official).examples][:2]
    for path in official.glob("pope/*"):
        path.unlink()
    assert open_task("pope", official, variants=("random",)).examples == made.examples
    with pytest.raises(BadInput, match="POPE has no variant 'hard'; choose of random, popular, adversarial, balanced"):
        open_task("pope", official, variants=("hard",))


def test_exact_mode_counts_unclear_answers(official: Path) -> None:
    task = open_task("pope", official, mode="exact")
    scores = task.score({example.key: "I see" for example in task.examples})
    assert scores.metrics["accuracy"] == 0.0 and scores.counts["unclear"] == 18
