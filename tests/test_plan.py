"""Sites, steps and plans: what they refuse, and that files give back what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atp.errors import BadInput, InvalidPlan
from atp.plan import Plan, Site, Step

PLAN = Plan(
    "atp",
    (
        Step(Site("language", 2), 0.5, threshold=0.8, floor=0.1, ceiling=0.9),
        Step(Site("vision", 4), 0.7),
        Step(Site("language", 1), 0.75),
    ),
    {"alpha": 0.7},
    0.6,
)


def test_steps_are_put_in_order() -> None:
    assert [str(step.site) for step in PLAN.steps] == ["vision:4", "language:1", "language:2"]
    assert PLAN.at("language", 2) == PLAN.steps[2]
    assert PLAN.at("language", 3) is None
    assert PLAN.adaptive
    assert not Plan("atp", PLAN.steps[:2]).adaptive


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_a_file_gives_back_the_plan(tmp_path: Path, name: str) -> None:
    PLAN.save(tmp_path / name)
    assert Plan.load(tmp_path / name) == PLAN
    assert Plan.from_dict(PLAN.to_dict()) == PLAN


def test_a_file_of_version_0_1_is_read() -> None:
    old = PLAN.to_dict()
    for step in old["steps"]:
        del step["text"]
        step["kinds"] = ["visual"]
    assert Plan.from_dict(old) == PLAN


def test_sites_parse() -> None:
    assert Site.parse("vision:3") == Site("vision", 3)
    assert str(Site("pixels", 0)) == "pixels:0"
    for text in ("vision", "vision:x", "vision:-1", ""):
        with pytest.raises(InvalidPlan, match="expected 'stack:layer'"):
            Site.parse(text)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Site("audio", 1), "unknown stack 'audio'"),
        (lambda: Site("vision", -1), "whole number >= 0, got -1"),
        (lambda: Site("vision", True), "whole number"),
        (lambda: Step(Site("vision", 1), 1.5), r"share in \[0, 1\], got 1.5"),
        (lambda: Step(Site("vision", 1), 0.5, threshold=-1), "threshold is relative"),
        (lambda: Step(Site("vision", 1), 0.5, floor=0.9, ceiling=0.1), "floor <= ceiling"),
        (lambda: Step(Site("language", 1), 0.5, text=1.5), r"text is a share in \[0, 1\], got 1.5"),
        (lambda: Step(Site("vision", 1), 0.5, text=0.5), "text tokens are in the language model only; give text=0.5"),
        (lambda: Step(Site("vision", 1), "0.5"), r"keep is a share in \[0, 1\], got '0\.5'"),
        (lambda: Step(Site("vision", 1), 0.5, threshold="1"), "threshold is relative to the mean score, >= 0, got '1'"),
        (lambda: Step(Site("vision", 1), 0.5, floor=None), "floor <= ceiling <= 1, got None"),
        (lambda: Step(Site("vision", 1), 0.5, text="all"), r"text is a share in \[0, 1\], got 'all'"),
        (lambda: Step("vision:1", 0.5), r"at a Site, got 'vision:1' \(str\); e\.g\. Step\(Site\('language', 2\), 0\.5\)"),
        (lambda: Plan("atp", Step(Site("vision", 1), 0.5)), r"steps are a tuple of Step, got Step\(.*e\.g\. \(Step\("),
        (lambda: Plan("atp", (), ["alpha"]), r"options are a mapping, got \['alpha'\] \(list\)"),
        (lambda: Plan("atp", (("vision:1", 0.5),)), r"steps are a tuple of Step, got \(\('vision:1', 0\.5\),\)"),
        (lambda: Plan("atp", (Step(Site("vision", 1), 0.5), Step(Site("vision", 1), 0.4))), "two steps at vision:1"),
        (lambda: Plan("atp", (Step(Site("vision", 1), 0.5), Step(Site("vision", 2), 0.6))), "cannot grow"),
    ],
)
def test_what_is_refused(make: Any, match: str) -> None:
    with pytest.raises(InvalidPlan, match=match):
        make()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("method: atp\nsteps:\n- site: vision:1\n  keep: 0.5\n  kep: 1", "unknown key 'kep' in a step"),
        ("method: atp\nbudgett: 1", "unknown key 'budgett' in a plan"),
        ("steps: []", "needs the key 'method'"),
        ("method: atp\nsteps:\n- site: vision:1", "needs the key 'keep'"),
        ("method: atp\nsteps: [3]", "a step is a mapping"),
        ("method: atp\nsteps: 5", "steps are a list, got 5"),
        ("method: atp\noptions: 5", "options are a mapping, got 5"),
        ("method: atp\nsteps:\n- site: vision:1\n  keep: half", "keep is a share in .*got 'half'"),
        ("- 1", "expected a mapping"),
        ("a: [", "cannot read the plan"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(InvalidPlan, match=match):
        Plan.load(tmp_path / "plan.yaml")
    with pytest.raises(InvalidPlan, match="cannot read the plan"):
        Plan.load(tmp_path / "absent.yaml")


def test_where_no_plan_can_be_written(tmp_path: Path) -> None:
    Plan("atp").save(tmp_path / "new" / "plan.yaml")
    for path, why in ((tmp_path / "new" / "plan.yaml" / "plan.yaml", "File exists"), (tmp_path, "Is a directory")):
        with pytest.raises(BadInput, match=rf"cannot write the plan '{path}': {why}; choose another file: 'plan\.yaml'"):
            Plan("atp").save(path)
    with pytest.raises(BadInput, match=r"cannot write the plan: expected a path, got None \(NoneType\); e.g. 'plan.yaml'"):
        Plan("atp").save(None)  # type: ignore[arg-type]
