"""Answers a second over a queue of requests, at equal batch and at equal memory: `bash runs/throughput.sh`.

Counts per input are padded to the longest of a batch. They run as requests come, with pictures alike in a batch (`atp.batches`),
and with a cap on what an input may keep beyond the mean (`Step.ceiling`). An architecture's weights are random, so its counts
are drawn with the spread that the shipped model's have.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import typer
from torch import Tensor

import atp
from atp.adapters import adapt
from atp.adapters.examples import example
from atp.bench import memory
from atp.bench.execute import machine, prepare
from atp.bench.settings import Settings, dtype
from atp.bench.subject import open_subject
from atp.bench.summary import noise, spread, verdict
from atp.evals.items import scene_items
from atp.methods.atp import ATP
from atp.plan import Plan

CAP = 1.1  # ours
LARGER = (1, 1.25, 1.5, 2, 2.5, 3, 4)
SPREAD = 0.2  # of the shipped model's counts, where they were not measured here
Batch = dict[str, Tensor]


@atp.register("drawn")
@dataclass(frozen=True)
class Drawn(ATP):
    """ATP whose counts at a threshold are that share of all tokens times a number drawn for each request."""

    drawn: ClassVar[Tensor] = torch.ones(1)

    def count(self, scores: Tensor, tokens: Any, threshold: float) -> Tensor | None:
        """Return the drawn counts."""
        return (threshold * scores.shape[1] * Drawn.drawn.to(scores.device)).round()


@dataclass(frozen=True)
class Queue:
    """Requests of a model: `make` gives the inputs of some, `detail` orders them, `images` of one run in the tower."""

    name: str
    model: Any
    processor: Any
    size: int
    make: Callable[[Sequence[int]], Batch]
    alike: Callable[[int], list[list[int]]]
    draws: Tensor | None = None

    def come(self, batch: int) -> list[list[int]]:
        """Batches in the order of arrival."""
        return [list(range(first, min(first + batch, self.size))) for first in range(0, self.size, batch)]


@dataclass(frozen=True)
class Side:
    """What is compared: a plan, None = unpruned, and how requests are put into batches."""

    name: str
    plan: Plan | None
    grouped: bool = False

    def order(self, queue: Queue, batch: int) -> list[list[int]]:
        """Return the batches."""
        return queue.alike(batch) if self.grouped else queue.come(batch)


def served(queue: Queue, side: Side, order: Sequence[Sequence[int]], answer: int) -> dict[str, Any]:
    """Answer every batch in turn; return seconds, bytes and what the run reports. Tokenizing is not timed."""
    options = {"max_new_tokens": answer, "min_new_tokens": answer, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    made = [queue.make(numbers) for numbers in order]
    pruned: Any = (
        contextlib.nullcontext() if side.plan is None else atp.prune(queue.model, plan=side.plan, processor=queue.processor)
    )
    probe, took, cache = memory.CacheProbe(adapt(queue.model)), 0.0, 0
    with pruned as run, torch.inference_mode(), probe.watching():
        known = memory.reset_peak(queue.model.device)
        idle = memory.held(queue.model.device) if known else None
        for numbers, inputs in zip(order, made, strict=True):
            if queue.draws is not None:
                Drawn.drawn = queue.draws[list(numbers)]
            begin = time.perf_counter()
            queue.model.generate(**inputs, **options)
            took += time.perf_counter() - begin
            cache = max(cache, probe.bytes() or 0)
        peak = memory.peak(queue.model.device) if known else None
        report = None if run is None else run.report()
    return {
        "seconds": took, "kv_bytes": cache, "peak_bytes": None if peak is None or idle is None else max(0, peak - idle),
        "flops_share": 1.0 if report is None else report.ratio, "padding": {} if report is None else report.padding,
        "kept": {} if report is None else report.kept,
    }  # fmt: skip


def compared(
    queue: Queue, sides: Sequence[tuple[Side, int]], answer: int, rounds: int, say: Callable[[str], Any] = print
) -> dict[str, Any]:
    """Serve the whole queue with every side in turn, after one batch each to warm up."""
    found: dict[str, list[dict[str, Any]]] = {side.name: [] for side, _ in sides}
    for side, batch in sides:
        served(queue, side, side.order(queue, batch)[:1], answer)
    for number in range(rounds):
        for side, batch in sides:
            say(f"{queue.name}, round {number + 1} of {rounds}: {side.name}")
            found[side.name].append(served(queue, side, side.order(queue, batch), answer))
    base = [one["seconds"] for one in found[sides[0][0].name]]
    unrest, rows = noise(base), []
    for side, batch in sides:
        own = found[side.name]
        took = spread([one["seconds"] for one in own])
        gain = spread([whole / one["seconds"] for whole, one in zip(base, own, strict=True)])
        peaks = [one["peak_bytes"] for one in own if one["peak_bytes"] is not None]
        last = {name: own[-1][name] for name in ("flops_share", "padding", "kv_bytes")}
        rows.append({
            "side": side.name, "batch": batch, "seconds": asdict(took), "gain": asdict(gain), **last,
            "answers_per_second": queue.size / took.median, "tokens_per_second": queue.size * answer / took.median,
            "peak_bytes": min(peaks) if peaks else None,
            "verdict": "" if side.plan is None else verdict(rounds, unrest, gain.median),
        })  # fmt: skip
    return {"queue": queue.size, "answer": answer, "noise": unrest, "rounds": rounds, "sides": rows}


def fitting(queue: Queue, side: Side, batch: int, answer: int, room: int, say: Callable[[str], Any] = print) -> int:
    """Return the largest batch whose peak stays within `room` bytes: the least of two runs of one batch each, as peaks jump."""
    best = batch
    for factor in LARGER[1:]:
        size = round(batch * factor)
        if size > queue.size:
            break
        order = side.order(queue, size)[-1 if side.grouped and queue.size % size == 0 else 0]  # the busiest pictures
        peaks = [served(queue, side, [order], answer)["peak_bytes"] for _ in range(2)]
        if None in peaks or min(peaks) > room:
            break
        say(f"{queue.name}: {side.name} fits at batch {size}")
        best = size
    return best


def adaptive(plan: Plan, cap: float | None = None) -> Plan:
    """Bound what an input may keep at the plan's adaptive steps, as a multiple of the mean."""
    if cap is None:
        return plan
    steps = [replace(step, ceiling=min(1.0, step.keep * cap)) if step.adaptive else step for step in plan.steps]
    return replace(plan, steps=tuple(steps))


def shipped(size: int, budget: float) -> tuple[Queue, Plan, Plan]:
    """Questions about scenes, one each, for atp-mini-llava, with its own thresholds; fixed and adaptive plan."""
    model, processor = atp.load("atp-mini-llava")
    items = list(scene_items(size, per_scene=1))

    def make(numbers: Sequence[int]) -> Batch:
        return atp.build_inputs(processor, [items[n].image for n in numbers], [items[n].question for n in numbers])

    images = [item.image for item in items]
    with atp.prune(model, budget, processor=processor) as run:
        fixed = run.plan
    table = atp.Calibration.load(Path(model.config._name_or_path) / "adaptive_calibration.json")
    queue = Queue("atp-mini-llava", model, processor, size, make, lambda batch: atp.batches(images, batch))
    return queue, fixed, table.plan_for(budget)


def drawn(arch: str, size: int, budget: float, kind: str, depth: float, varies: float) -> tuple[Queue, Plan, Plan]:
    """Noise for an architecture with random weights, one tile each; adaptive counts are drawn around those of the fixed plan."""
    subject = open_subject(Settings(arch=arch, dtype=dtype(kind), depth=depth, tiles=1), "cpu")
    whole = example(subject.adapter, size, tiles=1)
    draws = (1 + varies * torch.randn(size, generator=torch.Generator().manual_seed(0))).clamp(min=0.2)

    def make(numbers: Sequence[int]) -> Batch:
        return {name: value[list(numbers)] for name, value in whole.items()}

    def alike(batch: int) -> list[list[int]]:
        order = draws.argsort().tolist()
        return [order[first : first + batch] for first in range(0, size, batch)]

    with atp.prune(subject.model, budget, "drawn", workload=subject.workload(make([0]), 1)) as run:
        fixed = run.plan
    steps = [replace(s, threshold=s.keep) if s.site.stack == "vision" else s for s in fixed.steps]
    name = arch if depth == 1 else f"{arch} at {depth:g} of its depth"
    return Queue(name, subject.model, None, size, make, alike, draws), fixed, replace(fixed, steps=tuple(steps))


def sides_of(fixed: Plan, own: Plan, budget: float) -> Iterator[Side]:
    """Yield what is compared at equal batch."""
    yield Side("unpruned", None)
    yield Side(f"atp {budget:g}", fixed)
    yield Side(f"atp {budget:g} adaptive, as they come", own)
    yield Side(f"atp {budget:g} adaptive, alike", own, True)
    yield Side(f"atp {budget:g} adaptive, alike, capped", adaptive(own, CAP), True)


def main(
    out: Path = Path("docs/results/performance/throughput-shipped"),
    arch: str = "",
    queue: int = 128,
    batch: int = 16,
    answer: int = 4,
    budget: float = 0.6,
    rounds: int = 3,
    threads: int = 2,
    dtype_: str = typer.Option("bf16", "--dtype"),
    depth: float = 1.0,
) -> None:
    """Measure, print, and write throughput.json."""
    torch.set_num_threads(threads)
    prepare(out)
    beside = out.parent / "throughput-shipped" / "throughput.json"
    known = json.loads(beside.read_text())["spread"] if arch and beside.is_file() and beside.stat().st_size else SPREAD
    own, fixed, plan = drawn(arch, queue, budget, dtype_, depth, known) if arch else shipped(queue, budget)
    sides = list(sides_of(fixed, plan, budget))
    result: dict[str, Any] = {
        "schema": 1, "subject": own.name, "dtype": str(own.model.dtype).removeprefix("torch."), "machine": machine(),
        "drawn": bool(arch), "spread": known if arch else varied(own, plan), "cap": CAP,
        "equal_batch": compared(own, [(side, batch) for side in sides], answer, rounds),
    }  # fmt: skip
    write(out, {**result, "unfinished": True})
    room = result["equal_batch"]["sides"][0]["peak_bytes"]
    if room is not None:
        fits = [(side, fitting(own, side, batch, answer, room)) for side in (sides[1], sides[3])]
        result["equal_memory"] = compared(own, [(sides[0], batch), *fits], answer, rounds)
    write(out, result)


def varied(queue: Queue, plan: Plan) -> float:
    """Return standard deviation over mean of the tower's last counts."""
    last = served(queue, Side("", plan), [list(range(queue.size))[:64]], 1)["kept"]["vision"]
    counts = torch.tensor(last[max(last)], dtype=torch.float64)
    return float(counts.std() / counts.mean())


def write(out: Path, result: dict[str, Any]) -> None:
    """Write what is known so far, and print it."""
    (out / "throughput.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for kind in ("equal_batch", "equal_memory"):
        for row in result.get(kind, {}).get("sides", ()):
            pad = ", ".join(f"{stack} {share:.0%}" for stack, share in row["padding"].items())
            print(f"{kind} {row['side']:<36} batch {row['batch']:>3} {row['answers_per_second']:8.2f}/s  {pad}")


if __name__ == "__main__":
    typer.run(main)
