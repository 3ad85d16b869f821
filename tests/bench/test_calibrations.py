"""Counts per input as sides of a benchmark, beside fixed ones at the same budgets, on pictures that differ."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atp.adapters import adapt
from atp.bench.execute import case, steps
from atp.bench.settings import Settings
from atp.bench.sides import sides
from atp.bench.subject import Subject, open_subject
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.certificate import Certificate
from atp.cli import main
from atp.errors import BadInput

FEW = ["--rounds", "1", "--answer-tokens", "2", "--device", "cpu"]


@pytest.fixture
def subject(loaded: tuple[Any, Any], model_dir: Path, fitted: Path) -> Any:
    """The tiny model with its counts per input."""

    def make(*calibrations: str, **more: Any) -> Subject:
        asked = Settings(str(model_dir), calibrations=calibrations or (str(fitted),), rounds=1, **more)
        return Subject("tiny", adapt(loaded[0]), loaded[1], asked, given=asked.given())

    return make


def test_sides_stand_beside_the_fixed_ones_and_are_measured(subject: Any) -> None:
    own = subject(methods=("atp",), budgets=(0.8, 0.7), compare=("random",), round_to=2)
    told: list[str] = []
    made = case(own, 3, 2, told.append)
    found = [side["side"] for side in made["sides"]]
    both = [name for name in found if "/2" not in name]
    assert both == ["unpruned", *(f"{name} {b}" for name in ("atp", "atp:mine", "random") for b in (0.8, 0.7))]
    assert len(told) == 3 * len(found) <= steps(own.settings)
    for side in made["sides"]:
        adaptive = any(step["threshold"] is not None for step in side.get("plan", {}).get("steps", ()))
        assert adaptive == side["side"].startswith("atp:mine")
        if adaptive:
            assert side["flops_share"] == pytest.approx(side["flops"]["total"] / side["flops_unpruned"]["total"])


def test_pictures_of_a_batch_differ_only_where_counts_depend_on_them(subject: Any, model_dir: Path) -> None:
    own = subject()
    pixels = own.inputs(3)["pixel_values"]
    assert not torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[1], pixels[2])
    plain = dataclasses.replace(own, given=())
    alike = plain.inputs(3)["pixel_values"]
    assert torch.equal(alike[0], alike[1]) and torch.equal(alike[0], pixels[0])


def test_a_certificate_is_one_side(subject: Any, loaded: tuple[Any, Any], fitted: Path, tmp_path: Path) -> None:
    plan, mark = Calibration.load(fitted).plan_for(0.65), fingerprint(loaded[0].named_parameters())
    Certificate(plan, mark, 0.65, 0.01, 0.95, 0.0, 100, "gqa").save(tmp_path / "shown.json")
    own = subject(str(tmp_path / "shown.json"), methods=("random",), budgets=(0.8, 0.7))
    made, left_out = sides(own, own.workload(own.inputs(1), 2))
    assert [side.name for side in made] == ["unpruned", "random 0.8", "random 0.7", "atp:shown 0.65"] and not left_out
    assert made[-1].plan == plan


def test_the_command_prints_and_writes_them(
    model_dir: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model_dir), "--budget", "0.7", "--compare", "none", "--calibration", str(fitted)]
    with pytest.raises(SystemExit) as left:
        main(["bench", *words, *FEW, "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert not left.value.code
    assert "atp:mine 0.7: counts per input; their FLOPs are those of these pictures" in out
    assert "\natp 0.7: counts" not in out
    result = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert result["settings"]["calibrations"] == [str(fitted)]
    assert [side["side"] for side in result["cases"][0]["sides"]] == ["unpruned", "atp 0.7", "atp:mine 0.7"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--calibration", "nowhere.json"], "no such calibration: 'nowhere.json'"),
        (["--calibration", "adaptive"], "has no counts per input of its own"),
        (["--calibration", "FITTED", "--budget", "0.9"], "reaches from 0.6 to 0.8"),
        (["--calibration", "FITTED", "--keep-tiles", "0.5"], "was fitted with all tiles; leave it or --keep-tiles 0.5 away"),
        (["--calibration", "FITTED", "--arch", "smolvlm-256m"], "is for trained weights, an --arch has random ones; leave it or"),
    ],
)
def test_refused_before_the_model_is_loaded(
    model_dir: Path, fitted: Path, words: list[str], says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("atp.bench.execute.open_subject", never)
    model = [] if "--arch" in words else ["--model", str(model_dir)]
    asked = [str(fitted) if word == "FITTED" else word for word in words]
    with pytest.raises(SystemExit) as left:
        main(["bench", *model, *asked, "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (left.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and says in err


def test_another_models_is_refused_once_it_is_loaded(model_dir: Path, fitted: Path, tmp_path: Path) -> None:
    table = Calibration.load(fitted)
    mark = dataclasses.replace(table.fingerprint, structure="of no model")
    dataclasses.replace(table, fingerprint=mark).save(tmp_path / "stranger.json")
    with pytest.raises(BadInput, match="was made with another model than"):
        open_subject(Settings(str(model_dir), calibrations=(str(tmp_path / "stranger.json"),)), "cpu")


def never(*given: Any, **more: Any) -> Any:
    raise AssertionError("too late")
