"""Counts per input for tiny models of families whose images have unequal sizes: every budget is spent, where tokens differ."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import atp
from atp.asking import build_inputs
from atp.errors import BadInput, InvalidPlan, UnreachableBudget
from families import FAMILIES
from families.processors import PROCESSORS

SIZES = ((40, 40), (24, 48), (48, 24), (16, 32), (64, 64), (33, 47), (50, 20), (20, 50))
ASKED = ("is there a dog ?", "what color is the cat in the image ?", "how many dogs ?", "red ?")


def photo(height: int, width: int, seed: int) -> Image.Image:
    """Blocks of 8 x 8 pixels, smooth or not: several tokens are alike."""
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR if seed % 2 else Image.Resampling.NEAREST)


IMAGES = [photo(*size, seed) for seed, size in enumerate(SIZES)]
QUESTIONS = [ASKED[number % len(ASKED)] for number in range(len(SIZES))]


@cache
def loaded(name: str) -> tuple[Any, Any]:
    return FAMILIES[name].make(dtype=torch.float32), PROCESSORS[name]()


def spends(name: str, plan: atp.Plan) -> tuple[float, set[str]]:
    """Share of the FLOPs that the plan takes for the inputs one by one, and the tower's counts."""
    model, processor = loaded(name)
    counts = set()
    with torch.inference_mode(), atp.prune(model, plan=plan, processor=processor) as run:
        for image, question in zip(IMAGES, QUESTIONS, strict=True):
            model.generate(**build_inputs(processor, [image], [question]), max_new_tokens=4, do_sample=False)
            counts.add(str(run.trace.kept("vision")))
        return run.report().ratio, counts


@pytest.mark.parametrize("name", [name for name in PROCESSORS if name != "internvl"])
def test_images_of_unequal_sizes_spend_each_budget(name: str) -> None:
    """Within 1 % of it, by the plan in use and not only while it was fitted; and a budget between is interpolated."""
    budgets = (0.85, 0.75) if name == "idefics" else (0.7, 0.5)
    told: list[tuple[float, int, float]] = []
    found = atp.fit_counts(*loaded(name), IMAGES, QUESTIONS, budgets, step=lambda *news: told.append(news))
    for plan in found.plans:
        share, counts = spends(name, plan)
        assert plan.budget is not None and 0.99 * plan.budget <= share <= 1.001 * plan.budget
        assert any(abs(share - said) < 3e-3 for budget, _, said in told if budget == plan.budget), "another plan than was run"
        assert len(counts) > 4, "counts hardly differ"
    assert budgets[1] * 0.9 < spends(name, found.plan_for(sum(budgets) / 2))[0] < budgets[0] * 1.05


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_mean_prompt_is_that_of_the_inputs(name: str) -> None:
    from atp.adapters import adapt
    from atp.fitting import mean_prompt

    model, processor = loaded(name)
    rows = [build_inputs(processor, [image], [question]) for image, question in zip(IMAGES, QUESTIONS, strict=True)]
    shape = adapt(model).shape
    work, sized = mean_prompt(shape, processor, rows)
    with warnings.catch_warnings(), torch.inference_mode(), atp.prune(model, plan=atp.Plan("none")) as run:
        warnings.simplefilter("ignore")  # nothing leaves
        for row in rows:
            model(**row)
    report = run.report()
    mine = atp.budget.cost.count(sized, atp.Workload(images=work.images, text=work.text, answer=1))
    for part in ("vision", "prefill"):
        assert getattr(mine, part) == pytest.approx(getattr(report.flops, part) / len(rows), rel=0.15), part


def test_alike_tokens_leave_a_budget_unspent_and_that_is_said() -> None:
    """Nine tokens a tile, and all tiles of a picture keep as many as the largest, for the tower takes no mask."""
    with pytest.warns(UserWarning, match=r"budget 0\.25: the most that thresholds spend of it on these 8 inputs is 0\.2[0-4]\d"):
        atp.fit_counts(*loaded("internvl"), IMAGES, QUESTIONS, 0.25)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"budgets": (0.6, 0.01)}, UnreachableBudget, "budget 0.01 cannot be reached .* use budget="),
        ({"budgets": (0.6, 1.0)}, BadInput, "budgets are shares below 1"),
        ({"budgets": ()}, BadInput, "budgets are shares below 1"),
        ({"method": "random"}, InvalidPlan, "'random' does not look at the image"),
        ({"method": "none"}, InvalidPlan, "'none' does not look at the image"),
        ({"method": "resize"}, InvalidPlan, "'resize' does not look at the image"),
        ({"method": "prumerge", "budgets": 0.9}, InvalidPlan, "'prumerge' counts by a rule of its own"),
        ({"options": {"alhpa": 1}}, InvalidPlan, "no option 'alhpa'. Did you mean 'alpha'"),
        ({"sites": ["vision:40"]}, InvalidPlan, "vision stack has layers 0 to 4"),
        ({"images": ["cat.png"] * 8}, BadInput, r"got the path 'cat\.png'; open it: atp\.load_image\('cat\.png'\)"),
        ({"images": IMAGES[0]}, BadInput, "1 images and 8 questions"),
        ({"processor": None}, BadInput, "expected the model's processor, got NoneType"),
    ],
)
def test_refused_before_all_inputs_run(given: dict[str, Any], error: type[Exception], says: str) -> None:
    model, processor = loaded("llava_next")

    def never(*news: Any) -> None:
        raise AssertionError("ran")

    asked = {"processor": processor, "images": IMAGES, "questions": QUESTIONS, "budgets": (0.6,), **given}
    with pytest.raises(error, match=says):
        atp.fit_counts(model, **asked, step=never)


def test_sites_in_words_and_a_method_that_drops_in_the_language_model_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = atp.fit_counts(*loaded("llava_next"), iter(IMAGES), iter(QUESTIONS), 0.9, method="fastv", sites=["language:2"])
    (plan,) = found.plans
    assert [(str(step.site), step.adaptive, step.absolute) for step in plan.steps] == [("language:2", True, False)]
