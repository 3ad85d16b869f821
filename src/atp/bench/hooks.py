"""What pruning itself costs the host: the time that goes by inside the hooks of `atp.prune`, by part of the generation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from atp.bench.clock import Stopwatch

LABEL = "atp"


class HookTimer:
    """Times every hook that is registered between making this and `wrap`.

    On a CPU that is all that gathers, scatters, scores and Python cost; on a GPU the host's share of it.

    Args:
        model: whose hooks.
        watch: says which part of the generation is running.
        label: name the hooks in a profile as well.
    """

    def __init__(self, model: nn.Module, watch: Stopwatch | None, label: bool = False) -> None:
        self.model, self.watch, self.label = model, watch, label
        self.seconds: dict[str, float] = {}
        self._since, self._inside = RemovableHandle.next_id, False

    def wrap(self) -> None:
        """Put a clock around what was registered since; the hooks' own handles remove it."""
        for module in self.model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for number in [key for key in hooks if key >= self._since]:
                    hooks[number] = self._timed(hooks[number])

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return hook(*args, **kwargs)
            self._inside, begin = True, time.perf_counter()
            try:
                if not self.label:
                    return hook(*args, **kwargs)
                with torch.profiler.record_function(f"{LABEL}: {getattr(hook, '__name__', type(hook).__name__)}"):
                    return hook(*args, **kwargs)
            finally:
                self._inside = False
                part = "other" if self.watch is None else self.watch.part
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begin

        return timed
