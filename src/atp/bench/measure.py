"""One timed generation, and the order in which sides take turns. Part of the benchmark."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from atp.adapters import eager
from atp.bench import memory
from atp.bench.clock import Clock, Stopwatch
from atp.bench.hooks import HookTimer
from atp.bench.sides import Side
from atp.bench.subject import Subject
from atp.budget.cost import Flops
from atp.engine import Report, prune
from atp.errors import BadInput
from atp.kernels import using


@dataclass(frozen=True)
class Sample:
    """One generation.

    Attributes:
        seconds: by part, and their `total`.
        selection: host seconds of scoring and choosing, which lie inside the parts.
        hooks: host seconds in all hooks of `atp.prune` by part, selection included; they lie inside the parts.
        peak: most bytes held; None = not asked for, or not known.
        cache: bytes of keys and values at the end; None = the language model has no cache of its own.
        report: of the run; None where it was not pruned.
        flops: spent, and those of the unpruned model; None = no difference.
    """

    seconds: dict[str, float]
    selection: float = 0.0
    hooks: dict[str, float] = field(default_factory=dict)
    peak: int | None = None
    cache: int | None = None
    report: Report | None = field(default=None, repr=False)
    flops: tuple[Flops, Flops] | None = None


def generate(subject: Subject, inputs: dict[str, Tensor], side: Side, answer: int, clock: Clock, weigh: bool = False) -> Sample:
    """Generate answers of a given length, greedily, and time it; entering the block of `atp.prune` is not timed.

    Args:
        subject: the model.
        inputs: a batch.
        side: pruned or not.
        answer: tokens of every answer.
        clock: of the model's device.
        weigh: ask for the most bytes held; times suffer, as memory is given back to the system first.

    Raises:
        BadInput: the answers have another length.
    """
    adapter = subject.adapter_of(side.quantised)
    model: Any = adapter.model
    pad = getattr(model.generation_config, "pad_token_id", None)
    options = {"max_new_tokens": answer, "min_new_tokens": answer, "do_sample": False, "num_beams": 1, "pad_token_id": pad or 0}
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Stopwatch(adapter, clock))
        probe = stack.enter_context(memory.CacheProbe(adapter).watching())
        run, timer = None, HookTimer(model, watch)
        stack.enter_context(eager(model) if side.eager else contextlib.nullcontext())
        if side.plan is not None:
            run = stack.enter_context(prune(model, plan=side.plan, processor=subject.processor))
            timer.wrap()
        stack.enter_context(using(side.kernels))
        stack.enter_context(torch.inference_mode())
        known = weigh and memory.reset_peak(subject.device)
        clock.settle()
        begin = clock.mark()
        output: Tensor = model.generate(**inputs, **options)
        end = clock.mark()
        seconds = watch.seconds(begin, end)
        held = memory.peak(subject.device) if known else None
        held = None if held is None else held - subject.idle_bytes(side.quantised)
        cache = probe.bytes()
    length = output.shape[1]
    if length not in (answer, answer + 1, answer + inputs["input_ids"].shape[1]):  # ids of the prompt, or a start token, or none
        raise BadInput(f"answers of {answer} tokens were asked for, the model gave {length} ids; use another --answer-tokens")
    report = None if run is None else run.report()
    whole = None if side.smaller is None else side.smaller.flops
    spent = whole if report is None else (report.flops, report.flops_unpruned)
    return Sample(seconds, 0.0 if report is None else report.seconds, timer.seconds, held, cache, report, spent)


def turns(names: Sequence[str], rounds: int, warmup: int) -> Iterator[tuple[str, str]]:
    """Yield who runs and what for: A B C, A B C, ... so that a slow minute falls on all alike; memory comes last."""
    for purpose in (*["warm-up"] * warmup, *["timed"] * rounds, "memory"):
        for name in names:
            yield name, purpose


def take_turns(
    made: Sequence[Side], rounds: int, warmup: int, run: Callable[[Side, bool], Sample], on_step: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """Run all sides in turn; return the timed samples of each, with the peak of the round for memory.

    Args:
        made: the sides.
        rounds: how often each is timed.
        warmup: how often each runs before that.
        run: one generation of a side; its second argument says whether memory is asked for.
        on_step: called before each with a few words.
    """
    known = {side.name: side for side in made}
    found: dict[str, list[Sample]] = {name: [] for name in known}
    for name, purpose in turns(list(known), rounds, warmup):
        on_step(f"{name} ({purpose})")
        sample = run(known[name], purpose == "memory")
        if purpose == "timed":
            found[name].append(sample)
        elif purpose == "memory":
            found[name] = [replace(one, peak=sample.peak) for one in found[name]]
    return found
