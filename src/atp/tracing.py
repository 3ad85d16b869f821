"""What code needs that `torch.compile` and `torch.export` trace into a graph. Knows nothing of the rest of the package.

In a graph host state stands still: what changes from call to call would be a guard, and what depends on values cannot be there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import torch

from atp.errors import UnsupportedModel

T = TypeVar("T")
ADAPTIVE = (
    "counts by threshold depend on the input, so torch.compile and torch.export cannot put this call into one graph; use a plan "
    "without thresholds, such as that of atp.prune(model, budget=0.6), or call the model without torch.compile"
)
TEXT = (
    "how many text tokens are protected depends on the prompt, so torch.compile and torch.export cannot put this call into one "
    "graph; use text=1.0, or call the model without torch.compile"
)
TILES = (
    "which tiles stay is read from the pixels, so torch.compile and torch.export cannot put this call into one graph; leave "
    "tiles= away, or call the model without torch.compile"
)
SIZES = (
    "this adapter reads the sizes of images on the host, so torch.compile and torch.export cannot trace its model; call it "
    "without torch.compile (`atp models` names the types that are one graph)"
)
LOOPS = (
    "this method chooses in a loop whose length depends on the input, so torch.compile and torch.export cannot trace it; use "
    "method='atp', or call the model without torch.compile"
)


def traced() -> bool:
    """Whether this call is being traced into a graph."""
    return bool(torch.compiler.is_compiling())


def clock() -> float:
    """Host time in seconds; it stands still in a trace."""
    return 0.0 if traced() else time.perf_counter()


def _refusal(why: str) -> Callable[[], NoReturn]:
    """Make a function that raises UnsupportedModel; a graph that may not break (fullgraph=True) fails with the same words."""

    def refuse() -> NoReturn:
        raise UnsupportedModel(why)

    disable: Any = torch.compiler.disable
    made: Callable[[], NoReturn] = disable(refuse, reason=why)
    return made


refuse_adaptive, refuse_loops, refuse_sizes, refuse_text, refuse_tiles = map(_refusal, (ADAPTIVE, LOOPS, SIZES, TEXT, TILES))


@dataclass
class Latest:
    """Remembers what was last made of some objects, which are compared by identity."""

    _sources: tuple[Any, ...] = ()
    _made: Any = None

    def of(self, *sources: Any, make: Callable[[], T]) -> T:
        """Return what `make` made of the same sources, or let it make that."""
        if len(sources) != len(self._sources) or any(old is not new for old, new in zip(self._sources, sources, strict=True)):
            self._made, self._sources = make(), sources
        made: T = self._made
        return made


class lazy(cached_property[T]):
    """A cached property without the lock of `functools`, which graphs cannot take."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        assert self.attrname is not None
        made = instance.__dict__[self.attrname] = self.func(instance)
        return made
