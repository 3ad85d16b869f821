"""Weights in int8 by torchao, for a copy of the model that pruning runs on as it does on the model itself.

Order: quantise, then prune. Quantising changes weights inside stock `nn.Linear` modules, so every hook of `atp.prune` finds the
modules it knows; in the other order the hooks would be the same, but what they read of the weights would change under them.
"""

from __future__ import annotations

import copy
import importlib
import logging
from typing import Any

import torch
from torch import Tensor, nn

from atp.errors import BadInput

MISSING = "--quant {} needs torchao; install it with: pip install 'atp-vlm[quant]'"


def quantised(model: nn.Module, quant: str) -> nn.Module:
    """Return a copy with the weights of its linear layers, the output head among them, in int8 with a scale a row.

    A head tied to the embedding becomes a quantised copy of it; embeddings and convolutions stay.

    Raises:
        BadInput: torchao is not installed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells of extensions for other GPUs at import
    try:
        ao: Any = importlib.import_module("torchao.quantization")
    except ImportError:
        raise BadInput(MISSING.format(quant)) from None
    finally:
        logging.disable(before)
    made = copy.deepcopy(model)
    head = getattr(made, "get_output_embeddings", lambda: None)()
    if head is not None:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    ao.quantize_(made, ao.Int8WeightOnlyConfig())
    return made.eval()


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
