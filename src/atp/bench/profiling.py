"""A profile of one pruned prefill by `torch.profiler`, in which our hooks carry our name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from atp.bench.hooks import LABEL, HookTimer
from atp.bench.sides import BASE, sides
from atp.bench.subject import Subject
from atp.engine import prune


def profile(subject: Subject, batch: int, file: Path) -> dict[str, Any]:
    """Write a trace of one answer of one token, after a warm-up, with the first side that prunes.

    Args:
        subject: the model.
        batch: prompts.
        file: of the trace, JSON for chrome://tracing or ui.perfetto.dev.

    Returns:
        Plain values: the file, the side, seconds of the prefill under the profiler, seconds and number of our hooks in it.
    """
    inputs = subject.inputs(batch)
    side = next(side for side in sides(subject, subject.workload(inputs, 1))[0] if side.name != BASE)
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
    count = sum(event.count for event in found.key_averages() if event.key.startswith(f"{LABEL}: "))
    return {"file": str(file), "side": side.name, "seconds": took, "own_seconds": own, "own_share": own / took, "hooks": count}
