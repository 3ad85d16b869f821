"""How long a model takes on this device: its own first tokens, timed under a few plans, remembered. Part of the engine."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from atp.adapters.base import Adapter
from atp.adapters.examples import example
from atp.budget.calibration import fingerprint
from atp.budget.cost import Flops
from atp.budget.price import Clock, fit
from atp.errors import InvalidPlan, UnsupportedModel
from atp.plan import Plan

MEMORY = Path.home() / ".cache" / "atp" / "times.json"
ROUNDS, WARMUP = 7, 1
MISFIT = 0.15  # ours: beyond it the user hears of it
_known: dict[str, Clock] = {}


def clock(adapter: Adapter, method: str, plans: Sequence[Plan], flops: Callable[[Plan], Flops]) -> Clock:
    """Return the clock of a model with a method on its device: remembered, or measured now in about forty short runs.

    Args:
        adapter: of the model; nothing is hooked yet.
        method: name, for the memory.
        plans: to time, the empty one among them.
        flops: of a plan, for one prompt until its first token.

    Raises:
        InvalidPlan: a family whose prompts only its processor can make.
    """
    key = _key(adapter, method)
    if key not in _known:
        found = _read().get(key)
        if found is None:
            found = dataclasses.asdict(fit([(flops(plan), bool(plan.steps), took) for plan, took in _timed(adapter, plans)]))
            _write(key, found)
        _known[key] = Clock(**found)
        if _known[key].misfit > MISFIT:
            warnings.warn(
                f"the times that a budget in milliseconds rests on differ by up to {_known[key].misfit:.0%} from a + b * FLOPs "
                f"(a busy machine, or one that is not limited by FLOPs); remove {MEMORY} to measure again",
                stacklevel=6,
            )
    return _known[key]


def _timed(adapter: Adapter, plans: Sequence[Plan]) -> list[tuple[Plan, float]]:
    """Median milliseconds of each plan; plans take turns, so that a slow moment falls on all alike."""
    from atp.engine.block import prune  # which asks for this module first

    model: Any = adapter.model
    try:
        inputs = example(adapter)
    except UnsupportedModel as error:
        raise InvalidPlan(f"milliseconds cannot be measured here ({error}); give budget= as a share, tokens or bytes") from None
    took: list[list[float]] = [[] for _ in plans]
    pad = getattr(model.generation_config, "pad_token_id", None) or 0
    for turn in range(WARMUP + ROUNDS):
        for index, plan in enumerate(plans):
            with contextlib.ExitStack() as stack, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if plan.steps:
                    stack.enter_context(prune(model, plan=plan))
                stack.enter_context(torch.inference_mode())
                _settle(adapter)
                start = time.perf_counter()
                model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False, num_beams=1, pad_token_id=pad)
                _settle(adapter)
                if turn >= WARMUP:
                    took[index].append(1000 * (time.perf_counter() - start))
    return [(plan, statistics.median(times)) for plan, times in zip(plans, took, strict=True)]


def _settle(adapter: Adapter) -> None:
    device: torch.device = adapter.model.device  # type: ignore[assignment]
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _key(adapter: Adapter, method: str) -> str:
    """What times depend on: the weights' sizes and dtype, the device, its threads, torch, and the method."""
    model: Any = adapter.model
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    mark = hashlib.sha256(repr(fingerprint(model.named_parameters())).encode()).hexdigest()[:16]
    attention = getattr(model.config, "_attn_implementation", "")
    return " ".join(
        map(str, (mark, device.type, name, model.dtype, attention, torch.get_num_threads(), torch.__version__, method))
    )


def _read() -> Mapping[str, dict[str, float]]:
    try:
        found = json.loads(MEMORY.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(key: str, value: dict[str, float]) -> None:
    """Remember for later processes, where there is a place to."""
    with contextlib.suppress(OSError):
        MEMORY.parent.mkdir(parents=True, exist_ok=True)
        MEMORY.write_text(json.dumps({**_read(), key: value}, indent=1) + "\n", encoding="utf-8")
