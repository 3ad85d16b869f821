"""Disturbances by name: what they touch, what they leave, how lists are read."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from atp.errors import BadInput
from atp.evals.robustness import disturb, grammar, synonyms, words
from atp.evals.robustness.constants import COMMON, CORRUPTIONS
from atp.evals.robustness.corruptions import corrupt
from atp.evals.robustness.disturb import GROUPS, NAMES, Disturbance, read_disturbances
from atp.evals.robustness.perturb import PERTURBATIONS, perturb

QUESTION = "Is the bicycle to the left of the traffic light?"
PIXELS = (np.arange(32 * 32 * 3).reshape(32, 32, 3) % 256).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_touches_the_picture_or_the_question_and_not_both(name: str) -> None:
    one, image = Disturbance(name, 3), Image.fromarray(PIXELS)
    picture, question = one.picture(image, "i"), one.question(QUESTION, "q")
    assert one.of_picture == (picture is not image) == (question == QUESTION)
    assert one.keeps_answer == (name != "replaced")


def test_is_the_corruption_or_perturbation_of_that_name_severity_and_seed() -> None:
    picture = Disturbance("fog", 2, seed=5).picture(Image.fromarray(PIXELS), "i")
    assert np.array_equal(np.asarray(picture), corrupt(PIXELS, "fog", 2, "i", seed=5))
    assert Disturbance("typing", 2, seed=5).question(QUESTION, "q") == perturb(QUESTION, "typing", 2, "q", seed=5).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fog", ["fog:1", "fog:2", "fog:3", "fog:4", "fog:5"]),
        ("typing:3, fog:4-5", ["typing:3", "fog:4", "fog:5"]),
        ("fog:2,fog:1-2", ["fog:2", "fog:1"]),
        ("common:1", [f"{name}:1" for name in COMMON]),
        ("replaced:5", ["replaced:5"]),
    ],
)
def test_lists(text: str, expected: list[str]) -> None:
    assert [str(one) for one in read_disturbances(text)] == expected


def test_all_is_what_keeps_the_answer() -> None:
    everything = read_disturbances("all", seed=2)
    assert len(everything) == 5 * (len(CORRUPTIONS) + len(PERTURBATIONS)) == 5 * (19 + 7)
    assert all(one.keeps_answer and one.seed == 2 for one in everything)
    assert set(GROUPS["common"]) | set(GROUPS["extra"]) == set(GROUPS["pictures"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("foog", r"unknown disturbance 'foog'\. Did you mean 'fog'\? Known: common, extra, pictures"),
        ("fog:6", "severity must be 1, 2, 3, 4 or 5, got 6"),
        ("fog:4-2", r"severities of 'fog:4-2' run backwards; write fog:2-4"),
        ("fog,,snow", r"cannot read '' in 'fog,,snow'; write a name, name:severity or name:first-last: fog, fog:3"),
        ("fog:high", "cannot read 'fog:high'"),
    ],
)
def test_bad_lists_are_named(text: str, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        read_disturbances(text)


def test_unknown_name_is_named() -> None:
    with pytest.raises(BadInput, match=r"unknown disturbance 'jpeg_compresion'\. Did you mean 'jpeg_compression'"):
        Disturbance("jpeg_compresion", 1)


@pytest.mark.parametrize("module", [disturb, grammar, synonyms, words], ids=lambda m: m.__name__)
def test_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=1)


NO_SCIPY = """
import sys
sys.modules["scipy"] = None
from atp.evals.robustness.disturb import Disturbance
print(Disturbance("dropped", 1).question("Is there a cup?", "q") != "Is there a cup?")
try:
    import atp.evals.robustness.corruptions
except Exception as error:
    print(type(error).__name__, error)
"""


def test_questions_need_no_scipy_and_pictures_say_how_to_get_it() -> None:
    source = str(Path(__file__).parents[3] / "src")
    done = subprocess.run(
        [sys.executable, "-c", NO_SCIPY], check=True, capture_output=True, text=True, env={"PYTHONPATH": source}
    )
    assert done.stdout.splitlines() == [
        "True",
        "AtpError image corruptions need scipy, which is not installed: pip install 'atp-vlm[eval]'",
    ]
