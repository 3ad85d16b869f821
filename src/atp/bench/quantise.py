"""Weights in int8 or int4 by torchao, for a copy of the model that pruning runs on as it does on the model itself.

Order: quantise, then prune. Quantising changes weights inside stock `nn.Linear` modules, so every hook of `atp.prune` finds the
modules it knows; in the other order the hooks would be the same, but what they read of the weights would change under them.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atp.adapters import adapt
from atp.errors import BadInput

MISSING = "--quant {} needs torchao; install it with: pip install 'atp-vlm[quant]'"
GROUP, ROWS = 32, 16
"""Weights of a row that share a scale in int4, and rows: the kernels take multiples of both."""


def quantised(model: nn.Module, quant: str) -> nn.Module:
    """Return a copy with weights in int8 or int4.

    int8: all linear layers, a scale a row. int4: those of the language model, a scale for 32 weights. It reads all of them for
    every token; the tower multiplies many rows at once, which int4 only slows down. Layers of odd sizes stay. The output head is
    among both: one that is tied to the embedding becomes a quantised copy of it. Embeddings and convolutions stay.

    Args:
        model: a supported model.
        quant: "int8" or "int4".

    Raises:
        BadInput: torchao is not installed, or has no int4 for these weights.
    """
    made = copy.deepcopy(model)
    head = getattr(made, "get_output_embeddings", lambda: None)()
    if head is not None:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    with _told_nothing():
        try:
            ao: Any = importlib.import_module("torchao.quantization")
            if quant == "int8":
                ao.quantize_(made, ao.Int8WeightOnlyConfig())
                return made.eval()
            config = _int4(ao, next(made.parameters()).device)
        except ImportError:
            raise BadInput(MISSING.format(quant)) from None
    inside = {id(one) for one in (*adapt(made).text.modules(), head) if isinstance(one, nn.Linear) and _fits(one)}
    if not inside:
        raise BadInput(f"--quant int4 takes rows of a multiple of {GROUP} weights, the language model has none; use --quant int8")
    ao.quantize_(made, config, lambda module, name: id(module) in inside)
    return made.eval()


def _fits(layer: nn.Linear) -> bool:
    """Whether the kernels for int4 take a layer."""
    return layer.in_features % GROUP == 0 and layer.out_features % ROWS == 0


def _int4(ao: Any, device: torch.device) -> Any:
    """The kernels of torch for int4 weights: those of CPUs, or the tiles of GPUs."""
    if device.type != "cpu":
        return ao.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    return importlib.import_module("torchao.prototype.quantization.int4").PrototypeInt4WeightOnlyConfig(group_size=GROUP)


@contextmanager
def _told_nothing() -> Iterator[None]:
    """Silence what torchao says at import of extensions for other GPUs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def weight_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's parameters and buffers, those of quantised ones as they are stored."""
    stored: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for part in _stored(tensor):
            stored[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(stored.values())


def _stored(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that a tensor is stored in."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or type(tensor) in (Tensor, nn.Parameter):
        return [tensor]
    return [part for name in flatten()[0] for part in _stored(torch.as_tensor(getattr(tensor, name)))]
