"""Time: the host's clock, or events on a GPU; and a stopwatch that says in which part of a model it went by."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from atp.adapters import Adapter

PARTS = ("vision", "connector", "prefill", "decode", "other")
"""Parts of a generation; `other` is what no hook of ours saw: the loop of `generate`, and the glue between the parts."""


class Clock(Protocol):
    """Marks moments, and tells the seconds between two of them."""

    def mark(self) -> Any:
        """Return the present moment."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Return what went by between two marks; only once `settle` was called."""

    def settle(self) -> None:
        """Wait until all that was asked for is done."""


class HostClock:
    """For devices that are done when a call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin

    def settle(self) -> None:
        """Nothing is under way."""


class DeviceClock:
    """Events in the stream of a GPU, so that no part waits for the one before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(begin.elapsed_time(end)) / 1000

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()


@dataclass
class Span:
    """One call of a watched module.

    Attributes:
        part: which part it counts as.
        begin, end: marks.
        inside: the span that it ran in, None = none.
    """

    part: str
    begin: Any
    end: Any = None
    inside: Span | None = None


class Stopwatch:
    """Times a generation by part, through hooks that stand outside those of `atp.prune`.

    Enter it before the block of `atp.prune`: then its hooks come first before a module and last behind it, and time includes
    what pruning itself costs there. A span counts without those inside it.

    Args:
        adapter: of the model.
        clock: tells the time.
    """

    def __init__(self, adapter: Adapter, clock: Clock) -> None:
        self.adapter, self.clock = adapter, clock
        self.spans: list[Span] = []
        self._open: list[Span] = []
        self._handles: list[Any] = []
        self._calls = 0
        self._first = 1 if adapter.reader is None else 2  # an encoder, then the decoder's first token

    def __enter__(self) -> Stopwatch:
        adapter = self.adapter
        fixed = {"vision": getattr(adapter, "tower", None), "connector": getattr(adapter, "connector", None)}
        seen: set[nn.Module] = set()
        for part, module in fixed.items():
            if isinstance(module, nn.Module) and "vision" in adapter.stacks:
                seen.add(module)
                self._watch(module, functools.partial(str, part))
        for module in (adapter.top, adapter.base, adapter.text, adapter.reader):
            if isinstance(module, nn.Module) and module not in seen:
                seen.add(module)
                self._watch(module, self._answering)
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def part(self) -> str:
        """The part that is running."""
        return self._open[-1].part if self._open else "other"

    def _answering(self) -> str:
        """Which part a call of the language model is: the first makes the first token."""
        if self._open and self._open[-1].part in ("prefill", "decode"):
            return self._open[-1].part
        self._calls += 1
        return "prefill" if self._calls <= self._first else "decode"

    def _watch(self, module: nn.Module, part: Callable[[], str]) -> None:
        def enter(*given: Any) -> None:
            span = Span(part(), self.clock.mark(), inside=self._open[-1] if self._open else None)
            self.spans.append(span)
            self._open.append(span)

        def leave(*given: Any) -> None:
            self._open.pop().end = self.clock.mark()

        self._handles.append(module.register_forward_pre_hook(enter))
        self._handles.append(module.register_forward_hook(leave))

    def seconds(self, begin: Any, end: Any) -> dict[str, float]:
        """Return the seconds by part, `other` and `total` between two marks around everything."""
        self.clock.settle()
        found = dict.fromkeys(PARTS, 0.0)
        for span in self.spans:
            took = self.clock.seconds(span.begin, span.end)
            found[span.part] += took
            if span.inside is not None:
                found[span.inside.part] -= took
        total = self.clock.seconds(begin, end)
        found["other"] = total - sum(found.values())
        return {**found, "total": total}
