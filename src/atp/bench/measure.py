"""One timed generation, and the order in which sides take turns. Part of the benchmark."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from atp.bench import memory
from atp.bench.clock import Clock, Stopwatch
from atp.bench.subject import Subject
from atp.budget.cost import Workload
from atp.engine import Report, prune
from atp.errors import BadInput, InvalidPlan, UnknownMethod, UnsupportedModel
from atp.plan import Plan

BASE = "unpruned"


@dataclass(frozen=True)
class Side:
    """One of the things that are compared.

    Attributes:
        name: as tables show it.
        plan: None = unpruned.
    """

    name: str
    plan: Plan | None = None


@dataclass(frozen=True)
class Sample:
    """One generation.

    Attributes:
        seconds: by part, and their `total`.
        selection: host seconds of scoring and choosing, which lie inside the parts.
        peak: most bytes held; None = not asked for, or not known.
        cache: bytes of keys and values at the end; None = the language model has no cache of its own.
        report: of the run; None where it was not pruned.
    """

    seconds: dict[str, float]
    selection: float = 0.0
    peak: int | None = None
    cache: int | None = None
    report: Report | None = field(default=None, repr=False)


def sides(subject: Subject, workload: Workload) -> tuple[list[Side], dict[str, str]]:
    """Return the unpruned side and one for every method at every budget; and those that cannot be, with the reason.

    Raises:
        AtpError: that of the first one, where no side is left.
    """
    made, left_out = [Side(BASE)], {}
    first: Exception | None = None
    for method in subject.settings.methods:
        for budget in subject.settings.budgets:
            name = f"{method} {budget:g}"
            try:
                with prune(subject.model, budget, method, processor=subject.processor, workload=workload) as run:
                    made.append(Side(name, run.plan))
            except UnknownMethod:
                raise
            except (InvalidPlan, UnsupportedModel) as error:
                first, left_out[name] = first or error, str(error)
    if len(made) == 1 and first is not None:
        raise first
    return made, left_out


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
    model: Any = subject.model
    pad = getattr(model.generation_config, "pad_token_id", None)
    options = {"max_new_tokens": answer, "min_new_tokens": answer, "do_sample": False, "num_beams": 1, "pad_token_id": pad or 0}
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Stopwatch(subject.adapter, clock))
        probe = stack.enter_context(memory.CacheProbe(subject.adapter).watching())
        run = None
        if side.plan is not None:
            run = stack.enter_context(prune(model, plan=side.plan, processor=subject.processor))
        stack.enter_context(torch.inference_mode())
        known = weigh and memory.reset_peak(subject.device)
        clock.settle()
        begin = clock.mark()
        output: Tensor = model.generate(**inputs, **options)
        end = clock.mark()
        seconds = watch.seconds(begin, end)
        held = memory.peak(subject.device) if known else None
        cache = probe.bytes()
    length = output.shape[1]
    if length not in (answer, answer + 1, answer + inputs["input_ids"].shape[1]):  # ids of the prompt, or a start token, or none
        raise BadInput(f"answers of {answer} tokens were asked for, the model gave {length} ids; use another --answer-tokens")
    report = None if run is None else run.report()
    return Sample(seconds, 0.0 if report is None else report.seconds, held, cache, report)


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
