"""A profile of one pruned prefill by `torch.profiler`, in which our hooks carry our name."""

from __future__ import annotations

import bisect
import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from atp.bench.counting import Counted
from atp.bench.hooks import LABEL, HookTimer
from atp.bench.sides import BASE, sides
from atp.bench.subject import Subject
from atp.engine import prune
from atp.plan import Plan


def profile(subject: Subject, batch: int, file: Path) -> dict[str, Any]:
    """Write a trace of one answer of one token, after a warm-up, with the first side that prunes.

    Args:
        subject: the model.
        batch: prompts.
        file: of the trace, JSON for chrome://tracing or ui.perfetto.dev.

    Returns:
        Plain values: the file, the side, seconds of the prefill under the profiler, seconds and number of our hooks in it,
        seconds in them while no operator ran, and how often the host waits for the device in one prefill, ours and whole.
    """
    inputs = subject.inputs(batch)
    side = next(side for side in sides(subject, subject.workload(inputs, 1))[0] if side.name != BASE)
    assert side.plan is not None
    model: Any = subject.model
    options = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (subject.device.type == "cuda")]
    timer = HookTimer(model, None, label=True)
    with prune(model, plan=side.plan, processor=subject.processor), torch.inference_mode():
        timer.wrap()
        model.generate(**inputs, **options)
        timer.seconds.clear()
        with torch.profiler.profile(activities=kinds, acc_events=True) as found:
            begin = time.perf_counter()
            model.generate(**inputs, **options)
            if subject.device.type == "cuda":
                torch.cuda.synchronize(subject.device)
            took = time.perf_counter() - begin
    found.export_chrome_trace(str(file))
    own = sum(timer.seconds.values())
    told = {"file": str(file), "side": side.name, "seconds": took, "own_seconds": own, "own_share": own / took}
    whole = waits(model, inputs, None)
    told |= {"waits": waits(model, inputs, side.plan) - whole, "waits_unpruned": whole, "sites": len(side.plan.steps)}
    return {**told, **gaps(json.loads(file.read_text(encoding="utf-8"))["traceEvents"])}


def waits(model: Any, inputs: Mapping[str, Tensor], plan: Plan | None) -> int:
    """Count how often the host waits for a value in one prefill."""
    block: Any = contextlib.nullcontext() if plan is None else prune(model, plan=plan)
    with block, torch.inference_mode(), Counted().watching() as counted:
        model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=1, pad_token_id=0)
    return counted.waits


def gaps(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Read a trace: how many hooks of ours ran, the seconds in them while no operator did, and the hook that left most.

    Args:
        events: `traceEvents` of a file for chrome://tracing; times are microseconds.
    """
    spans = [event for event in events if event.get("ph") == "X"]
    operators = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if e.get("cat") == "cpu_op")
    starts = [begin for begin, _ in operators]
    idle: Counter[str] = Counter()
    own = [event for event in spans if str(event["name"]).startswith(f"{LABEL}: ") and event.get("cat") != "gpu_user_annotation"]
    for event in own:
        begin, end = event["ts"], event["ts"] + event["dur"]
        place, free = begin, 0.0
        for first, last in operators[bisect.bisect_left(starts, begin) : bisect.bisect_left(starts, end)]:
            free, place = free + max(0.0, first - place), max(place, last)
        idle[str(event["name"])] += (free + max(0.0, end - place)) / 1e6
    most = idle.most_common(1)
    return {"hooks": len(own), "idle_seconds": sum(idle.values()), "most_idle": most[0][0] if most else ""}
