"""Who computes attention rows: PyTorch, as ever, or on request a Triton kernel.

PyTorch unless the variable `ATP_KERNELS` or the block of `using` says otherwise. Triton is imported where it is first used, so
nothing here needs it. Knows tensors only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from atp.errors import BadInput
from atp.tracing import traced

CHOICES = ("torch", "triton", "auto")
VARIABLE = "ATP_KERNELS"
_asked: str | None = None


def check(name: str, source: str) -> str:
    """Return the name of a choice.

    Args:
        name: what was given.
        source: where, for the message.

    Raises:
        BadInput: an unknown one.
    """
    if name not in CHOICES:
        raise BadInput(f"{source} is one of {', '.join(CHOICES)}, got {name!r}; e.g. {source}=torch")
    return name


def chosen() -> str:
    """Return the choice in force; an unset or empty variable is `torch`."""
    return _asked or check(os.environ.get(VARIABLE) or CHOICES[0], VARIABLE)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Choose for the whole process while the block runs, over the variable.

    Raises:
        BadInput: an unknown name.
    """
    global _asked
    before, _asked = _asked, check(name, "kernels")
    try:
        yield
    finally:
        _asked = before


def obstacle(device: torch.device) -> str | None:
    """Say why Triton cannot run on a device, with what to do about it; None = it can."""
    try:
        module = import_module("atp.kernels.triton_rows")
    except ImportError as error:
        return f"the kernels need triton ({error}); install it with: pip install 'atp-vlm[triton]', or set {VARIABLE}=torch"
    if device.type == "cuda" or module.INTERPRETED:
        return None
    return (
        f"Triton kernels run on a CUDA device, got tensors on {str(device)!r}; set {VARIABLE}=torch, or move the model to a GPU "
        "(to test without one: TRITON_INTERPRET=1 before Python starts, which is slow)"
    )


def by_triton(queries: Tensor, keys: Tensor, allowed: Tensor | None, scaling: float, softcap: float | None) -> Tensor | None:
    """Compute `atp.rows.attention_rows` by Triton where that is chosen; None = PyTorch shall.

    Under `auto` PyTorch keeps everything that is not on CUDA, in double precision, or differentiated. Calls that are traced into
    a graph are always PyTorch's.

    Raises:
        BadInput: `triton` was chosen and cannot do it.
    """
    if traced() or (choice := chosen()) == "torch":
        return None
    why = None
    if torch.promote_types(queries.dtype, keys.dtype) == torch.float64:
        why = f"the kernels compute in float32, got float64; set {VARIABLE}=torch"
    elif torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad):
        why = f"the kernels have no backward pass, got tensors that require gradients; set {VARIABLE}=torch"
    elif choice == "triton" or queries.is_cuda:
        why = obstacle(queries.device)
    else:
        return None
    if why is not None:
        if choice == "auto":
            return None
        raise BadInput(why)
    module: Any = import_module("atp.kernels.triton_rows")
    made: Tensor = module.attention_rows(queries, keys, allowed, scaling, softcap)
    return made
