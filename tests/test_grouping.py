"""Which requests share a batch: known pictures, and what it saves on the shipped model's own counts."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import atp
from atp import grouping
from atp.engine.ledger import Ledger
from atp.errors import BadInput
from atp.evals.items import scene_items
from atp.grouping import detail


def noisy(width: int) -> Image.Image:
    """A white picture whose left part of 112 is noise."""
    image = Image.new("RGB", (112, 112), "white")
    image.paste(Image.effect_noise((112, 112), 120).crop((0, 0, width, 112)), (0, 0))
    return image


def test_detail_is_the_share_of_blocks_without_a_like() -> None:
    assert detail(noisy(0)) == 0
    assert detail(noisy(112)) == 1
    assert detail(noisy(48)) == pytest.approx(6 / 14)
    assert detail(Image.new("RGBA", (9, 30))) == 0
    checks = Image.new("RGB", (112, 112), "white")
    for place in range(0, 112, 16):
        ImageDraw.Draw(checks).rectangle((place, 0, place + 7, 111), fill="black")
    assert detail(checks) == 0  # edges everywhere, and each block there many times
    checks.paste((8, 8, 8), (0, 0, 8, 8))  # 8 levels from the black ones: half of what counts
    assert detail(checks) == pytest.approx(0.5 / 196)


def test_batches_hold_every_request_once_and_pictures_alike() -> None:
    queue = [noisy(width) for width in (112, 16, 80, 0, 48)]
    assert atp.batches(queue, 2) == [[3, 1], [4, 2], [0]]
    assert atp.batches([], 4) == []
    with pytest.raises(BadInput, match=r"got 0; e\.g\. size=16"):
        atp.batches(queue, 0)
    assert doctest.testmod(grouping).failed == 0


def test_the_report_tells_padding_and_batches_make_it_less() -> None:
    """16 scenes, counts by the shipped thresholds; rows of a tower of which each layer runs as many as the batch's longest."""
    model, processor = atp.load("atp-mini-llava")
    items = list(scene_items(16, per_scene=1))
    plan = atp.Calibration.load(Path(model.config._name_or_path) / "adaptive_calibration.json").plan_for(0.4)
    told = {}
    for name, order in (("as they come", chunks(range(16), 4)), ("alike", atp.batches([item.image for item in items], 4))):
        with atp.prune(model, plan=plan) as run, torch.inference_mode():
            for numbers in order:
                model(**atp.build_inputs(processor, [items[n].image for n in numbers], [items[0].question] * len(numbers)))
        told[name] = run.report()
    assert told["alike"].padding["vision"] < 0.8 * told["as they come"].padding["vision"]
    assert told["alike"].flops.vision == told["as they come"].flops.vision  # what was kept is each input's own
    assert f"vision: {told['alike'].padding['vision']:.0%} of the rows are padding" in str(told["alike"])
    with atp.prune(model, 0.4) as run, torch.inference_mode():
        model(**atp.build_inputs(processor, [items[n].image for n in (0, 1)], [items[0].question] * 2))
    assert run.report().padding == {"vision": 0.0, "language": 0.0} and "padding" not in str(run.report())


def chunks(numbers: Sequence[int], size: int) -> list[list[int]]:
    """Batches in the order of arrival."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def test_padding_by_hand() -> None:
    """Three layers of two inputs: 5, 4, 2 and 5, 3, 3 rows; an input that does not run pads nothing, a packed one neither."""
    ledger = Ledger()
    ledger.batch("vision", [(5, 4, 2), (5, 3, 3), (0, 0, 0)])
    assert (ledger.rows_run["vision"], ledger.rows_asked["vision"]) == (2 * (5 + 4 + 3), 22)
    ledger.batch("vision", [])
    assert ledger.rows_run["vision"] == 24


@pytest.mark.parametrize(
    ("images", "size", "says"),
    [
        ([3, 1, 2], 2, r"pictures, got 3 \(int\).*atp\.load_image"),
        (["cat.png"], 2, r"pictures, got 'cat.png' \(str\)"),
        (None, 2, r"pictures, got None"),
        ([noisy(0)], 1.5, r"whole number >= 1, got 1\.5"),
        ([noisy(0)], "2", r"whole number >= 1, got '2'"),
    ],
)
def test_what_is_no_queue(images: object, size: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        atp.batches(images, size)  # type: ignore[arg-type]
