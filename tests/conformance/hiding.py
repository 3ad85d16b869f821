"""The masked reference for any family: the unhooked model with an attention function that hides the keys which left.

Nothing leaves a sequence here; every layer runs on everything. Uses of atp only the adapter's reading of a tower call and the
trace's lists of kept tokens (that these stand for the right patches is tested by gradients).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from atp.adapters.base import Adapter, Images
from atp.trace import Trace

NAME = "atp_hiding"


class Hiding:
    """Who is hidden from whom, layer by layer, during one `generate`."""

    def __init__(self, adapter: Adapter, trace: Trace, visual: Tensor) -> None:
        self.adapter, self.trace, self.visual = adapter, trace, visual
        self.words = torch.zeros_like(visual)  # text of the prompts, where some of it left
        self.layer_of = {
            id(part): (view.name, number)
            for view in (adapter.vision, adapter.language)
            for number, layer in enumerate(view.layers)
            for part in layer.modules()
        }
        parts = dict(adapter.connector.named_modules()) if adapter.connects == "keys" else {}
        looking = {name: part for name, part in parts.items() if "crossattention" in name} or parts
        self.connecting = {id(part) for part in looking.values()}
        self.images: Images | None = None
        self.offsets: dict[int, int] = {}
        self.tower_end: Tensor | None = None
        self.seen = 0

    def patches(self, layer: int) -> Tensor:
        """Keys of a tower layer that are there, `[S, T]`."""
        images = self.images
        assert images is not None
        there = images.others.clone()
        kept = [set(range(count)) for count in images.counts]
        for record in self.trace.last("vision"):
            if record.layer <= layer:
                kept = [set(row.tolist()) for row in record.kept]
        for image, tokens in enumerate(kept):
            for token in tokens:
                there[0 if images.packed else image, images.where[image, token]] = True
        return there

    def arrived(self) -> list[set[int]]:
        """Visual tokens of each prompt that are alive at the tower's end, by what the adapter says they stand for."""
        images, rows, tiles = self.images, len(self.visual), self.trace.tiles
        whole = [set(range(int(row.sum()))) for row in self.visual]
        if images is None or self.adapter.connects == "keys" or not (self.trace.last("vision") or tiles):
            return whole
        facts = torch.ones(len(images.counts), max(images.counts), 1)
        facts[[number for number, ran in enumerate(tiles) if not ran]] = 0.0
        for image, kept in enumerate(self.trace.last("vision")[-1].kept if self.trace.last("vision") else ()):
            facts[image] = 0.0
            facts[image, kept] = 1.0
        alive = torch.cat(self.adapter.pack(facts, images.counts, self.extra))[:, 0].nan_to_num(1.0)
        found, start = [], 0
        for row in range(rows):
            own = alive[start : start + len(whole[row])]
            start += len(whole[row]) if row % self.copies == self.copies - 1 else 0
            found.append({number for number, value in enumerate(own.tolist()) if value > 0.4999})
        return found

    def text(self, layer: int, keys: int) -> Tensor:
        """Keys of a language layer that are there, `[B, keys]`; new tokens always are."""
        alive = self.arrived()
        for record in self.trace.last("language"):
            if record.layer <= layer:
                alive = [set(row.tolist()) for row in record.kept]
        there = torch.ones(len(alive), self.seen, dtype=torch.bool)
        for row, kept in enumerate(alive):
            for number, place in enumerate(self.visual[row].nonzero().flatten().tolist()):
                there[row, place] = number in kept
        for record in self.trace.last("text"):
            for row, kept in enumerate(record.kept if record.layer <= layer else ()):
                places = self.words[row].nonzero().flatten()
                there[row, places] = torch.isin(torch.arange(len(places)), kept)
        return there[:, -keys:]  # a sliding layer has forgotten the first ones

    def keys(self, module: Any, count: int) -> Tensor | None:
        """Keys that an attention module may see, `[B or 1, count]`; None = all."""
        if id(module) in self.connecting:
            end = self.patches(len(self.adapter.vision.layers))
            if count < end.shape[1]:
                return None
            return torch.nn.functional.pad(end, (0, count - end.shape[1]), value=True)
        stack, layer = self.layer_of.get(id(module), ("", 0))
        if stack == "vision":
            there = self.patches(layer)
            if there.shape[1] == count:
                return there
            start = self.offsets.get(id(module), 0)  # one call for each of the packed sequences
            self.offsets[id(module)] = start + count
            return there[:, start : start + count]
        return self.text(layer, count) if stack == "language" else None

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """Plain attention in full, with the hidden keys at minus infinity."""
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        scaling = options.get("scaling")
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if options.get("softcap") is not None:
            scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
        queries, keys = scores.shape[-2:]
        causal = options.get("is_causal")
        if attention_mask is None and queries > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
            attention_mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        if attention_mask is not None:
            blocked = attention_mask.logical_not() if attention_mask.dtype == torch.bool else attention_mask < -1e30
            scores = scores.masked_fill(blocked, -torch.inf)
        there = self.keys(module, keys)
        if there is not None:
            scores = scores.masked_fill(~there[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1).nan_to_num(0.0)  # who sees nobody is read by nobody
        return (weights @ value).transpose(1, 2), None

    def enter_tower(self, module: Any, args: Any, kwargs: Any) -> None:
        self.images, self.offsets = self.adapter.images(args, kwargs), {}

    def enter_text(self, module: Any, args: Any, kwargs: Any) -> None:
        states = kwargs.get("inputs_embeds")
        states = kwargs.get("input_ids") if states is None else states
        self.seen += (args[0] if states is None else states).shape[1]

    extra: Any = None
    copies = 1  # prompts in a row that share their images

    def leave_connector(self, module: Any, args: Any, output: Tensor) -> Tensor:
        """Tokens that left are nothing where features are mixed."""
        there = self.patches(len(self.adapter.vision.layers))
        return output * there[:, there.shape[1] - output.shape[1] :, None]

    def mixing(self, own: Any, features: Any, *args: Any, **options: Any) -> Any:
        """Lay features out, and divide by the share of the weight that is there."""
        made = own(features, *args, **options)
        ones = [(one.abs().sum(-1, keepdim=True) > 0).to(one.dtype) for one in features]
        if not isinstance(made, tuple):
            return made / own(torch.stack(ones)).clamp(min=0.1)
        shares, _ = own(ones, *args, **{**options, "image_newline": torch.ones(1)})
        return [one / share.clamp(min=0.1) for one, share in zip(made[0], shares, strict=True)], made[1]


@contextmanager
def hiding(model: Any, adapter: Adapter, trace: Trace, visual: Tensor, extra: Any = None) -> Iterator[Hiding]:
    """Let the model attend as if what the trace says had left, and put its own attention back.

    Args:
        model: without hooks.
        adapter: of the model.
        trace: of the pruned run on the same inputs.
        visual: `[B, T]` bool, visual tokens of the prompts.
        extra: what `pack` wants.
    """
    state = Hiding(adapter, trace, visual)
    state.extra = extra if trace.layout is None else trace.layout
    AttentionInterface.register(NAME, state.attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    hooks = [
        adapter.tower.register_forward_pre_hook(state.enter_tower, with_kwargs=True),
        adapter.text.register_forward_pre_hook(state.enter_text, with_kwargs=True),
    ]
    watched = [(owner, name) for owner, name in adapter.watched() if not name.startswith("get_")]
    if watched:
        hooks.append(adapter.connector.register_forward_hook(state.leave_connector))
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        for owner, name in watched:
            setattr(owner, name, functools.partial(state.mixing, getattr(owner, name)))
        yield state
    finally:
        for owner, name in watched:
            delattr(owner, name)
        for hook in hooks:
            hook.remove()
        for key, config in configs.items():
            config._attn_implementation = before[key]
