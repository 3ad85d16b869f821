"""The masked reference where text attends to text in a model's own layers, and looks at images in cross-attention layers.

Every layer runs on everything; what the trace says has left is hidden as a key. Uses of atp the trace's kept tokens only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adapters import test_idefics, test_mllama
from atp.trace import Trace


def keys_hidden(name: str, model: Any, inputs: Any, trace: Trace) -> Any:
    """Hide patches and visual tokens."""
    return test_idefics.masked(model, trace) if name == "idefics" else test_mllama.masked(model, inputs, trace)


def own_layers(name: str, model: Any) -> dict[int, Any]:
    """Layers in which text attends to text, by number."""
    if name == "idefics":
        return dict(enumerate(model.model.layers))
    text = model.model.language_model
    return {number: layer for number, layer in enumerate(text.layers) if number not in text.config.cross_attention_layers}


def dead(inputs: Any, trace: Trace, layer: int) -> Tensor:
    """Text of the prompts that is gone in a layer, `[B, T]`."""
    real = inputs["attention_mask"].bool()
    gone = torch.zeros_like(real)
    for record in trace.last("text"):
        for row, kept in enumerate(record.kept if record.layer <= layer else ()):
            places = real[row].nonzero().flatten()
            gone[row, places] = ~torch.isin(torch.arange(len(places)), kept)
    return gone


@contextmanager
def hidden(name: str, model: Any, inputs: Any, trace: Trace) -> Iterator[None]:
    """Let the model attend as if what the trace says had left; what follows the prompt stays."""
    real, seen, handles = inputs["attention_mask"].bool(), [0], []
    text = model.model if name == "idefics" else model.model.language_model

    def count(module: Any, args: Any, kwargs: Any) -> None:
        given = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        seen[0] = given.shape[1] + (0 if cache is None else cache.get_seq_length())

    def own(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            keys, queries = seen[0], args[0].shape[1]
            there = torch.nn.functional.pad(real & ~dead(inputs, trace, layer), (0, keys - real.shape[1]), value=True)
            causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            itself = torch.eye(keys, dtype=torch.bool)[-queries:]  # rows that are gone see themselves: nobody reads them
            return args, dict(kwargs, attention_mask=((there[:, None] & causal) | itself)[:, None])

        return hook

    handles.append(text.register_forward_pre_hook(count, with_kwargs=True))
    for layer, module in own_layers(name, model).items():
        handles.append(module.register_forward_pre_hook(own(layer), with_kwargs=True))
    try:
        with keys_hidden(name, model, inputs, trace):
            yield
    finally:
        for handle in handles:
            handle.remove()
