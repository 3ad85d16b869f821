"""What all inputs of a run kept: mean, least and most over all forwards, in numbers that do not grow with them."""

from __future__ import annotations

import pickle
from collections import defaultdict

import pytest

import tiny
from atp.engine import Run, prune
from atp.engine.kept import Kept


def forwards(adaptive: bool, count: int = 4, **options: object) -> tuple[Run, dict[tuple[str, int], list[int]]]:
    """Run batches of three prompts; return the run and what every input kept, by site."""
    model, seen = tiny.model(), defaultdict(list)
    with prune(model, plan=tiny.plan("atp", adaptive=adaptive)) as run:
        for seed in range(count):
            model(**tiny.prompts(model, images=(1, 2, 1), seed=seed))
        for record in run.trace.records:
            seen[record.stack, record.layer] += record.counts
        run.trace.clear()
    return run, seen


def test_numbers_are_those_of_all_inputs() -> None:
    run, seen = forwards(adaptive=True)
    report = run.report()
    told, text = report.to_dict()["over_all"], str(report)
    assert {(stack, int(layer)) for stack, layers in told.items() for layer in layers} == set(seen)
    for (stack, layer), counts in seen.items():
        assert len(counts) == (16 if stack == "vision" else 12)
        mean, least, most = sum(counts) / len(counts), min(counts), max(counts)
        assert told[stack][str(layer)] == {"inputs": len(counts), "mean": pytest.approx(mean), "least": least, "most": most}
        assert least < most
        line = next(line for line in text.splitlines() if line.startswith(f"kept at {stack}:{layer}: "))
        assert line.endswith(f"; of all {len(counts)} inputs: mean {mean:.1f}, least {least}, most {most}")
        shown = line.partition(";")[0].partition(": ")[2]
        assert shown == ", ".join(map(str, report.kept[stack][layer]))  # still those of the last forward


def test_equal_counts_say_nothing_more() -> None:
    report = forwards(adaptive=False)[0].report()
    line = next(line for line in str(report).splitlines() if line.startswith("kept at vision:1"))
    assert line == "kept at vision:1: 13, 13, 13, 13"
    assert report.to_dict()["over_all"]["vision"]["1"] == {"inputs": 16, "mean": 13.0, "least": 13, "most": 13}


def test_a_report_stays_as_it_was_and_memory_does_not_grow() -> None:
    model = tiny.model()
    with prune(model, plan=tiny.plan("atp", adaptive=True)) as run:
        model(**tiny.prompts(model))
        first = run.report()
        before, size = str(first), len(pickle.dumps(run.book.ledger.over_all))
        for seed in range(20):
            model(**tiny.prompts(model, seed=seed))
        assert str(first) == before
        assert len(pickle.dumps(run.book.ledger.over_all)) <= size + 4 * 4 * 2  # sums of two bytes more
        assert run.report().to_dict()["over_all"]["language"]["1"]["inputs"] == 63


def test_inputs_without_an_image_are_none() -> None:
    kept = Kept()
    kept.add([10, 0, 10], [4, 0, 6])
    assert kept.to_dict() == {"inputs": 2, "mean": 5.0, "least": 4, "most": 6}
    assert (str(kept), str(Kept())) == ("; of all 2 inputs: mean 5.0, least 4, most 6", "")
    model = tiny.model()
    with prune(model, plan=tiny.plan("atp")) as run:
        model(**tiny.prompts(model, images=(1, 0, 1)))
    assert run.report().to_dict()["over_all"]["language"]["3"] == {"inputs": 2, "mean": 3.0, "least": 3, "most": 3}


def test_text_that_leaves_is_told_too() -> None:
    model = tiny.model()
    with prune(model, plan=tiny.plan("atp"), text=0.5, text_tail=2) as run:
        model(**tiny.prompts(model, texts=(30, 60)))
    (counts,) = [layers for stack, layers in run.report().kept.items() if stack == "text"]
    for layer, rows in counts.items():
        assert run.report().over_all["text"][layer].to_dict() == {
            "inputs": 2, "mean": sum(rows) / 2, "least": min(rows), "most": max(rows),
        }  # fmt: skip
        assert f"text kept at language:{layer}: {rows[0]}, {rows[1]}; of all 2 inputs: mean " in str(run.report())
