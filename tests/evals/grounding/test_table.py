"""The whole measurement on the tiny model: what stands in the tables, and what is said of methods that cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atp.errors import BadInput
from atp.evals.grounding.__main__ import bench, main
from atp.evals.grounding.markdown import NOTHING, markdown
from atp.evals.grounding.measures import MEASURES
from atp.evals.grounding.subjects import subjects
from atp.evals.grounding.table import build


@pytest.fixture(scope="module")
def told(loaded: tuple[Any, Any]) -> dict[str, Any]:
    ready = bench(*loaded, list(subjects(6, size=36)), bare=True, batch=4)
    facts = {"model": "tiny", "questions": 6, "images": 1}
    return facts | build(ready, 0.7, ["atp", "evit", "random", "resize", "none", "lvpruning"])


def test_every_site_has_every_measure(told: dict[str, Any]) -> None:
    assert list(told["methods"]) == ["atp", "evit", "random"]
    for row in told["methods"].values():
        assert [str(step["site"]) for step in row["plan"]["steps"]] == list(row["sites"])
        for site, found in row["sites"].items():
            assert found["of"] == 36
            step = next(step for step in row["plan"]["steps"] if step["site"] == site)
            assert found["kept"] == round(step["keep"] * 36)
            assert list(found["measures"]) == list(MEASURES)
            recall = found["measures"]["recall"]
            assert recall["items"] == 6
            assert recall["expected"] == pytest.approx(100 * found["kept"] / 36)
            assert recall["minus"]["expected"]["mean"] == pytest.approx(recall["method"] - recall["expected"])
            assert (recall["attention"] is None) == (site == "vision:0"), "no layer has looked before the first one"


def test_the_towers_attention_is_what_evit_keeps_first(told: dict[str, Any]) -> None:
    """Up to its fused token, at the first site, EViT is the tower's own attention."""
    row = told["methods"]["evit"]
    first = next(iter(row["sites"].values()))["measures"]
    for name in MEASURES[:3]:
        assert first[name]["method"] == first[name]["attention"]
    assert row["deletion"]["merged"] is not None
    assert told["methods"]["random"]["deletion"]["merged"] is None


def test_random_shares_nothing_with_skill(told: dict[str, Any]) -> None:
    found = told["methods"]["random"]["deletion"]
    assert found["kept"] == found["random"]  # the same seed, the same choice
    assert found["kept_minus_random"]["mean"] == 0.0


def test_what_is_left_out_is_named(told: dict[str, Any]) -> None:
    assert told["left_out"]["resize"] == told["left_out"]["none"] == "it chooses no patches"
    assert "needs weights=" in told["left_out"]["lvpruning"]


def test_markdown_has_a_row_for_every_site(told: dict[str, Any]) -> None:
    text = markdown(told, 2)
    assert text.startswith("## `tiny`, budget 0.7\n")
    for name, row in told["methods"].items():
        for site in row["sites"]:
            assert text.count(f"| {name} | {site} |") == sum(
                found["measures"][m]["method"] is not None for m in MEASURES for found in [row["sites"][site]]
            )
    assert f"| evit | {told['methods']['evit']['flops_share']:.3f} |" in text
    assert f"| random | {told['methods']['random']['flops_share']:.3f} | {NOTHING} |" in text
    heads = [line for line in text.splitlines() if line.startswith("|---")]
    assert len(heads) == 5


def test_no_method_left(loaded: tuple[Any, Any]) -> None:
    ready = bench(*loaded, list(subjects(2, size=36)), bare=True)
    with pytest.raises(BadInput, match="no method is left to measure: resize: it chooses no patches"):
        build(ready, 0.7, ["resize"])


def test_the_command_writes_what_it_prints(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(model=str(model_dir), budget=0.7, methods="fastv", items=4, split="val", out=tmp_path, batch=4, seed=0, device="cpu")
    assert capsys.readouterr().out == (tmp_path / "grounding.md").read_text()
    found = json.loads((tmp_path / "grounding.json").read_text())
    assert (found["model"], found["questions"], found["seed"]) == (str(model_dir), 4, 0)
    assert 0 < found["methods"]["fastv"]["flops_share"] < 1
