"""Reading: TextVQA's rule by hand, and signs that are where and what their file says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from atp.errors import BadInput
from atp.evals.tasks import open_task
from atp.evals.tasks.signs import HEIGHTS, NATIVE, _font, main, signed, write_signs
from atp.scenes import make_scene, render
from atp.scenes.catalog import COLORS


def test_small_set_by_hand(official: Path) -> None:
    task = open_task("textvqa", official)
    assert [example.kind for example in task.examples] == ["words", "number", "words"]
    scores = task.score({"34602": "Dakota", "34603": "23.", "34604": "Five"})
    assert scores.items["accuracy"].tolist() == [1.0, 1.0, 1.0]
    assert task.score({"34602": "dakota digital"}).items["accuracy"][0] == pytest.approx(0.3)
    assert open_task("textvqa", official, mode="official").score({"34603": "23."}).items["accuracy"][1] == 0.0


def test_the_test_split_has_no_answers(official: Path) -> None:
    path = official / "TextVQA_0.5.1_val.json"
    content = json.loads(path.read_text())
    for row in content["data"]:
        del row["answers"]
    (official / "TextVQA_0.5.1_test.json").write_text(json.dumps(content))
    task = open_task("textvqa", official, split="test")
    assert len(task.examples) == 3 and not task.problems.found
    with pytest.raises(BadInput, match="answers of TextVQA's test split are not public"):
        task.score({})


@pytest.mark.parametrize("seed", range(12))
def test_signs_change_the_picture_only_at_the_plates_and_keep_the_scene_visible(seed: int) -> None:
    scene = make_scene(seed, "val")
    image, rows = signed(scene)
    again, _ = signed(scene)
    assert np.array_equal(np.asarray(image), np.asarray(again))
    bare, owner = render(scene, NATIVE)
    changed = (np.asarray(image) != bare).any(-1)
    assert 0.002 < changed.mean() < 0.25
    for index in range(len(scene.things)):
        assert changed[owner == index].mean() < 0.9
    for row in rows:
        plate = (np.asarray(image) == COLORS[row["question"].split()[-2]]).all(-1) & changed
        ys, xs = np.nonzero(plate)
        inside = np.asarray(image)[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert plate.sum() > 100 and (inside > 200).all(-1).sum() > 10  # white letters on it
    number, word = rows
    assert number["answer"].isdigit() and word["answer"].isalpha()
    assert number["question"].startswith("What number is on the ") and word["question"].startswith("What word is on the ")
    assert number["question"].split()[-2] != word["question"].split()[-2]


@pytest.mark.parametrize("height", HEIGHTS)
def test_capitals_have_the_height_that_the_file_says(height: int) -> None:
    canvas = Image.new("L", (100, 100))
    from PIL import ImageDraw

    ImageDraw.Draw(canvas).text((5, 5), "H", fill=255, font=_font(height))
    rows = np.flatnonzero((np.asarray(canvas) > 100).any(1))
    assert abs(rows[-1] - rows[0] + 1 - height) <= 1


def test_kinds_are_letter_heights_and_small_letters_can_fail_alone(tmp_path: Path) -> None:
    write_signs(tmp_path, range(30))
    task = open_task("textvqa", tmp_path, strict=True)
    small = f"{HEIGHTS[0]:02d} px"
    scores = task.score({e.key: "?" if e.kind == small else e.answer.upper() for e in task.examples})
    assert scores.tables["kind"] == {f"{h:02d} px": 0.0 if h == HEIGHTS[0] else 100.0 for h in HEIGHTS}


def test_the_command_writes_what_it_says(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [str(tmp_path / "out"), "--images", "2"])
    assert done.exit_code == 0 and "2 images, 4 questions" in done.output
    assert len(open_task("textvqa", tmp_path / "out", strict=True).examples) == 4
    assert CliRunner().invoke(app, [str(tmp_path), "--split", "nope"]).exit_code == 2
