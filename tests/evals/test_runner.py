"""Runner, table and calibration on a small random LLaVA with a real processor: what is counted, paired and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from atp.adapters import adapt
from atp.budget.calibration import fingerprint
from atp.engine import prune
from atp.evals.items import scene_items
from atp.evals.runner import Result, evaluate, prepared
from atp.evals.table import majority, markdown, measure, merged
from atp.fitting import fit_counts
from atp.plan import Plan, Site, Step


@pytest.fixture(scope="module")
def small(loaded):
    return loaded


ITEMS = list(scene_items(12, size=64))


def test_items_are_held_out_stable_and_as_many_as_asked() -> None:
    again = list(scene_items(12, size=64))
    assert [i.key for i in ITEMS] == [i.key for i in again] and len(ITEMS) == 12
    assert all(item.key.startswith("val:") for item in ITEMS)
    assert len({item.key for item in ITEMS}) == 12


def test_batches_have_one_length_and_hold_every_item_once(small) -> None:
    _, processor = small
    batches = prepared(processor, ITEMS, batch=4)
    assert sorted(n for numbers, _ in batches for n in numbers) == list(range(12))
    for numbers, inputs in batches:
        assert inputs["input_ids"].shape[0] == len(numbers) <= 4
        assert inputs["attention_mask"].all()


def test_answers_do_not_depend_on_the_batching(small) -> None:
    model, processor = small
    ones = evaluate("one", model, processor, ITEMS, prepared(processor, ITEMS, 1))
    fours = evaluate("four", model, processor, ITEMS, prepared(processor, ITEMS, 4))
    assert ones.answers == fours.answers
    assert ones.report is None and ones.accuracy == fours.accuracy


def test_a_pruned_result_reports_what_it_spent(small) -> None:
    model, processor = small
    layers = adapt(model).shape.language.layers
    plan = Plan("uniform", (Step(Site("language", layers // 2), 0.25),))
    result = evaluate("uniform", model, processor, ITEMS, prepared(processor, ITEMS, 4), {"plan": plan})
    assert result.report is not None and result.report["prompts"] == 12
    assert result.report["flops_ratio"] < 1


def test_a_grey_image_makes_the_baseline_blind(small) -> None:
    _, processor = small
    batches = prepared(processor, ITEMS, 4, blank=True)
    pixels = torch.cat([inputs["pixel_values"] for _, inputs in batches])
    assert (pixels == pixels[0]).all()


def test_majority_beats_chance_and_knows_no_image() -> None:
    items = list(scene_items(200, size=32))
    score = majority(items, 400).mean()
    assert 0.3 < score < 0.65


def test_seeds_are_averaged_item_by_item() -> None:
    results = [
        Result(f"random/{s}", ("a", "b"), np.array(c), {"flops_ratio": r}, 1.0)
        for s, c, r in ((0, [1.0, 0.0], 0.5), (1, [1.0, 1.0], 0.7))
    ]
    mean = merged("random", results)
    assert mean.correct.tolist() == [1.0, 0.5]
    assert mean.report is not None and mean.report["flops_ratio"] == pytest.approx(0.6)


def test_the_table_pairs_every_method_with_the_unpruned_model(small) -> None:
    model, processor = small
    table = measure(model, processor, ITEMS, 0.8, 6, "small")
    names = [row["name"] for row in table["rows"]]
    assert names == ["none", "atp", "fastv", "uniform", "resize", "random"]
    assert table["rows"][0]["flops_ratio"] == 1.0 and table["rows"][0]["against_unpruned"]["mean"] == 0.0
    for row in table["rows"][1:]:
        assert row["flops_ratio"] <= 0.8 + 0.01 or row["remark"].startswith("cannot reach")
        assert "atp_minus_this" in row or row["name"] == "atp"
    text = markdown(json.loads(json.dumps(table)))
    assert all(f"| {name} |" in text for name in names)


def test_calibration_meets_the_budget_on_its_own_items_and_is_loaded(small, tmp_path: Path) -> None:
    model, processor = small
    asked = [item.image for item in ITEMS], [item.question for item in ITEMS]
    found = fit_counts(model, processor, *asked, (0.7, 0.85), batch=6)
    assert found.fingerprint.matches(fingerprint(model.named_parameters()))
    found.save(tmp_path / "atp_calibration.json")
    batches = prepared(processor, ITEMS, 6)
    with prune(model, budget=0.7, calibration=tmp_path / "atp_calibration.json") as run:
        plan = run.plan
        model.generate(**batches[0][1], max_new_tokens=2)
    assert plan.adaptive
    result = evaluate("atp", model, processor, ITEMS, batches, {"plan": plan})
    assert result.report is not None
    assert result.report["flops_ratio"] == pytest.approx(0.695, abs=0.006)
