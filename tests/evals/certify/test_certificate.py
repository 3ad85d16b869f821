"""execute.py, command.py and the certificate: made, loaded, refused for another model; resumed; nothing certified."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import atp
from atp.budget.certificate import Certificate, load_table
from atp.cli import main
from atp.errors import AtpError, BadInput, InvalidPlan, UnreachableBudget
from atp.evals.certify import execute
from atp.evals.certify.execute import Outcome, Wanted, certify
from atp.evals.harness.records import once
from atp.scenes.official import write

Made = Callable[..., Outcome]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of 48 pixels with two questions each, all but one that has none. Read only."""
    folder = tmp_path_factory.mktemp("certified")
    write(folder, range(16), size=48, questions=2)
    return folder


@pytest.fixture(scope="module")
def wanted(model_dir: Path, files: Path) -> dict[str, Any]:
    grid = (0.9, 0.8, 0.7)
    return {"model": str(model_dir), "max_drop": 0.3, "confidence": 0.9, "task": "gqa", "budgets": grid, "method": "uniform",
            "data": str(files), "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def asked(wanted: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of that run. Read only."""
    folder = tmp_path_factory.mktemp("asked")
    certify(Wanted(**wanted), folder, lambda *told: None)
    return folder


@pytest.fixture
def made(wanted: dict[str, Any], asked: Path) -> Made:
    """Certify in a folder that has those records already, unless other things are wanted."""

    def go(folder: Path, **changes: Any) -> Outcome:
        if not changes and not folder.exists():
            shutil.copytree(asked, folder)
        return certify(Wanted(**{**wanted, **changes}), folder, lambda *told: None)

    return go


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A random model is never right: let answers be right in every record from a budget on, and wrong below."""
    from atp.evals.harness.gather import Entry

    real = Entry.of.__func__  # type: ignore[attr-defined]

    def above(bar: float) -> None:
        def scored(cls: type[Entry], record: dict[str, Any]) -> Entry:
            return dataclasses.replace(real(cls, record), scores={"accuracy": float(record["budget"] >= bar)})

        monkeypatch.setattr(Entry, "of", classmethod(scored))

    above(0.8)
    return above


def test_the_cheapest_that_passes_is_certified(made: Made, right: Callable[[float], None], tmp_path: Path) -> None:
    found = made(tmp_path / "a")
    assert [row["passed"] for row in found.rows] == [True, True, False]
    assert [row["drop"] for row in found.rows] == [0.0, 0.0, 1.0]
    assert found.items == 15  # one an image, of two asked
    sheet = found.certificate
    assert sheet is not None
    assert (sheet.budget, sheet.observed_drop, sheet.max_drop, sheet.confidence) == (0.8, 0.0, 0.3, 0.9)
    assert sheet.plan.method == "uniform" and sheet.plan.steps
    assert sheet.details["test"] == "exact" and "2110.01052" in sheet.details["theorem"]
    assert {"torch", "transformers", "atp"} <= set(sheet.details["versions"])
    told = list(once([tmp_path / "a" / "records-1-of-1.jsonl"]))
    assert len({record["image"] for record in told}) == 15 and len(told) == 4 * 15
    sheet.save(tmp_path / "certificate.json")
    assert load_table(tmp_path / "certificate.json") == Certificate(
        **{**vars(sheet), "details": json.loads(json.dumps(sheet.details))}
    )


def test_it_is_loaded_and_refused_for_another_model(
    made: Made, right: Callable[[float], None], tmp_path: Path, model_dir: Path
) -> None:
    path = tmp_path / "certificate.json"
    sheet = made(tmp_path / "a").certificate
    assert sheet is not None
    sheet.save(path)
    model, _ = atp.load(model_dir, device="cpu")
    with atp.prune(model, calibration=path) as run:
        assert run.plan == sheet.plan
        assert run.method.name == "uniform"
    with atp.prune(model, calibration=sheet, budget=0.8, method="uniform") as run:
        assert run.plan == sheet.plan
    for arguments, says in (
        ({"budget": 0.7}, "certificate is for budget 0.8, got budget=0.7"),
        ({"budget": "64 tokens"}, "as it is, got budget='64 tokens'"),
        ({"method": "atp"}, "the plan is of method 'uniform'"),
        ({"phase": 3}, r"as it is, got \{'phase': 3\}"),
    ):
        with pytest.raises(InvalidPlan, match=says), atp.prune(model, calibration=path, **arguments):  # type: ignore[arg-type]
            pass
    with (
        pytest.warns(UserWarning, match="certified in float32, this model is float64"),
        atp.prune(model.double(), calibration=path),
    ):
        pass
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5)
    with pytest.raises(
        InvalidPlan, match=r"another model: this one has the same sizes but other weights; .*atp calibrate --model"
    ):
        atp.prune(model.float(), calibration=path).__enter__()


def test_a_second_call_asks_nothing_and_another_is_refused(made: Made, tmp_path: Path) -> None:
    first = made(tmp_path / "a")
    lines = (tmp_path / "a" / "records-1-of-1.jsonl").read_bytes()
    assert made(tmp_path / "a").rows == first.rows
    assert (tmp_path / "a" / "records-1-of-1.jsonl").read_bytes() == lines
    with pytest.raises(BadInput, match="another run"):
        made(tmp_path / "a", items=12)


def test_scenes_are_drawn_with_seeds_of_their_own(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[range] = []

    def small(folder: Path, seeds: range, split: str) -> None:
        drawn.append(seeds)
        write(folder, seeds, split, size=48, questions=2)

    monkeypatch.setattr(execute, "write", small)
    found = made(tmp_path / "a", task="scenes", data="", items=3, seed=2, budgets=(0.8,))
    assert found.items == 3
    assert drawn == [range(10_200_000, 10_200_003)]
    made(tmp_path / "a", task="scenes", data="", items=3, seed=2, budgets=(0.8,))
    assert len(drawn) == 1, "the same call goes on with the scenes that are there"
    with pytest.raises(BadInput, match=r"choose another --records, .*limit: 3 -> 5"):
        made(tmp_path / "a", task="scenes", data="", items=5, seed=2, budgets=(0.8,))
    assert drawn[1:] == [range(10_200_000, 10_200_005)]


def test_budgets_out_of_reach_are_no_part_of_the_grid(made: Made, tmp_path: Path) -> None:
    assert [row["budget"] for row in made(tmp_path / "a", budgets=(0.8, 0.01)).rows] == [0.8]
    with pytest.raises(UnreachableBudget, match="no budget of the grid can be reached"):
        made(tmp_path / "b", budgets=(0.01,))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_drop": 0.0}, "--max-drop is a share between 0 and 1, got 0; e.g. --max-drop 0.01"),
        ({"confidence": 1.0}, "--confidence is a share"),
        ({"task": "coco"}, "no bound for task 'coco'.*choose one of scenes, gqa"),
        ({"task": "gqaa"}, "gqaa"),
        ({"test": "normal"}, "unknown test 'normal'; choose one of auto, exact, betting"),
        ({"method": "none"}, "nothing to certify"),
        ({"budgets": (1.0,)}, "nothing to certify"),
        ({"items": 0}, "--items is a number from 1"),
        ({"task": "scenes"}, "scenes are drawn, got --data"),
        ({"data": "", "split": "dev"}, "unknown split 'dev' of the scenes"),
    ],
)
def test_what_cannot_be_asked(wanted: dict[str, Any], change: dict[str, Any], says: str) -> None:
    with pytest.raises(AtpError, match=says):
        Wanted(**{**wanted, **change})


def test_scores_between_are_bet_on() -> None:
    assert Wanted("m", 0.01, 0.95, "vqav2").tested == "betting"
    assert Wanted("m", 0.01, 0.95, "gqa:llava").tested == "exact"
    assert Wanted("m", 0.01, 0.95, "vqav2", test="exact").tested == "exact"


def words(wanted: dict[str, Any], folder: Path, **changes: Any) -> list[str]:
    asked = {**wanted, **changes}
    asked["budgets"] = ",".join(map(str, asked["budgets"]))
    options = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["calibrate", *options, "--records", str(folder / "records"), "--out", str(folder / "certificate.json")]


def test_the_command_writes_what_prune_loads(
    wanted: dict[str, Any], asked: Path, right: Callable[[float], None], tmp_path: Path, capsys: Any
) -> None:
    shutil.copytree(asked, tmp_path / "records")
    with pytest.raises(SystemExit) as end:
        main(words(wanted, tmp_path))
    assert not end.value.code
    out = " ".join(capsys.readouterr().out.split())
    assert "with 90.0% confidence, uniform at 0.8 of the FLOPs loses at most 30 points of accuracy on gqa" in out
    assert re.search(r"0\.9 .*certified .*0\.8 .*certified .*0\.7 .*\+100\.00 15 0 1\.0000 failed", out)
    assert load_table(tmp_path / "certificate.json").plan.method == "uniform"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("bar", "change", "says"),
    [
        (0.8, {"max_drop": 0.01, "confidence": 0.95}, r"it would take about 408: run again with --items 408 and another --seed"),
        (0.95, {}, "no number of items would show it; allow a larger --max-drop"),
    ],
)
def test_nothing_certified_says_how_many_it_would_take(
    wanted: dict[str, Any],
    asked: Path,
    right: Callable[[float], None],
    tmp_path: Path,
    capsys: Any,
    bar: float,
    change: dict[str, Any],
    says: str,
) -> None:
    right(bar)
    shutil.copytree(asked, tmp_path / "records")
    with pytest.raises(SystemExit) as end:
        main(words(wanted, tmp_path, **change))
    assert end.value.code == 1
    assert re.search(f"nothing can be certified: .*on 15 items.*{says}", " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "certificate.json").exists()


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    with pytest.raises(BadInput, match="cannot read the calibration"):
        load_table(path)
    path.write_text('{"format": "atp-certificate-1"}', encoding="utf-8")
    with pytest.raises(BadInput, match=r"the certificate .* is damaged .*run atp calibrate again"):
        load_table(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(BadInput, match="expected format 'atp-calibration-1' or 'atp-certificate-1', got 'list'"):
        load_table(path)


def test_scores_outside_are_refused(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atp.evals.harness.gather import Entry

    real = Entry.of.__func__  # type: ignore[attr-defined]
    given = {"accuracy": 1.2}
    monkeypatch.setattr(Entry, "of", classmethod(lambda cls, record: dataclasses.replace(real(cls, record), scores=given)))
    with pytest.raises(BadInput, match=r"accuracy of gqa lies outside \[0, 1\] \(1.2 to 1.2\)"):
        made(tmp_path / "a")
    given.clear()
    with pytest.raises(BadInput, match="have no accuracy; their true answers are withheld"):
        made(tmp_path / "b")
