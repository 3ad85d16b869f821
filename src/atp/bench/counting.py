"""What a call does besides arithmetic, counted instead of timed: operations sent to the device, and waits for their values."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "repeat_interleave"))
"""Operators of ATen whose result the host must know: on a GPU it stands still until the device is there."""

INDEXING = frozenset(("index", "index_put", "index_put_"))
LISTS = (Tensor.tolist, Tensor.numpy, Tensor.cpu)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators, and those that wait."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = str(func.overloadpacket.__name__)
        self.counted.operators[name] += 1
        by_mask = name in INDEXING and any(one is not None and one.dtype == torch.bool for one in args[1])
        known = dict(kwargs or {})
        self.counted.waits += by_mask or (name in WAITING and known.get("output_size") is None)
        return func(*args, **known)


class _Lists(TorchFunctionMode):
    """Counts tensors that become lists: on a CPU no operator tells."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self.counted.waits += func in LISTS
        return func(*args, **(kwargs or {}))


class Counted:
    """Counts over one block.

    Attributes:
        operators: how often each operator ran.
        waits: how often the host waited for a value: `item`, `bool`, `tolist`, `nonzero`, a boolean index.

    Example:
        >>> with Counted().watching() as counted:
        ...     _ = (torch.ones(3) + 1).tolist()
        >>> counted.operators["add"], counted.waits
        (1, 1)
    """

    def __init__(self) -> None:
        self.operators: Counter[str] = Counter()
        self.waits = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[Counted]:
        """Count what is called inside."""
        with _Operators(self), _Lists(self):
            yield self
