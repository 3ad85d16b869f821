"""What is asked and what a record says: batches, draws, costs of the unpruned model, NaN logits, budgets out of reach, scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from atp.engine import prune
from atp.errors import AtpError, BadInput
from atp.evals.harness import asking, execute, header
from atp.evals.harness.answering import Asker
from atp.evals.harness.records import KEY, read
from atp.evals.harness.settings import Settings, budgets, corruptions, shard, words
from atp.evals.tasks import open_task
from atp.loading import build_inputs
from atp.plan import Plan, Site, Step

QUESTIONS = ["is there a dog ?", "what color is the cat ?", "how many dogs ?"]


@pytest.fixture(scope="module")
def asker(loaded) -> Asker:
    return Asker(*loaded)


@pytest.fixture
def inputs(asker: Asker, drawing: Image.Image) -> dict[str, torch.Tensor]:
    return asker.placed(build_inputs(asker.processor, [drawing] * 3, QUESTIONS))


def test_every_item_is_in_one_batch_of_one_length() -> None:
    sizes = [5, 4, 5, 5, 9, 4, 5, 5]
    made = asking.batches(sizes, 3)
    assert sorted(n for batch in made for n in batch) == list(range(8))
    assert all(len({sizes[n] for n in batch}) == 1 and len(batch) <= 3 for batch in made)
    assert made == [[1, 5], [0, 2, 3], [6, 7], [4]]


def test_a_larger_draw_holds_the_smaller_one_and_many_images(scenes: Path) -> None:
    examples = open_task("vqav2", scenes).examples
    few, more = asking.drawn(examples, 12), asking.drawn(examples, 30)
    assert len(few) == 12 and {e.key for e in few} < {e.key for e in more}
    assert [e.key for e in more] == [e.key for e in examples if e in more]
    assert len({e.group for e in few}) >= 4  # the first twelve are all about one image
    assert asking.drawn(examples, None) == asking.drawn(examples, 10**6) == list(examples)


def test_the_unpruned_model_runs_without_hooks_and_is_counted_apart(asker: Asker, inputs: dict[str, torch.Tensor]) -> None:
    seen = []
    layer = asker.model.get_submodule("model.language_model.layers.0")
    with torch.inference_mode():
        plain = asker.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    handle = layer.register_forward_hook(lambda *_: seen.append(len(layer._forward_pre_hooks)))
    said = asker.answer(inputs, Plan("none"), 3)
    handle.remove()
    assert 0 in seen  # the timed run; the one that counts follows
    expected = asker.processor.batch_decode(plain[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said.answers == [text.strip() for text in expected]
    with prune(asker.model, plan=Plan("random", (Step(Site("language", 2), 0.5),))) as run, torch.inference_mode():
        out = asker.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    whole = run.report().flops_unpruned.to_dict()
    assert said.flops == said.flops_unpruned
    assert {k: said.flops[k] for k in ("vision", "connector", "prefill")} == {
        k: pytest.approx(whole[k]) for k in ("vision", "connector", "prefill")
    }
    if plain.shape == out.shape:
        assert said.flops["decode"] == pytest.approx(whole["decode"])
    assert said.tokens == 36
    before = len(asker.counted)
    asker.answer(inputs, Plan("none"), 3)
    assert len(asker.counted) == before


@pytest.mark.parametrize("plan", [Plan("none"), Plan("random", (Step(Site("language", 2), 0.5),))], ids=lambda plan: plan.method)
def test_nan_logits_are_counted_and_answer_nothing(asker: Asker, inputs: dict[str, torch.Tensor], plan: Plan) -> None:
    clean = asker.answer(inputs, plan, 3)

    def spoil(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(0, torch.tensor([1]), float("nan"))

    handle = asker.model.lm_head.register_forward_hook(spoil)
    said = asker.answer(inputs, plan, 3)
    handle.remove()
    assert clean.nan == [0, 0, 0]
    assert said.nan[0] == said.nan[2] == 0 and said.nan[1] >= 1
    assert said.answers == [clean.answers[0], "", clean.answers[2]]


def test_a_budget_out_of_reach_is_recorded_and_not_changed(evaluate, tmp_path: Path) -> None:
    done = evaluate(tmp_path, tasks=("vqav2",), methods=("fastv",), budgets=(0.9, 0.01), corruptions=())
    (cell,) = done.refused["vqav2"]
    assert (cell.method, cell.budget, cell.plan) == ("fastv", 0.01, None)
    there = header.load(tmp_path)["cells"]["vqav2"]["fastv 0.01"]
    assert there["lowest"] == cell.lowest > 0.01 and "cannot be reached" in there["refused"]
    assert {(r["method"], r["budget"]) for r in read(done.file)[0]} == {("none", 1.0), ("fastv", 0.9)}


def test_a_record_says_what_made_it(evaluate, tmp_path: Path) -> None:
    done = evaluate(tmp_path, tasks=("vqav2",), methods=("random",), seed=3)
    found = read(done.file)[0]
    plans = {cell["plan_id"]: cell.get("plan") for cell in header.load(tmp_path)["cells"]["vqav2"].values()}
    for record in found:
        assert {*KEY, "model", "answer", "score", "scores", "nan", "plan", "seed", "batch", "versions", "commit"} <= set(record)
        assert plans[record["plan"]]["method"] == record["method"]
        assert record["seed"] == 3 and {"atp", "torch", "transformers"} <= set(record["versions"])
        assert record["batch"]["seconds"] > 0 and record["batch"]["flops"]["total"] > 0
        assert 0 <= record["score"] <= 1 and record["score"] == record["scores"]["accuracy"]
    assert {plan["options"]["seed"] for plan in plans.values() if plan["method"] == "random"} == {3}
    assert {r["disturbance"] for r in found} == {"none", "typing:2"}


def test_scores_of_a_batch_are_those_of_the_whole(scenes: Path) -> None:
    task = open_task("coco", scenes, corpus_df=True)
    said = ["a photo of a red car and a dog", *[example.answer for example in task.examples[1:]]]
    whole = task.rate(said).items
    parts = [asking.worth(task, task.examples[n : n + 2], said[n : n + 2]) for n in range(0, len(said), 2)]
    rows = [row for one in parts for row in one]
    assert [row["CIDEr"] for row in rows] == pytest.approx(list(whole["CIDEr"]))
    assert rows[1]["CIDEr"] > 1 > rows[0]["CIDEr"]


def test_no_folder_means_drawn_scenes(evaluate, tmp_path: Path) -> None:
    done = evaluate(tmp_path, data="", scenes=2, tasks=("vqav2",), methods=(), corruptions=(), limit=4)
    assert done.made == 4
    assert len(list((tmp_path / "data-val-2" / "val2014").glob("*.jpg"))) == 2
    assert [p for p in tmp_path.iterdir() if p.name.startswith("data") and p.name != "data-val-2"] == []


def test_scenes_of_a_run_that_failed_are_not_taken_for_others(evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick: dict[str, Any] = {"data": "", "tasks": ("vqav2",), "methods": (), "corruptions": (), "limit": None}

    def refuse(*given: Any) -> Any:
        raise AtpError("after the scenes were drawn, before run.json")

    with monkeypatch.context() as patched:
        patched.setattr(execute, "all_cells", refuse)
        with pytest.raises(AtpError, match="after the scenes"):
            evaluate(tmp_path, **quick, scenes=2)
    assert not (tmp_path / header.FILE).exists() and (tmp_path / "data-val-2").is_dir()
    done = evaluate(tmp_path, **quick, scenes=1)
    assert {record["image"] for record in read(done.file)[0]} == {"1"}


def test_replaced_words_are_not_scored_against_the_old_truth(evaluate, tmp_path: Path) -> None:
    done = evaluate(tmp_path, tasks=("vqav2",), methods=(), corruptions=("replaced:2",), limit=4)
    scores = {r["disturbance"]: r["score"] for r in read(done.file)[0]}
    assert scores["replaced:2"] is None and scores["none"] is not None


def test_lists_as_the_command_line_writes_them() -> None:
    assert words(" vqav2, gqa,,vqav2 ") == ("vqav2", "gqa")
    assert budgets("0.4,1.0, 0.6") == (1.0, 0.6, 0.4)
    assert corruptions("fog:1-2,typing:3") == ("fog:1", "fog:2", "typing:3")
    assert len(corruptions("common:3,typing:2")) == 16
    assert shard("2/4") == (1, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tasks": ()}, "no task given"),
        ({"tasks": ("vqav3",)}, "Did you mean 'vqav2'"),
        ({"methods": ("fastvv",)}, "Did you mean 'fastv'"),
        ({"budgets": (1.5,)}, r"in \(0, 1\], got 1.5"),
        ({"limit": 0}, "limit is at least 1, got 0"),
        ({"prompt": "mine"}, "choose one of auto, task, plain"),
        ({"plans": ("a/x.yaml", "b/x.yaml")}, "two plan files have one name"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(AtpError, match=says):
        Settings(**{"model": "m", "tasks": ("vqav2",), **change})


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0"])
def test_shards_are_counted_from_one(text: str) -> None:
    with pytest.raises(BadInput, match="i from 1 to n: 1/4, 2/4, 3/4, 4/4"):
        shard(text)


def test_settings_survive_their_file() -> None:
    asked = Settings("m", ("gqa:llava",), ("atp",), (1.0, 0.6), corruptions=("fog:1",), limit=3)
    assert Settings.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
