"""Counts per input beside fixed ones in one evaluation: own rows at each budget, resumed, compared; refused early."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atp.budget.calibration import Calibration, fingerprint
from atp.budget.certificate import Certificate
from atp.cli import main
from atp.errors import BadInput
from atp.evals.harness import asking, execute, header, report
from atp.evals.harness.records import read
from atp.evals.harness.settings import Settings

QUICK: dict[str, Any] = {"tasks": ("vqav2",), "methods": ("atp", "random"), "budgets": (1.0, 0.8, 0.7), "corruptions": ()}


def test_own_rows_beside_the_fixed_ones(evaluate: Any, fitted: Path, tmp_path: Path) -> None:
    done = evaluate(tmp_path, **QUICK, calibrations=(str(fitted),))
    cells = header.load(tmp_path)["cells"]["vqav2"]
    fixed, own = [f"atp {share}" for share in (0.8, 0.7)], [f"atp:mine {share}" for share in (0.8, 0.7)]
    assert list(cells) == ["none", *fixed, *own, "random 0.8", "random 0.7"]
    assert not any(done.refused.values())
    for name in own:
        assert any(step["threshold"] is not None for step in cells[name]["plan"]["steps"])
        assert cells[name]["plan"]["budget"] == cells[name]["budget"] == float(name.split()[1])
    found = read(done.file)[0]
    assert len(found) == 10 * len(cells)
    again = evaluate(tmp_path, **QUICK, calibrations=(str(fitted),))
    assert (again.before, again.made) == (len(found), 0)
    with pytest.raises(BadInput, match=r"settings\.calibrations"):
        evaluate(tmp_path, **QUICK)

    text, _ = report.write([tmp_path], tmp_path)
    (task,) = json.loads((tmp_path / "report.json").read_text())["tasks"]
    assert [row["name"] for row in task["rows"]] == list(cells)
    assert list(task["per_input"]) == own
    told = task["per_input"]["atp:mine 0.7"]
    scores = {name: {r["item"]: r["score"] for r in found if f"{r['method']} {r['budget']:g}" == name} for name in cells}
    gap = [scores["atp:mine 0.7"][item] - scores["atp 0.7"][item] for item in scores["atp 0.7"]]
    assert told["gap"]["mean"] == pytest.approx(100 * np.mean(gap)) and told["items"] == 10
    rows = {row["name"]: row for row in task["rows"]}
    assert (told["flops"], told["other_flops"]) == (rows["atp:mine 0.7"]["flops_share"], rows["atp 0.7"]["flops_share"])
    assert "**Counts per input against fixed counts at the same budget**" in text
    assert f"| atp:mine 0.7 | atp 0.7 | {told['gap']['mean']:+.2f} [" in text


def test_without_fixed_counts_there_is_nothing_to_compare(evaluate: Any, fitted: Path, tmp_path: Path) -> None:
    evaluate(tmp_path, **QUICK | {"methods": ()}, calibrations=(str(fitted),))
    text, _ = report.write([tmp_path], tmp_path)
    assert "| atp:mine 0.7 | 10 of 10 |" in text and "against fixed counts" not in text


def test_a_certificate_stands_at_its_own_budget(evaluate: Any, loaded: Any, fitted: Path, tmp_path: Path) -> None:
    plan, mark = Calibration.load(fitted).plan_for(0.65), fingerprint(loaded[0].named_parameters())
    Certificate(plan, mark, 0.65, 0.01, 0.95, 0.0, 100, "gqa").save(tmp_path / "shown.json")
    evaluate(tmp_path / "run", **QUICK | {"methods": ("atp",)}, calibrations=(str(tmp_path / "shown.json"),))
    cells = header.load(tmp_path / "run")["cells"]["vqav2"]
    assert list(cells) == ["none", "atp 0.8", "atp 0.7", "atp:shown 0.65"]
    assert cells["atp:shown 0.65"]["plan"] == plan.to_dict()


def test_settings_of_older_records_are_the_same(settings: dict[str, Any]) -> None:
    plain = Settings(**settings)
    assert "calibrations" not in plain.to_dict() and Settings.from_dict(plain.to_dict()) == plain
    asked = dataclasses.replace(plain, calibrations=("adaptive",))
    assert Settings.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--calibration", "nowhere.json"], "no such calibration: 'nowhere.json'"),
        (["--calibration", "adaptive"], "has no counts per input of its own"),
        (["--calibration", "FITTED", "--budgets", "0.8,0.4"], "budget 0.4 is outside --calibration"),
        (["--calibration", "FITTED", "--budgets", "1.0"], "has no budget below 1"),
        (["--calibration", "FITTED", "--calibration", "FITTED", "--budgets", "0.7"], "two rows would be called 'atp:mine'"),
    ],
)
def test_refused_before_the_model_is_loaded(
    settings: dict[str, Any], fitted: Path, words: list[str], says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(execute, "load", never)
    asked = [str(fitted) if word == "FITTED" else word for word in words]
    with pytest.raises(SystemExit) as left:
        main(["eval", "--model", settings["model"], "--device", "cpu", "--out", str(tmp_path / "run"), *asked])
    out, err = capsys.readouterr()
    assert (left.value.code, out, err.strip().count("\n")) == (2, "", 0)
    assert err.strip().startswith("error: ") and says in err


def test_another_models_is_refused_before_scenes_are_drawn(
    evaluate: Any, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Calibration.load(fitted)
    mark = dataclasses.replace(table.fingerprint, structure="of no model")
    dataclasses.replace(table, fingerprint=mark).save(tmp_path / "stranger.json")
    monkeypatch.setattr(asking, "write", never)
    with pytest.raises(BadInput, match="was made with another model than"):
        evaluate(tmp_path / "run", **QUICK, data="", calibrations=(str(tmp_path / "stranger.json"),))


def never(*given: Any, **more: Any) -> Any:
    raise AssertionError("too late")
