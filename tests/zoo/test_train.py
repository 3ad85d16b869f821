"""Stages, feeders, legs and exports of the training recipe, on a CPU and with steps of two images."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import train

    monkeypatch.setattr(train, "RUNS", tmp_path)
    return tmp_path


def test_a_step_of_answers_and_one_of_captions_and_the_export_loads(
    name: str, runs: Path, ask_one: Callable[[Any, str], dict[str, Any]]
) -> None:
    import backbones
    from export import export
    from train import Job, save, worker

    import atp

    first = {"model": backbones.get(name).make_model().state_dict(), "heads": {}}
    save(runs / "first.pt", first)
    worker(0, Job("joint", 10.0, name, batch=2, steps=2, captions_every=2, compiled=False, start=str(runs / "first.pt")))
    state = torch.load(Job("joint", 10.0, name).path("joint"), weights_only=True)
    assert state["step"] == state["t"] == 2 and 0 < state["elapsed"] < 10
    assert all(bool(value.isfinite().all()) for value in state["model"].values())
    still = [key for key, value in state["model"].items() if torch.equal(value, first["model"][key].bfloat16().float())]
    assert len(still) < len(state["model"]) / 4, still
    model, processor = atp.load(export(name, "joint", runs / "out"))
    weights = model.state_dict()
    for key, value in state["model"].items():
        assert torch.equal(weights[key], value.bfloat16().float()), key
    inputs = ask_one(processor, "Is the red car left of the boats?")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
        fresh = backbones.get(name).make_model().eval()
        fresh.load_state_dict(state["model"])
        torch.testing.assert_close(logits, fresh(**inputs).logits[0, -1], atol=0.05, rtol=0.05)
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1


def test_a_leg_resumes_where_the_last_ended_also_from_weights_alone(runs: Path) -> None:
    from export import slim
    from train import Job, Stage, worker

    job = Job("vision", 10.0, batch=2, steps=2, compiled=False)
    worker(0, job)
    worker(0, job)
    whole = torch.load(job.path("vision"), weights_only=True)
    assert whole["step"] == whole["t"] == 4
    slim("llava", "vision", runs / "small.pt")
    assert (runs / "small.pt").stat().st_size < job.path("vision").stat().st_size / 4
    (runs / "small.pt").replace(job.path("vision"))
    leg = Stage(job)
    assert (leg.step, leg.elapsed, leg.flat.step_count) == (4, whole["elapsed"], 0)
    expected = {key: value.bfloat16() for key, value in whole["model"].items()}
    assert all(torch.equal(value, expected[key]) for key, value in leg.model.state_dict().items())


def test_a_stage_whose_minutes_are_over_makes_no_step(runs: Path) -> None:
    from train import Job, worker

    worker(0, Job("vision", 10.0, batch=2, steps=1, compiled=False))
    worker(0, Job("vision", 1e-6, batch=2, compiled=False))
    assert torch.load(Job("vision", 1.0).path("vision"), weights_only=True)["step"] == 1


def test_feeders_give_what_is_drawn_without_them() -> None:
    from feed import Feed, Recipe

    recipe = Recipe("language", 2, long=True)
    feed = Feed(recipe, feeders=1, ahead=2)
    try:
        for step in range(3, 6):
            batch, length, captions = feed.get(step, 0.5)
            plain, *rest = recipe(step, 0.5)
            assert [length, captions] == rest
            for field in fields(plain):
                expected = getattr(plain, field.name)
                expected = expected.bfloat16() if field.name == "pixels" else expected
                assert torch.equal(getattr(batch, field.name), expected), field.name
        with pytest.raises(ValueError, match="asked for step 9, but 6 comes next"):
            feed.get(9, 0.5)
    finally:
        feed.close()


@pytest.mark.parametrize("long", [False, True])
def test_no_two_batches_share_a_scene(long: bool) -> None:
    from feed import STAGES, Recipe

    seeds = [
        seed
        for stage, rank, step in itertools.product(STAGES, range(3), range(5))
        for seed in Recipe(stage, 4, rank, 3, long).seeds(step)
    ]
    assert len(seeds) == len(set(seeds)) == 3 * 3 * 5 * 4


def test_cells_take_the_labels_of_an_object_inside_them() -> None:
    from build import vocabulary
    from data import GRID, make_batch
    from losses import cells, labels, places

    batch = make_batch([5, 6], {piece: i for i, piece in enumerate(vocabulary())}, 20, 16)
    small = labels(batch, 7)
    cell, spots = cells(7), places(batch)
    assert cell.bincount().tolist() == [(GRID // 7) ** 2] * 49
    for image, own in itertools.product(range(2), range(49)):
        patches = (cell == own).nonzero().flatten()
        kinds = batch.category[image, patches]
        assert bool(small.category[image, own] > 0) == bool((kinds > 0).any())
        match = (kinds == small.category[image, own]) & (batch.color[image, patches] == small.color[image, own])
        same = (spots[image, patches] == small.places[image, own]).all(-1)
        assert bool((match & same).any())
        assert torch.equal(small.where[:, own], batch.where[:, patches].any(-1))
    assert bool(small.where.any(-1).eq(batch.where.any(-1)).all())
    assert labels(batch, GRID).category is batch.category


def test_a_leg_and_its_batches_are_bounded_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    import train

    assert train.parse(["vision", "--minutes", "2"]).feeders == 0
    job = train.parse(["joint", "--minutes", "2", "--backbone", "blip2", "--leg", "0.5", "--workers", "1"])
    assert (job.leg, job.workers, job.path("joint").name) == (0.5, 1, "blip2-joint.pt")
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            train.parse(["joint", "--minutes", "2", "--device", "cuda"])
        assert "torch sees no GPU here; use --device cpu" in capsys.readouterr().err
