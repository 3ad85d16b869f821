"""Counts per input, fitted to images and questions without answers: the mean is the budget, inputs differ, prune finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import atp
from atp import loading
from atp.cli import main
from atp.errors import AtpError, BadInput, InvalidPlan
from atp.evals.items import scene_items

ITEMS = list(scene_items(10, "train", 900_000_000, per_scene=1))
IMAGES, QUESTIONS = [item.image for item in ITEMS], [item.question for item in ITEMS]


@pytest.mark.parametrize("name", ["atp-mini-llava", "atp-mini-blip2"])
def test_each_input_gets_its_own_counts_and_the_mean_is_the_budget(name: str, tmp_path: Path) -> None:
    model, processor = atp.load(name)
    told: list[tuple[float, int, float]] = []
    found = atp.fit_counts(model, processor, IMAGES, QUESTIONS, (0.7,), note="ours", step=lambda *news: told.append(news))
    (plan,) = found.plans
    assert [str(step.site) for step in plan.steps] == ["vision:0", "vision:3"], "the checkpoint's calibration has these at 0.7"
    assert any(step.adaptive for step in plan.steps if step.site.stack == "vision")
    assert 0.695 <= told[-1][2] <= 0.7
    assert [runs for _, runs, _ in told] == list(range(1, len(told) + 1))
    assert (found.inputs, found.note) == (10, "ours")
    found.save(tmp_path / "fitted.json")
    counts = set()
    with atp.prune(model, budget=0.7, calibration=tmp_path / "fitted.json", processor=processor) as run:
        for image, question in zip(IMAGES, QUESTIONS, strict=True):
            model.generate(**atp.build_inputs(processor, [image], [question]), max_new_tokens=1)
            counts.add(tuple(run.trace.kept("vision").values()).__repr__())
    assert len(counts) > 5, "counts hardly differ"


def test_each_budget_at_the_sites_that_the_calibration_has_there() -> None:
    """Six at 0.4, two at 0.7; between them the lower one's plan, aloud, as thresholds of other sites have no mean."""
    model, processor = atp.load("atp-mini-llava")
    found = atp.fit_counts(model, processor, IMAGES, QUESTIONS, (0.7, 0.4))
    assert [len(plan.steps) for plan in found.plans] == [6, 2]
    says = r"no counts per input between 0\.4 and 0\.7, .*those of 0\.4 are used; .*fit 0\.5 too"
    with pytest.warns(UserWarning, match=says), atp.prune(model, budget=0.5, calibration=found, processor=processor) as run:
        model.generate(**atp.build_inputs(processor, IMAGES[:1], QUESTIONS[:1]), max_new_tokens=1)
    assert run.plan == found.plans[0]
    named = atp.fit_counts(model, processor, IMAGES, QUESTIONS, (0.7, 0.4), sites="vision:0/vision:1/vision:3")
    assert [len(plan.steps) for plan in named.plans] == [3, 3] and len(named.plan_for(0.5).steps) == 3


def test_a_method_with_sites_and_options_of_its_own() -> None:
    model, processor = atp.load("atp-mini-llava")
    found = atp.fit_counts(model, processor, IMAGES, QUESTIONS, 0.7, method="atp:sites=vision:0/vision:3+alpha=0.7")
    (plan,) = found.plans
    assert (plan.method, dict(plan.options)) == ("atp", {"alpha": 0.7})
    assert [str(step.site) for step in plan.steps] == ["vision:0", "vision:3"]


def own(name: str) -> Path:
    """The calibration beside a shipped model's weights."""
    return Path(loading.resolve(name)) / "atp_calibration.json"


def test_those_of_the_checkpoint_are_found_by_name() -> None:
    model, processor = atp.load("atp-mini-llava")
    with atp.prune(model, budget=0.4, calibration="adaptive", processor=processor) as run:
        model.generate(**atp.build_inputs(processor, IMAGES[:1], QUESTIONS[:1]), max_new_tokens=1)
    assert run.plan.adaptive
    model, processor = atp.load("atp-mini-flamingo")
    says = "no counts per input: .*adaptive_calibration.json' is not there.*atp fit-counts --model .*flamingo"
    with pytest.raises(InvalidPlan, match=says), atp.prune(model, budget=0.4, calibration="adaptive"):
        pass


def test_too_few_inputs() -> None:
    model, processor = atp.load("atp-mini-llava")
    for images, questions in ((IMAGES[:7], QUESTIONS[:7]), (IMAGES, QUESTIONS[:9])):
        with pytest.raises(BadInput, match="expected one for each and at least 8"):
            atp.fit_counts(model, processor, images, questions)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"images": None}, "1 images and .* questions, expected one for each"),
        ({"questions": None}, "images and 1 questions, expected one for each"),
        ({"budgets": None}, r"budget is a share in \(0, 1\], got None"),
        ({"budgets": "0.5"}, r"budget is a share in \(0, 1\], got '0\.5'"),
        ({"batch": "8"}, "batch is a whole number >= 1, got '8'"),
        ({"options": ["alpha"]}, r"options are a mapping, got \['alpha'\] \(list\); e\.g\. \{'alpha': 0\.7\}"),
    ],
)
def test_wrong_kinds_of_arguments(given: dict[str, object], says: str) -> None:
    model, processor = atp.load("atp-mini-llava")
    arguments: dict[str, Any] = {"images": IMAGES, "questions": QUESTIONS, "budgets": 0.5} | given
    with pytest.raises(AtpError, match=says):
        atp.fit_counts(model, processor, **arguments)


def test_the_command_writes_what_prune_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fitted.json"
    with pytest.raises(SystemExit) as left:
        main(["fit-counts", "--items", "8", "--budgets", "0.7", "--out", str(out)])
    printed = capsys.readouterr().out
    assert left.value.code == 0
    assert "0.7: vision:0" in printed and f"calibration={str(out)!r}" in printed
    model, processor = atp.load("atp-mini-llava")
    with atp.prune(model, budget=0.7, calibration=out, processor=processor) as run:
        model.generate(**atp.build_inputs(processor, IMAGES[:1], QUESTIONS[:1]), max_new_tokens=1)
    assert run.plan.adaptive and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--budgets", "1.0"], "no share below 1, got '1.0'"),
        (["--budgets", "half"], "cannot read the budgets 'half'"),
        (["--budgets", "0,0.6"], "budget"),
        (["--budgets", "1.5,0.6"], "budget"),
        (["--batch", "0"], "--batch"),
        (["--out", "/tmp"], "cannot write the calibration '/tmp'"),
        (["--items", "3"], "--items is at least 8, got 3"),
        (["--method", "apt"], "apt"),
        (["--out", "/nowhere/x.json"], "cannot write the calibration '/nowhere/x.json'"),
        (["--model", "atp-mini-lava"], "atp-mini-lava"),
        (["--data", "/nowhere"], "/nowhere"),
    ],
)
def test_refused_before_the_model_is_loaded(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **more: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(loading, "load", never)
    with pytest.raises(SystemExit) as left:
        main(["fit-counts", *words])
    assert left.value.code == 2
    assert says in capsys.readouterr().err


def test_official_files_give_as_many_images_as_they_have(tmp_path: Path) -> None:
    from atp.evals.fit_command import asked
    from atp.scenes.official import write

    write(tmp_path / "files", range(910_000_000, 910_000_006), "val", size=48, questions=3)
    images, questions, told = asked(str(tmp_path / "files"), "vqav2", "val", 8)
    assert len(images) == len(questions) == 8 and told == "8 questions of vqav2, split val"
    assert len({image.tobytes() for image in images}) == 6
    with pytest.raises(BadInput, match="has 6 questions, expected at least 8"):
        asked(str(tmp_path / "files"), "vqav2", "val", 6)
