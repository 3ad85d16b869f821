"""Perturbed questions: repeatable, graded, and still true."""

from __future__ import annotations

import collections
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atp.errors import BadInput
from atp.evals.robustness import phrasing
from atp.evals.robustness.grammar import parse
from atp.evals.robustness.letters import NEIGHBOURS, OCR
from atp.evals.robustness.perturb import PERTURBATIONS, SEVERITIES, perturb
from atp.evals.robustness.spelling import TABLE, misspellings
from atp.evals.robustness.synonyms import MEANING, SYNONYMS, canonical
from atp.evals.robustness.words import (
    CONTENT,
    FUNCTION,
    LEXICON,
    SHARES,
    distance,
    is_word,
    pieces,
    skeleton,
    still_reads,
    wanted,
)
from atp.scenes import ask, make_scene

SCENES = [make_scene(seed, "val") for seed in range(7)]
ASKED = [(scene, question) for scene in SCENES for question in ask(scene, 12)]
TEXTS = list(dict.fromkeys(question.text for _, question in ASKED))
OPEN = ["What is the man in the 2 blue shirts holding?", "Are the people's bags on the left or on the right?", "Why?", "ok"]


def changed(text: str, name: str, severity: int) -> str:
    return perturb(text, name, severity, text).text


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_severity_is_graded(name: str) -> None:
    edits = np.array([[perturb(text, name, severity, text).edits for severity in SEVERITIES] for text in TEXTS])
    far = np.array([[distance(text, changed(text, name, severity)) for severity in SEVERITIES] for text in TEXTS])
    assert (np.diff(edits, axis=1) >= 0).all()
    assert (np.diff(far.mean(0)) >= 0).all() and far.mean(0)[4] > 1.3 * far.mean(0)[0], far.mean(0)
    asked = np.array([[wanted(s, sum(map(is_word, pieces(t)))) for s in SEVERITIES] for t in TEXTS])
    if name not in ("typing", "ocr"):
        assert (edits <= asked).all()
    if name not in ("synonyms",):
        assert (edits[:, 0] >= 1).all()  # the mildest severity is never the question itself
    assert ((edits > 0) == (far > 0)).all()


@pytest.mark.parametrize("name", ["typing", "ocr"])
def test_letters_are_edited_in_the_stated_share(name: str) -> None:
    for severity, share in zip(SEVERITIES[:4], SHARES, strict=False):
        letters = [sum(len(p) for p in pieces(text) if is_word(p)) for text in TEXTS]
        done = [perturb(text, name, severity, text).edits for text in TEXTS]
        assert sum(done) / sum(letters) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("name", ["typing", "ocr", "spelling"])
def test_every_misspelt_word_still_reads_as_itself(name: str) -> None:
    for text in [*TEXTS, *OPEN]:
        before = [p for p in pieces(text) if is_word(p)]
        after = re.sub(r"[^\w\s'’]", "", changed(text, name, 5)).split()
        kept = [(a, b) for a, b in zip(before, after, strict=False) if a.lower() in CONTENT]
        if len(before) == len(after):  # a word of two letters can be lost
            assert all(still_reads(a, b) for a, b in kept), (text, after)


def test_no_letters_edit_reads_as_another_word() -> None:
    for text in TEXTS:
        for name in ("typing", "ocr", "spelling"):
            words = [p.lower() for p in pieces(changed(text, name, 5)) if is_word(p)]
            before = collections.Counter(p.lower() for p in pieces(text) if is_word(p))
            assert not (collections.Counter(w for w in words if w in CONTENT) - before), (text, words)


@pytest.mark.parametrize("name", ["dropped", "order"])
def test_words_that_carry_meaning_keep_their_order(name: str) -> None:
    for text in [*TEXTS, *OPEN]:
        assert skeleton(changed(text, name, 5)) == skeleton(text)
    assert all(is_word(word) for word in FUNCTION) and not FUNCTION & CONTENT


def test_equal_skeletons_have_equal_answers() -> None:
    answers: dict[tuple[int, tuple[str, ...]], set[str]] = collections.defaultdict(set)
    for scene, question in ASKED:
        answers[scene.seed, skeleton(question.text)].add(question.answer)
    assert all(len(said) == 1 for said in answers.values())


def test_fillers_say_nothing() -> None:
    said = " ".join((*phrasing.BEFORE, *phrasing.BETWEEN, *phrasing.AFTER)).lower()
    assert not set(re.findall(r"\w+", said)) & CONTENT
    for text in [*TEXTS, *OPEN]:
        rest = changed(text, "filler", 5)
        for words in (*phrasing.BEFORE, *phrasing.BETWEEN, *phrasing.AFTER):
            rest = rest.replace(f"{words} ", "").replace(f" {words}", "")
        assert rest == text


def test_synonyms_map_back_to_the_very_question() -> None:
    replaced = 0
    for _, question in ASKED:
        found = perturb(question.text, "synonyms", 5, question.text)
        assert canonical(found.text) == question.text, found
        assert parse(canonical(found.text)) == parse(question.text) is not None
        replaced += found.edits
    assert replaced > len(ASKED)


def test_every_synonym_has_one_meaning_and_is_no_word_of_the_grammar() -> None:
    assert len(MEANING) == sum(map(len, SYNONYMS.values()))
    assert not set(MEANING) & (set(SYNONYMS) | CONTENT)


@pytest.mark.parametrize(
    "text",
    ["Is the cup left or right of the vase?", "Is the red car above or below the couch?", "Is that a bicycle or a motorcycle?"],
)
def test_offered_answers_are_not_replaced(text: str) -> None:
    assert changed(text, "synonyms", 5) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Do you see a mug in the photo?", "Is there a cup in the image?"),
        ("Can you find a plane?", "Is there an airplane?"),
        ("Is the sofa over the bike?", "Is the couch above the bicycle?"),
    ],
)
def test_canonical(text: str, expected: str) -> None:
    assert canonical(text) == expected


@pytest.mark.parametrize(
    ("word", "written", "reads"),
    [
        ("cat", "cst", True),
        ("cat", "car", False),  # another name
        ("cups", "cup", False),  # another number
        ("yellow", "yelow", False),  # below
        ("red", "rde", True),  # two letters swapped are one slip
        ("left", "lfet", True),
        ("or", "of", False),
        ("three", "thre", False),  # numbers are never touched
        ("2", "22", False),
        ("is", "15", False),  # nothing becomes a number
        ("there", "three", False),
        ("window", "windwo", True),
    ],
)
def test_what_still_reads(word: str, written: str, reads: bool) -> None:
    assert still_reads(word, written) is reads
    assert still_reads(word.upper(), written) is reads


@pytest.mark.parametrize(
    ("a", "b", "expected"), [("kitten", "sitting", 3), ("", "abc", 3), ("ca", "ac", 1), ("ca", "abc", 3), ("same", "same", 0)]
)
def test_distance_known_answers(a: str, b: str, expected: int) -> None:
    """Levenshtein's textbook pair; "ca" to "abc" is 3 by optimal string alignment (2 by full Damerau-Levenshtein)."""
    assert distance(a, b) == distance(b, a) == expected


def test_tables_hold_misspellings_only() -> None:
    refused = [(word, other) for word, others in TABLE.items() for other in others if other not in misspellings(word)]
    assert refused == []
    assert not {other for others in TABLE.values() for other in others} & CONTENT
    assert all(len(looks) and letter not in looks.split() for letter, looks in OCR.items())


def test_neighbours_are_mutual_and_near() -> None:
    assert all(a in NEIGHBOURS[b] for a, near in NEIGHBOURS.items() for b in near)
    assert set(NEIGHBOURS["g"]) == set("ftyhvb") and set(NEIGHBOURS["q"]) == set("wa")


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_same_key_same_text_other_key_other_text(name: str) -> None:
    text = "Is the bicycle to the left of the traffic light?"
    assert perturb(text, name, 3, "a") == perturb(text, name, 3, "a")
    assert len({perturb(text, name, 3, str(key)).text for key in range(20)}) > 2
    assert len({perturb(text, name, 3, "a", seed).text for seed in range(20)}) > 2


def test_texts_are_the_same_in_another_process() -> None:
    code = f"from atp.evals.robustness.perturb import *\nfor n in PERTURBATIONS: print(perturb({TEXTS[0]!r}, n, 4, 'k').text)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src"), "PYTHONHASHSEED": "17"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == [perturb(TEXTS[0], name, 4, "k").text for name in PERTURBATIONS]


def test_numbers_are_left_alone() -> None:
    rng = random.Random(0)
    for name in PERTURBATIONS:
        for _ in range(20):
            key = str(rng.random())
            assert re.search(r"\b42\b", perturb("Are there 42 red books in the image?", name, 5, key).text)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "typo"}, r"unknown perturbation 'typo'\. Did you mean 'typing'\? Known: typing, ocr, spelling, dropped"),
        ({"severity": 0}, "severity must be 1, 2, 3, 4 or 5, got 0; 0 would be the question itself"),
        ({"severity": False}, "got False"),
        ({"text": " ?"}, r"a question needs words, got ' \?'; leave such a question out"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        perturb(**({"text": "Is there a cup?", "name": "typing", "severity": 1, "key": "a"} | arguments))  # type: ignore[arg-type]


def test_lexicon_has_every_word_of_the_grammar() -> None:
    asked = {p.lower() for scene in SCENES for q in ask(scene, 40) for p in pieces(q.text) if is_word(p)}
    assert asked <= LEXICON
