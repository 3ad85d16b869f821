"""Calibrations and certificates as commands name them: rows, budgets, and what is refused before a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import atp
from atp import loading
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.certificate import Certificate
from atp.calibrations import Given, beside, read, read_all
from atp.cli import main
from atp.errors import BadInput

OTHER = "structure of no model"


@pytest.fixture
def certificate(loaded: tuple[Any, Any], fitted: Path, tmp_path: Path) -> Path:
    """A certificate of counts per input at 0.7."""
    plan, mark = Calibration.load(fitted).plan_for(0.7), fingerprint(loaded[0].named_parameters())
    Certificate(plan, mark, 0.7, 0.01, 0.95, 0.0, 100, "gqa").save(tmp_path / "certificate.json")
    return tmp_path / "certificate.json"


@pytest.fixture
def own(model_dir: Path, fitted: Path, tmp_path: Path) -> Path:
    """The tiny model with counts per input beside its weights."""
    shutil.copytree(model_dir, tmp_path / "own")
    shutil.copy(fitted, tmp_path / "own" / "adaptive_calibration.json")
    return tmp_path / "own"


@pytest.fixture
def stranger(fitted: Path, tmp_path: Path) -> Path:
    """A calibration of another model."""
    table = Calibration.load(fitted)
    mark = dataclasses.replace(table.fingerprint, structure=OTHER)
    dataclasses.replace(table, fingerprint=mark).save(tmp_path / "stranger.json")
    return tmp_path / "stranger.json"


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_named_and_stand_behind_their_method(fitted: Path, own: Path, certificate: Path) -> None:
    given = read_all([str(fitted), "adaptive", str(certificate)], str(own), (1.0, 0.8, 0.7), ("random", "atp"))
    assert [one.name for one in given] == ["atp:mine", "atp:adaptive", "atp:certificate"]
    assert [one.budgets((1.0, 0.8, 0.7)) for one in given] == [(0.8, 0.7), (0.8, 0.7), (0.7,)]
    rows = [(name, one is not None) for name, one in beside(["atp", "random"], given)]
    assert rows == [("atp", False), *((one.name, True) for one in given), ("random", False)]
    assert [name for name, _ in beside(["random"], given)] == ["random", *(one.name for one in given)]


def test_the_shipped_ones_are_found_by_the_word() -> None:
    given = read("adaptive", "atp-mini-llava")
    assert given.name == "atp:adaptive" and given.path.is_file() and given.method == "atp"


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ((0.9,), r"budget 0.9 is outside --calibration .*mine.json, which reaches from 0.6 to 0.8; use e.g. --budget 0.8"),
        ((0.7, 0.5), r"--budget 0.6, or fit more: atp fit-counts --model .* --budgets 0.8,0.6,0.5 --out wider.json"),
        ((1.0,), "has no budget below 1 to stand at; add one, e.g. --budget 0.6"),
    ],
)
def test_budgets_that_it_does_not_reach(fitted: Path, model_dir: Path, budgets: tuple[float, ...], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_all([str(fitted)], str(model_dir), budgets)


def test_two_rows_of_one_name(fitted: Path, model_dir: Path, tmp_path: Path) -> None:
    shutil.copy(fitted, tmp_path / "mine.json")
    with pytest.raises(BadInput, match=r"two rows would be called 'atp:mine'; rename the file of --calibration .*mine.json"):
        read_all([str(fitted), str(tmp_path / "mine.json")], str(model_dir), (0.7,))
    with pytest.raises(BadInput, match="two rows would be called 'atp:mine'"):
        read_all([str(fitted)], str(model_dir), (0.7,), ("atp:mine",))


def test_other_weights_are_refused_with_what_to_run(stranger: Path, certificate: Path, loaded: tuple[Any, Any]) -> None:
    with pytest.raises(BadInput, match=r"another model than M: .*; make one for it: atp fit-counts --model M --out mine.json"):
        Given(stranger, "stranger.json", "M", Calibration.load(stranger)).fits(loaded[0])
    table = Certificate.from_dict(json.loads(certificate.read_text()), certificate)
    Given(certificate, "c", "M", table).fits(loaded[0])
    other = dataclasses.replace(table, fingerprint=dataclasses.replace(table.fingerprint, structure=OTHER))
    with pytest.raises(BadInput, match=r"atp calibrate --max-drop 0\.01 --model M"):
        Given(certificate, "c", "M", other).fits(loaded[0])


# --- run and demo -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(image_file: Path, model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask the tiny model on the command line; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def go(*more: object, model: Path = model_dir, command: str = "run") -> tuple[int, str, str]:
        asked = ["--image", str(image_file), "--question", "how many dogs ?", "--device", "cpu"] if command == "run" else []
        with pytest.raises(SystemExit) as left:
            main([command, *asked, "--model", str(model), "--max-new-tokens", "2", *map(str, more)])
        return int(left.value.code or 0), *capsys.readouterr()

    return go


def test_run_takes_what_prune_takes(ask: Any, fitted: Path, own: Path, certificate: Path, loaded: tuple[Any, Any]) -> None:
    found = {}
    for name, given in {"file": (fitted, "--budget", "0.7"), "certificate": (certificate,)}.items():
        code, out, _ = ask("--calibration", *given, "--json")
        assert code == 0
        found[name] = json.loads(out)["plan"]
    code, out, _ = ask("--calibration", "adaptive", "--budget", "0.7", "--json", model=own)
    assert code == 0 and json.loads(out)["plan"] == found["file"]
    with atp.prune(loaded[0], calibration=certificate) as run:
        assert found["certificate"] == run.plan.to_dict()
    assert all(any(step["threshold"] is not None for step in plan["steps"]) for plan in found.values())
    code, out, _ = ask("--calibration", fitted, "--budget", "0.7")
    assert code == 0 and "counts per input: a budget is met on average" in out
    code, out, _ = ask("--calibration", fitted, "--budget", "1", "--json")  # as in Python: nothing is pruned
    assert code == 0 and json.loads(out)["plan"]["steps"] == []


def test_run_takes_a_calibration_in_a_chat(
    ask: Any, fitted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("atp.chat.talks", lambda *given, **pruning: seen.append(pruning) or {})
    code, _, _ = ask("--calibration", fitted, "--budget", "0.7", "--then", "is there a dog ?", "--json")
    assert code == 0
    assert seen == [{"budget": "0.7", "method": "atp", "plan": None, "calibration": Calibration.load(fitted)}]


def test_demo_takes_it_for_every_question_and_the_batch(
    ask: Any, fitted: Path, image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import atp.demo

    (tmp_path / "list").mkdir()
    source = tmp_path / "list" / "questions.json"
    source.write_text(json.dumps([{"image": image_file.name, "question": "how many dogs ?", "answer": "2"}] * 2))
    for function in (atp.demo.answer_all, atp.demo.together):
        monkeypatch.setattr(function, "__defaults__", (2, source))
    monkeypatch.setattr(atp.demo.questions, "__defaults__", (source,))
    plans, real = [], atp.demo.prune
    monkeypatch.setattr(atp.demo, "prune", lambda *given, **more: plans.append(more["calibration"]) or real(*given, **more))
    code, _, _ = ask("--calibration", fitted, "--budget", "0.7", "--out", tmp_path / "out", command="demo")
    assert code == 0
    assert "method atp with counts per input" in (tmp_path / "out" / "index.html").read_text()
    assert plans and set(map(type, plans)) == {Calibration}


def never(*given: Any, **more: Any) -> Any:
    raise AssertionError("loaded")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.json"], "no such calibration: 'nowhere.json', expected a file, or adaptive for the checkpoint's own; fit one"),
        (["adaptive"], "has no counts per input of its own"),
        (["BROKEN"], "cannot read the calibration"),
        (["PLAN"], "is no calibration: expected format"),
        (["FITTED", "--budget", "0.9"], "reaches from 0.6 to 0.8; use e.g. --budget 0.8"),
        (["FITTED", "--budget", "0.5"], "use e.g. --budget 0.6, or fit more"),
        (["FITTED", "--method", "fastv"], "is of method 'atp', got --method fastv; leave --method away"),
        (["FITTED", "--budget", "much"], "cannot read the budget 'much'"),
        (["CERTIFICATE", "--budget", "0.6"], "is for budget 0.7, got --budget 0.6; leave --budget away"),
        (["CERTIFICATE", "--budget", "64 tokens"], "is for budget 0.7, got --budget 64 tokens; leave --budget away"),
        (["adaptive", "--model", "atp-mini-lava"], "Did you mean 'atp-mini-llava'"),
        (["FITTED", "--plan", "PLAN"], "decide how many tokens stay; leave one away"),
    ],
)
@pytest.mark.parametrize("command", ["run", "demo"])
def test_refused_before_the_model_is_loaded(
    ask: Any, fitted: Path, certificate: Path, command: str, words: list[str], says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if command == "demo" and "--plan" in words:
        says = "No such option: --plan"
    (tmp_path / "broken.json").write_text('{"format"')
    atp.Plan("atp").save(tmp_path / "plan.json")
    files = {"FITTED": fitted, "CERTIFICATE": certificate, "BROKEN": tmp_path / "broken.json", "PLAN": tmp_path / "plan.json"}
    monkeypatch.setattr(loading, "load", never)
    code, out, err = ask("--calibration", *(files.get(word, word) for word in words), command=command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and says in err


def test_another_models_is_refused_before_anything_is_answered(
    ask: Any, stranger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("atp.compare.timed", never)
    for more in ({}, {"command": "demo"}):
        code, out, err = ask("--calibration", stranger, "--budget", "0.7", *(["--out", tmp_path / "out"] if more else []), **more)
        assert (code, out, err.strip().count("\n")) == (2, "", 0)
        assert "was made with another model" in err and "atp fit-counts --model" in err
