"""What holds for every registered task, on official files and on the scenes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from atp.errors import BadInput
from atp.evals.stats import paired_bootstrap
from atp.evals.tasks import Task, UnknownTask, list_tasks, open_task
from atp.evals.tasks.base import REGISTRY

NAMES = list_tasks()


def truth(task: Task) -> dict[str, object]:
    return {example.key: example.answer for example in task.examples}


def test_the_tasks_of_the_field_are_there() -> None:
    assert {"chair", "coco", "gqa", "pope", "textvqa", "vqav2"} <= set(NAMES)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UnknownTask, match=r"unknown task 'vqa2'. Did you mean 'vqav2'\? Known: chair, "):
        open_task("vqa2", ".")


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_unique_stable_and_have_pictures(name: str, folder: Path) -> None:
    task, again = open_task(name, folder), open_task(name, folder)
    assert task.examples == again.examples and len(task.examples) >= 3
    assert len({example.key for example in task.examples}) == len(task.examples)
    assert not task.problems.found
    for example in task.examples:
        assert example.question and example.references and example.image.mode == "RGB"
        assert "{question}" in task.prompt
    groups = task.groups
    assert groups.dtype == np.int64 and groups.shape == (len(task.examples),)
    assert len(set(groups.tolist())) == len({example.group for example in task.examples})


@pytest.mark.parametrize("name", NAMES)
def test_true_answers_beat_empty_ones_and_metrics_are_means_of_their_items(name: str, folder: Path) -> None:
    task = open_task(name, folder, strict=True)
    good, none = task.score(truth(task)), task.score(dict.fromkeys(truth(task), ""))
    assert task.primary in good.metrics and task.primary in good.items
    main = "recall" if name == "chair" else task.primary  # silence names nothing that is not there
    assert good.metrics[main] > none.metrics[main]
    assert good.mode == task.modes[0]
    for scores in (good, none):
        assert all(math.isfinite(value) for value in scores.metrics.values())
        for metric, values in scores.items.items():
            assert values.shape == (len(task.examples),)
            assert scores.metrics[metric] == pytest.approx(100 * np.nanmean(values), abs=1e-9)
    assert none.counts["empty"] == len(task.examples) == good.counts["asked"]


@pytest.mark.parametrize("name", NAMES)
def test_items_feed_the_paired_bootstrap(name: str, folder: Path) -> None:
    task = open_task(name, folder)
    values = task.score(truth(task)).items[task.primary]
    kept = ~np.isnan(values)
    found = paired_bootstrap(values[kept], np.zeros(kept.sum()), task.groups[kept])
    assert found.mean == pytest.approx(100 * values[kept].mean())


@pytest.mark.parametrize("name", NAMES)
def test_nan_none_missing_and_unknown_answers_are_counted(name: str, scenes: Path) -> None:
    task = open_task(name, scenes)
    answers = truth(task)
    keys = list(answers)
    answers[keys[0]], answers[keys[1]], answers["nobody asked"] = math.nan, None, "yes"
    del answers[keys[2]]
    counts = task.score(answers).counts
    assert (counts["unanswered"], counts["unknown"], counts["empty"]) == (1, 1, 2)
    strict = open_task(name, scenes, strict=True)
    with pytest.raises(BadInput, match=r"1 answers to unknown questions \(nobody asked\) and 1 questions without an answer"):
        strict.score(answers)
    assert open_task(name, scenes).score({}).counts["unanswered"] == len(keys)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_answers_does_not_matter(name: str, scenes: Path) -> None:
    task = open_task(name, scenes)
    answers = {example.key: example.question.split()[-1] for example in task.examples}
    backwards = dict(reversed(answers.items()))
    assert task.score(answers).metrics == task.score(backwards).metrics


@pytest.mark.parametrize("name", NAMES)
def test_limit_keeps_the_first(name: str, scenes: Path) -> None:
    task, few = open_task(name, scenes), open_task(name, scenes, limit=4)
    assert few.examples == task.examples[:4]
    assert few.score(truth(few)).counts["asked"] == 4


@pytest.mark.parametrize("name", NAMES)
def test_unknown_modes_and_options_name_the_known_ones(name: str, scenes: Path) -> None:
    with pytest.raises(BadInput, match=f"task '{name}' has no mode 'best'; choose one of {', '.join(REGISTRY.get(name).modes)}"):
        open_task(name, scenes, mode="best")
    with pytest.raises(BadInput, match=f"task '{name}' has no option 'shots'; it has: "):
        open_task(name, scenes, shots=4)


@pytest.mark.parametrize("name", NAMES)
def test_without_images_answers_can_still_be_scored(name: str, official: Path) -> None:
    for path in (*official.glob("val2014/*"), *official.glob("*images/*")):
        path.unlink()
    with pytest.raises(BadInput, match=r"has nothing to ask \(.*images listed but absent: \d+ "):
        open_task(name, official)
    task = open_task(name, official, images=False, strict=True)
    assert task.score(truth(task)).counts["asked"] == len(task.examples)
    with pytest.raises(BadInput, match="has no image: the task was opened with images=False"):
        _ = task.examples[0].image


@pytest.mark.parametrize("name", NAMES)
def test_absent_images_are_counted_left_out_and_stop_a_strict_run(name: str, official: Path) -> None:
    whole = open_task(name, official)
    lost = next(example for example in whole.examples if example.group != whole.examples[0].group)
    assert lost.path is not None
    lost.path.unlink()
    task = open_task(name, official)
    gone = [example for example in whole.examples if example.path == lost.path]
    assert len(task.examples) == len(whole.examples) - len(gone)
    assert task.problems.counts["images listed but absent"] == 1
    assert task.problems.counts["questions left out because their image is absent"] == len(gone)
    with pytest.raises(BadInput, match=rf"images listed but absent: 1 \({lost.path.name}\).*open it with strict=False"):
        open_task(name, official, strict=True)


def test_a_broken_image_says_which(official: Path) -> None:
    task = open_task("vqav2", official)
    path = task.examples[0].path
    assert path is not None
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadInput, match=f"{path.name}: not a readable image"):
        _ = task.examples[0].image
