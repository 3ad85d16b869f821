"""What a user runs, on untrained exports of every backbone: side by side, the demo, scores, calibration, sites to tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import atp
from atp.adapters import adapt
from atp.budget.cost import Workload
from atp.budget.solve import solve
from atp.demo import answer_all
from atp.evals.items import scene_items
from atp.evals.runner import evaluate, prepared, workload_of
from atp.explain import story
from atp.fitting import fit_counts
from atp.plan import Site

ITEMS = list(scene_items(2, size=64))


@pytest.fixture
def exported(name: str, tmp_path: Path) -> tuple[Any, Any]:
    """An untrained model as it would be shipped."""
    import backbones

    torch.manual_seed(0)
    kind = backbones.get(name)
    kind.make_model().eval().save_pretrained(tmp_path / "model")
    kind.make_processor().save_pretrained(tmp_path / "model")
    return atp.load(tmp_path / "model", device="cpu")


def test_the_demo_draws_patches_only_and_names_what_each_stack_kept(name: str, exported: tuple[Any, Any], tmp_path: Path) -> None:
    answer = next(answer_all(*exported, tmp_path / "out", 0.6, None, 2))
    result = answer.result
    assert result.flops_ratio == pytest.approx(0.6, abs=0.01)
    assert set(result.kept) == {"vision", "language"}
    drawn = {stage.stack for stage in story(result.trace, stacks=result.located).stages}
    assert drawn == ({"vision", "language"} if name == "llava" else {"vision"})
    assert result.started["language"] == (196 if name == "llava" else 49)
    assert ("queries" if name != "llava" else "language") in result.kept_in_words
    assert answer.file.stat().st_size > 10_000


def test_items_are_scored_and_calibrated_beside_the_weights(name: str, exported: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = exported
    sites, items = (Site("vision", 2), Site("language", 2)), ITEMS * 4
    asked = [item.image for item in items], [item.question for item in items]
    found = fit_counts(model, processor, *asked, (0.7,), sites=sites, batch=1)
    assert found.workload == workload_of(model, processor, ITEMS)
    assert found.workload.text < 25, "the image's own tokens are no text"
    found.save(tmp_path / "model" / "atp_calibration.json")
    with atp.prune(model, budget=0.7) as run:
        assert [step.site for step in run.plan.steps] == list(sites) and run.plan.adaptive
    result = evaluate("atp", model, processor, ITEMS, prepared(processor, ITEMS, 1), {"budget": 0.7})
    assert len(result.answers) == 2 and result.report is not None
    assert result.report["flops_ratio"] == pytest.approx(0.69, abs=0.02)


def test_tuning_and_calibration_have_sites_that_reach_their_budgets(name: str) -> None:
    import backbones
    from calibrate import CHOSEN
    from tune import SITES

    adapter = adapt(backbones.get(name).make_model())
    kind = adapter.model.config.model_type  # type: ignore[union-attr]
    chosen = CHOSEN[kind]
    tried = [(sites, 0.6) for sites in SITES[kind]]
    tried += [(chosen.other.get(budget, chosen.sites), budget) for budget in chosen.budgets]
    for sites, budget in tried:
        plan = solve(adapter.shape, budget, workload=Workload(1, 11, 2), sites=tuple(map(Site.parse, sites.split())))
        assert min(step.keep for step in plan.steps) > 0.03
