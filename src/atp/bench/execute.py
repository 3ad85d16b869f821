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
from atp.bench.measure import generate, take_turns
from atp.bench.plot import bars
from atp.bench.profiling import profile
from atp.bench.quantise import weight_bytes
from atp.bench.settings import Settings
from atp.bench.sides import sides
from atp.bench.subject import Subject, explained, open_subject
from atp.bench.summary import RULE, summary
from atp.errors import BadInput
from atp.loading import check_kind

SCHEMA, FILE = 1, "bench.json"
Step = Callable[[str], None]


def steps(settings: Settings) -> int:
    """Count the generations that a benchmark makes, at most: warm-up, timed, and a round for memory."""
    rounding = 1 if settings.round_to is None else 2
    asked = rounding * len(settings.methods) + len(set(settings.compare) - set(settings.methods))
    one = 1 + (asked + rounding * len(settings.calibrations)) * len(settings.budgets) + settings.keep_all
    one += len(settings.eager) * len(settings.budgets)
    one += 0 if settings.kernels == "torch" else one - 1
    one *= 1 if settings.quant is None else 2
    cases = len(settings.devices) * len(settings.batches) * len(settings.answers)
    return cases * one * (settings.warmup + settings.rounds + 1)


def bench(
    settings: Settings,
    on_step: Step | None = None,
    on_case: Callable[[dict[str, Any]], Any] | None = None,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Measure everything that was asked for.

    Args:
        settings: what to measure.
        on_step: called before each generation with a few words.
        on_case: called with the result so far after every case, so that a kill loses one case only.
        trace: file for a profile of one pruned prefill, for chrome://tracing or Perfetto; None = none.

    Returns:
        Plain values: `settings`, `machine`, `rule` and one entry of `cases` for each device, batch size and answer length.

    Raises:
        AtpError: a name, a budget or a size that cannot be had, with what to use instead.
    """
    say = on_step or (lambda words: None)
    for device in settings.devices:  # the last is refused before the first is timed
        check_kind(None, device or None)
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
            if trace is not None and device == settings.devices[0]:
                say("profiling")
                result["profile"] = profile(subject, settings.batches[0], trace)
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
    fewer = {side.name: side.smaller for side in made if side.smaller is not None}
    smaller = {name: subject.inputs(batch, image.tiles, image.grid, (image.scale or (1.0,))[0]) for name, image in fewer.items()}
    samples = take_turns(
        made,
        settings.rounds,
        settings.warmup,
        lambda side, weigh: generate(subject, smaller.get(side.name, inputs), side, answer, clock, weigh),
        lambda words: say(f"{subject.device} batch {batch}, {answer} tokens: {words}"),
    )
    shape = subject.adapter.shape
    about = {
        "device": device_name(subject.device),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "parameters": sum(weight.numel() for weight in subject.model.parameters()),
        "weight_bytes": weight_bytes(subject.model),
        "quantised_bytes": None if subject.quantised is None else weight_bytes(subject.quantised.model),
        "batch": batch,
        "answer": answer,
        "images": workload.images,
        "patches": workload.images * shape.patches,
        "visual": workload.images * shape.visual,
        "text": workload.text,
    }
    tiles = {name: image.tiles for name, image in fewer.items() if image.tiles is not None}
    grids = {name: [subject.adapter.grid, image.grid] for name, image in fewer.items() if image.grid is not None}
    scales = {name: image.scale for name, image in fewer.items() if image.scale is not None}
    found = summary(samples, batch * answer, answer - 1)
    return {**about, **found, "tiles": tiles, "grids": grids, "scales": scales, "left_out": left_out}


def device_name(device: torch.device) -> str:
    """Return a device with what it is."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def machine() -> dict[str, Any]:
    """Return what times depend on besides the settings; `load` is that of other processes, if asked for before the start."""
    found: dict[str, Any] = {"python": platform.python_version(), "atp": atp.__version__}
    for name in ("torch", "transformers", "torchao", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    capability = torch.backends.cpu.get_cpu_capability()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {**found, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "vectors": capability, "load": load}


def prepare(out: Path, trace: Path | None = None) -> None:
    """Make the folders, before anything is measured.

    Raises:
        BadInput: one cannot be written.
    """
    for option, file in (("--out", out / FILE), ("--trace", trace)):
        try:
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        except OSError as error:
            where, why = str(file.parent) if file else "", error.strerror or error
            raise BadInput(f"cannot write into {where!r}: {why}; choose another folder with {option}") from None


def write(result: dict[str, Any], out: Path) -> list[Path]:
    """Write `bench.json` into a prepared folder, and `bench.svg` where matplotlib is installed; return what was written."""
    files = [out / FILE]
    files[0].write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    drawn = bars(result)
    if drawn:
        files.append(out / "bench.svg")
        files[1].write_text(drawn, encoding="utf-8")
    return files
