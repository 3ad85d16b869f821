"""All cases of a benchmark: every device, batch size and answer length, each with all sides in turn."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import atp
from atp.bench.clock import clock_of
from atp.bench.measure import generate, sides, take_turns
from atp.bench.plot import bars
from atp.bench.settings import Settings
from atp.bench.subject import Subject, explained, open_subject
from atp.bench.summary import RULE, summary
from atp.errors import BadInput

SCHEMA, FILE = 1, "bench.json"
Step = Callable[[str], None]


def steps(settings: Settings) -> int:
    """Count the generations that a benchmark makes, at most: warm-up, timed, and a round for memory."""
    one = 1 + len(settings.methods) * len(settings.budgets)
    cases = len(settings.devices) * len(settings.batches) * len(settings.answers)
    return cases * one * (settings.warmup + settings.rounds + 1)


def bench(
    settings: Settings, on_step: Step | None = None, on_case: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """Measure everything that was asked for.

    Args:
        settings: what to measure.
        on_step: called before each generation with a few words.
        on_case: called with the result so far after every case, so that a kill loses one case only.

    Returns:
        Plain values: `settings`, `machine`, `rule` and one entry of `cases` for each device, batch size and answer length.

    Raises:
        AtpError: a name, a budget or a size that cannot be had, with what to use instead.
    """
    say = on_step or (lambda words: None)
    before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        cases: list[dict[str, Any]] = []
        result = {
            "schema": SCHEMA, "subject": settings.subject, "settings": settings.to_dict(), "machine": machine(), "rule": RULE,
            "cases": cases,
        }  # fmt: skip
        for device in settings.devices:
            subject = open_subject(settings, device)
            for batch in settings.batches:
                for answer in settings.answers:
                    with explained("generating", settings, device, batch):
                        cases.append(case(subject, batch, answer, say))
                    if on_case is not None:
                        on_case(result)
            del subject
        return result
    finally:
        torch.set_num_threads(before)


def case(subject: Subject, batch: int, answer: int, say: Step) -> dict[str, Any]:
    """Measure one batch size and answer length."""
    settings, clock = subject.settings, clock_of(subject.device)
    inputs = subject.inputs(batch)
    workload = subject.workload(inputs, answer)
    made, left_out = sides(subject, workload)
    samples = take_turns(
        made,
        settings.rounds,
        settings.warmup,
        lambda side, weigh: generate(subject, inputs, side, answer, clock, weigh),
        lambda words: say(f"{subject.device} batch {batch}, {answer} tokens: {words}"),
    )
    shape = subject.adapter.shape
    about = {
        "device": device_name(subject.device),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "parameters": sum(weight.numel() for weight in subject.model.parameters()),
        "batch": batch,
        "answer": answer,
        "images": workload.images,
        "patches": workload.images * shape.patches,
        "visual": workload.images * shape.visual,
        "text": workload.text,
    }
    return {**about, **summary(samples), "left_out": left_out}


def device_name(device: torch.device) -> str:
    """Return a device with what it is."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def machine() -> dict[str, Any]:
    """Return what times depend on besides the settings; `load` is that of other processes, if asked for before the start."""
    found: dict[str, Any] = {"python": platform.python_version(), "atp": atp.__version__}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    capability = torch.backends.cpu.get_cpu_capability()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {**found, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "vectors": capability, "load": load}


def prepare(out: Path) -> None:
    """Make the folder, before anything is measured.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / FILE).touch()
    except OSError as error:
        raise BadInput(f"cannot write into {str(out)!r}: {error.strerror or error}; choose another folder with --out") from None


def write(result: dict[str, Any], out: Path) -> list[Path]:
    """Write `bench.json` into a prepared folder, and `bench.svg` where matplotlib is installed; return what was written."""
    files = [out / FILE]
    files[0].write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    drawn = bars(result)
    if drawn:
        files.append(out / "bench.svg")
        files[1].write_text(drawn, encoding="utf-8")
    return files
