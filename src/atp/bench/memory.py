"""Bytes: the most that a run held, what is free, and the keys and values that its cache ends with."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atp.adapters import Adapter

STATUS, REFS, MEMORY = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
FORGET_PEAK = "5"  # proc(5): resets the peak resident set


def reset_peak(device: torch.device) -> bool:
    """Forget the most that was held so far, and give back what is free; False where this machine cannot."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        ctypes.CDLL(None).malloc_trim(0)  # of glibc: else the peak is what some earlier run left behind
        REFS.write_text(FORGET_PEAK)
    except (OSError, AttributeError):
        return False
    return True


def peak(device: torch.device) -> int | None:
    """Return the most bytes held since `reset_peak`: of the GPU's allocator, or the process's resident set; None = not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _kilobytes(STATUS, "VmHWM")


def held(device: torch.device) -> int | None:
    """Return the bytes held now, of the kind that `peak` tells; None = not known."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _kilobytes(STATUS, "VmRSS")


def free(device: torch.device) -> int | None:
    """Return the bytes that can still be had; None = not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _kilobytes(MEMORY, "MemAvailable")


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class CacheProbe:
    """Holds the cache of the last call of the language model."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.cache = adapter, None

    @contextlib.contextmanager
    def watching(self) -> Iterator[CacheProbe]:
        """Watch the language model, or the decoder that reads what it encodes."""

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self.cache = self.adapter.cache(kwargs, output)

        handle = self.adapter.text.register_forward_hook(note, with_kwargs=True)
        try:
            yield self
        finally:
            handle.remove()

    def bytes(self) -> int | None:
        """Return the bytes of keys and values stored; None where the language model has no cache of its own."""
        if self.cache is None:
            return None
        total = 0
        for layer in range(self.adapter.shape.language.layers):
            keys = self.adapter.stored_keys(self.cache, layer)
            total += 0 if keys is None else 2 * keys.numel() * keys.element_size()
        return total
