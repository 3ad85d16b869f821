"""The slow masked reference: nothing leaves the sequence, a mask of its own in every layer hides what the trace says has left.

Uses no code of atp besides the trace's lists of kept tokens, and no cache: every step runs the whole sequence again.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import tiny
from atp.trace import Trace

LOW = torch.finfo(torch.float64).min


def kept_by_layer(trace: Trace, stack: str, layers: int, rows: int, started: list[int]) -> list[list[set[int]]]:
    """Tokens alive in each layer, per row."""
    now = [set(range(n)) for n in started]
    found = []
    steps = {record.layer: record for record in trace.last(stack)}
    for layer in range(layers):
        if layer in steps:
            now = [set(steps[layer].kept[row].tolist()) for row in range(rows)]
        found.append([set(one) for one in now])
    return found


@contextmanager
def masked(layers: Any, masks: list[Tensor], positional: bool) -> Any:
    """Give each layer its own additive mask."""
    handles = []
    for layer, mask in zip(layers, masks, strict=True):

        def hook(module: Any, args: Any, kwargs: Any, mask: Tensor = mask) -> Any:
            mask = mask.to(args[0].dtype) if args[0].dtype != torch.float64 else mask
            return ((args[0], mask), kwargs) if positional else (args, dict(kwargs, attention_mask=mask))

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tower_masks(model: Any, alive: list[list[set[int]]]) -> list[Tensor]:
    """Hide dead patches as keys: `[P, 1, S, S]` per layer."""
    prefix = int(model.config.vision_config.model_type == "clip_vision_model")
    size = tiny.PATCHES + prefix
    masks = []
    for rows in alive:
        mask = torch.zeros(len(rows), 1, size, size, dtype=torch.float64)
        for index, kept in enumerate(rows):
            for patch in range(tiny.PATCHES):
                if patch not in kept:
                    mask[index, 0, :, prefix + patch] = LOW
        masks.append(mask)
    return masks


def text_masks(ids: Tensor, real: Tensor, alive: list[list[set[int]]], window: int | None) -> list[Tensor]:
    """Causal, without padding, without dead visual tokens: `[B, 1, T, T]` per layer."""
    length = ids.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    causal = (distance >= 0) & (distance < (window or length + 1))
    masks = []
    for rows in alive:
        allowed = causal.expand(ids.shape[0], -1, -1).clone()
        for index, kept in enumerate(rows):
            allowed[index] &= real[index][None, :]
            for number, place in enumerate((ids[index] == tiny.IMAGE).nonzero().flatten().tolist()):
                if number not in kept:
                    allowed[index, :, place] = False
        allowed |= torch.eye(length, dtype=torch.bool)  # finite everywhere; a dead row is nobody's key
        masks.append(torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, LOW).unsqueeze(1))
    return masks


def arrived(model: Any, trace: Trace, started: list[int]) -> list[set[int]]:
    """Visual tokens of each prompt whose patch is alive at the tower's end."""
    size = tiny.visual(model)
    config = model.config
    prefix = int(config.vision_config.model_type == "clip_vision_model")
    cut = tiny.PATCHES + prefix - size
    records = trace.last("vision") or trace.last("pixels")
    found, image = [], 0
    for count in started:
        alive = set()
        for number in range(count):
            patch = number % size + cut - prefix
            kept = records[-1].kept[image + number // size].tolist() if records else range(tiny.PATCHES)
            if patch < 0 or patch in kept:
                alive.add(number)
        image += count // size
        found.append(alive)
    return found


@torch.no_grad()
def logits(
    model: Any,
    inputs: dict[str, Tensor],
    trace: Trace,
    answer: Tensor | None = None,
    weights: Tensor | None = None,
    patch_weights: list[Tensor] | None = None,
) -> Tensor:
    """Logits `[B, T + answer, V]` of the whole sequence, prompt and given answer, under the trace's choices.

    `weights` `[B, T]` is added to the logits of the prompt's places in the language model's attention, `patch_weights`, one of
    `[P, patches]` a layer, to those of the patches in the tower's.
    """
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    if answer is not None and answer.shape[1]:
        ids, real = torch.cat([ids, answer], 1), torch.cat([real, torch.ones_like(answer, dtype=torch.bool)], 1)
    layers = model.config.text_config.num_hidden_layers
    started = (inputs["input_ids"] == tiny.IMAGE).sum(1).tolist()
    alive = kept_by_layer(trace, "language", layers, len(started), started)
    there = arrived(model, trace, started)
    alive = [[kept & there[row] for row, kept in enumerate(rows)] for rows in alive]
    images = inputs["pixel_values"].shape[0]
    patches = kept_by_layer(trace, "vision", layers, images, [tiny.PATCHES] * images)
    window = getattr(model.config.text_config, "sliding_window", None)
    hidden = text_masks(ids, real, alive, window)
    if weights is not None:
        wide = torch.nn.functional.pad(weights, (0, ids.shape[1] - weights.shape[1]))
        hidden = [mask + wide[:, None, None, :] for mask in hidden]
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    text, tower = model.model.language_model.layers, model.model.vision_tower.encoder.layers
    seen = tower_masks(model, patches)
    if patch_weights is not None:
        cut = seen[0].shape[-1] - tiny.PATCHES
        added = [torch.nn.functional.pad(own, (cut, 0)) for own in patch_weights]
        seen = [mask + own[:, None, None, :] for mask, own in zip(seen, added, strict=True)]
    with masked(tower, seen, True), masked(text, hidden, False):
        # A hole in a mask of ones is never read: the layers get their own.
        result: Tensor = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"], position_ids=positions,
            use_cache=False,
        ).logits  # fmt: skip
    return result
