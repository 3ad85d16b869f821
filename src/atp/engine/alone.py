"""One thread at a time: a run holds the state of the forward that is running, and is not copied. Part of the engine."""

from __future__ import annotations

from threading import get_ident
from typing import Any, NoReturn

import torch

from atp.adapters.base import Adapter
from atp.errors import AtpError
from atp.tracing import traced

TWO = (
    "two threads are inside this model at once, but a `with atp.prune(...)` block serves one at a time; give each thread a model "
    "of its own, or hold a lock around model.generate: with lock: model.generate(**inputs)"
)


class Alone:
    """Hooks that let one thread into a model at a time, before any state of the run is touched."""

    def __init__(self) -> None:
        self._inside: dict[str, tuple[int, object]] = {}  # at most one entry: the thread, and what it called
        self._last = 0

    def stand_alone(self, adapter: Adapter, handles: list[Any]) -> None:
        """Register them: before all others on the way in, behind the run's own on the way out."""
        for module in {adapter.top, adapter.base, adapter.text, adapter.tower if "vision" in adapter.stacks else adapter.base}:
            handles.append(module.register_forward_pre_hook(self.enter_alone, prepend=True))
            handles.append(module.register_forward_hook(self.leave_alone, prepend=True, always_call=True))
        if "vision" in adapter.stacks and adapter.connects != "grid":
            handles.append(adapter.connector.register_forward_pre_hook(self.still_alone, prepend=True))

    def enter_alone(self, called: object, *given: Any) -> None:
        """Before the model, or a part of it that is called by itself.

        Raises:
            AtpError: another thread is inside.
        """
        if traced():
            return
        if self._inside.setdefault("now", (get_ident(), called))[0] != get_ident():
            raise AtpError(TWO)
        self._last = get_ident()

    def still_alone(self, *given: Any) -> None:
        """Before the connector, which `generate` calls behind the tower and outside of the model.

        Raises:
            AtpError: another thread came in since.
        """
        backward = torch.is_grad_enabled()  # may run the connector again in a thread of its own
        if not traced() and not backward and self._last not in (0, get_ident()):
            raise AtpError(TWO)

    def leave_alone(self, called: object, *given: Any) -> None:
        """After what was entered first, also when it raised."""
        if not traced() and self._inside.get("now") == (get_ident(), called):
            self._inside.clear()

    @property
    def mine(self) -> bool:
        """Whether this thread is the one inside."""
        return traced() or self._inside.get("now", (0,))[0] == get_ident()

    def __reduce__(self) -> NoReturn:
        raise AtpError(
            "a model inside a `with atp.prune(...)` block cannot be copied or pickled, nor can its run, because hooks belong to "
            "it; copy it before or after the block, and keep run.plan or run.report() of the run"
        )
