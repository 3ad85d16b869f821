"""VQA accuracy against known answers and against the official code's scores of genuine questions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from atp.evals.tasks import open_task
from atp.evals.tasks.vqa_rules import CONTRACTIONS, MODES, accuracy, normalized

SAMPLE = Path(__file__).parent / "data" / "vqav2_sample.json"
REAL = Path(__file__).parents[4] / "shared" / "data" / "vqav2"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_leave_one_out_gives_the_published_steps(matches: int, expected: float, mode: str) -> None:
    others = [f"other{i}" for i in range(10 - matches)]
    assert accuracy("cat", ["cat"] * matches + others, mode) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("10.", "10"),
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("a,b", "b"),  # a comma inside becomes a space, and then "a" is an article
        ("x,y", "x y"),
        ("x, y z,w", "x y zw"),  # a mark that touches a space goes without one,
        ("x- y-z", "x yz"),  # everywhere in the text
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # two apostrophes are missing
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # as in the official table
        ("it's 5:30 & 10%", "it's 5:30 & 10%"),
        ("." * 40, "." * 8),  # the official code removes 32 full stops at most
        ("", ""),
    ],
)
def test_normalisation_has_the_official_quirks(text: str, expected: str) -> None:
    assert normalized(text) == expected


def test_contractions_have_as_many_entries_as_the_official_table_can_match() -> None:
    # 120 entries; two map to themselves, and four have a capital I, which lower-cased words never meet
    assert len(CONTRACTIONS) == 120 - 2 - 4
    assert CONTRACTIONS["y'alld've"] == "y'all'd've" and CONTRACTIONS["twas"] == "'twas" and "ill" not in CONTRACTIONS


def test_official_mode_compares_raw_strings_where_all_agree() -> None:
    assert accuracy("The cat.", ["cat"] * 10) == 0.0
    assert accuracy(" cat\n", ["cat"] * 10) == 1.0
    assert accuracy("The cat.", ["cat"] * 9 + ["dog"]) == 1.0
    assert accuracy("The cat.", ["cat"] * 10, "evalai") == 1.0


def test_evalai_mode_drops_commas_first_and_splits_off_the_genitive() -> None:
    answers = ["mans"] * 5 + ["x"] * 5
    assert accuracy("x,y", ["xy"] * 5 + ["z"] * 5, "evalai") == 1.0
    assert accuracy("x,y", ["xy"] * 5 + ["z"] * 5, "official") == 0.0
    assert accuracy("man's", answers, "evalai") == 0.0
    assert accuracy("cat's", ["cat 's"] * 5 + ["z"] * 5, "evalai") == 1.0


def test_genuine_questions_score_as_the_official_code_scored_them(tmp_path: Path) -> None:
    content = json.loads(SAMPLE.read_text())
    for name, part in (
        ("v2_OpenEnded_mscoco_val2014_questions.json", "questions"),
        ("v2_mscoco_val2014_annotations.json", "annotations"),
    ):
        (tmp_path / name).write_text(json.dumps({part: content[part]}))
    task = open_task("vqav2", tmp_path, images=False, strict=True)
    scores = task.score({str(row["question_id"]): row["answer"] for row in content["results"]})
    found = {e.key: round(100 * float(v), 2) for e, v in zip(task.examples, scores.items["accuracy"], strict=True)}
    assert found == content["official_scores"] and len(found) == 56
    assert len(set(found.values())) == 5  # every step of the rule occurs


@pytest.mark.skipif(not REAL.exists(), reason="the genuine VQAv2 sample is not beside this checkout")
def test_all_1500_genuine_questions_score_as_the_official_code_scored_them() -> None:
    official = json.loads((REAL / "official_scores.json").read_text())
    said = {str(row["question_id"]): row["answer"] for row in json.loads((REAL / "results.json").read_text())}
    task = open_task("vqav2", REAL, images=False, strict=True)
    scores = task.score(said)
    assert round(scores.metrics["accuracy"], 2) == official["overall"] == 50.72
    assert {k: round(v, 2) for k, v in scores.tables["answer_type"].items()} == official["perAnswerType"]
    found = {e.key: round(100 * float(v), 2) for e, v in zip(task.examples, scores.items["accuracy"], strict=True)}
    assert found == official["perQuestion"]


def test_small_set_by_hand(official: Path) -> None:
    task = open_task("vqav2", official)
    said: dict[str, object] = {"42000": "yes", "42001": "Two.", "73000": "a mat", "581929000": math.nan}
    scores = task.score(said)
    # two = 2 after normalisation: 9 people; "the mat" = "mat": 6 people
    assert scores.items["accuracy"].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert scores.tables["answer_type"] == {"number": 100.0, "other": 100.0, "yes/no": 50.0}
    assert scores.tables["question_type"]["is the"] == 0.0
    assert task.score(said | {"73000": "sofa"}).items["accuracy"][2] == pytest.approx(0.3)
    assert task.examples[2].references == ("the mat",) and task.examples[0].kind == "yes/no"
