"""A second turn on a pruned chat: what answered the first question is not what the next one asks for. Part of the engine.

The keys of tokens that left are not in the cache, and those of the text behind them were made without them. So the language model
runs again on the conversation's embeddings, which are remembered, and chooses by the new question; neither tower nor connector
runs. What follows is what a fresh prefill of the whole conversation gives.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from atp.adapters.base import Adapter, Args, Kwargs
from atp.adapters.turns import ANEW, Chunk, given_ids, live_places, read_chunk, whole_call
from atp.engine.census import Census
from atp.errors import UnsupportedModel
from atp.plan import Plan


class Turns:
    """The memory of one conversation.

    Args:
        adapter: the model.
        reselect: whether second turns choose anew.
        plan: in force; where nothing leaves the language model, no question decides anything: the cache is what a fresh
            prefill would make of it, and stays.
    """

    def __init__(self, adapter: Adapter, reselect: bool, plan: Plan) -> None:
        self.adapter, self.reselect = adapter, reselect
        self.decides = any(step.site.stack == "language" for step in plan.steps)
        if reselect and (adapter.shape.cross is not None or adapter.reader is not None):
            raise UnsupportedModel(
                f"a second turn cannot be chosen anew by the {type(adapter).__name__} adapter: the cache of its decoder holds no "
                "visual tokens; use second_turn='keep'"
            )
        self.ids: Tensor | None = None
        self.guesses = 0
        self.chunks: list[Chunk] = []
        self.census: Census | None = None
        self.cache: Any = None
        self.new = 0  # tokens of the turn that is being chosen for

    def hear(self, args: Args, kwargs: Kwargs, guesses: int) -> None:
        """Take the ids of a call of the base model, of which the last are guesses of assisted decoding."""
        self.ids, self.guesses = given_ids(args, kwargs) if self.reselect else None, guesses

    def begin(self, census: Census, kwargs: Kwargs) -> None:
        """Remember the call that a conversation begins with; where images come later, nothing is remembered."""
        if self.reselect:
            fresh = self.adapter.starts(kwargs)
            self.chunks, self.census = ([read_chunk(self.ids, kwargs)], copy.copy(census)) if fresh else ([], None)

    def end(self, cache: Any) -> int:
        """Note the cache after such a call, or one on the whole conversation; return how many tokens of that are new, 0 = all."""
        new, self.new, self.cache = self.new, 0, cache
        return new

    def goes_on(self, kwargs: Kwargs) -> tuple[Kwargs, Census] | None:
        """Remember a later call; return the call on the whole conversation, and who is there, where a turn begins.

        Raises:
            UnsupportedModel: the conversation cannot be said again.
        """
        ids, cache = self.ids, self.adapter.cache(kwargs)
        if not self.reselect or self.adapter.starts(kwargs):
            return None
        turn = ids is None or (ids.shape[1] > 1 and not self.guesses)
        last = self.adapter.cache_layer(cache, self.adapter.shape.language.layers - 1)
        if last is None:  # nothing left in it
            return None
        said = sum(chunk.ids.shape[1] for chunk in self.chunks)
        if self.census is None or cache is not self.cache or last.seen != said or last.shuffled:
            if not turn:
                return None
            raise UnsupportedModel(
                "this turn goes on with a cache whose conversation is not remembered: it began outside of this block, with more "
                f"than one call with images, or its rows were reordered or cropped (beams, assisted decoding); {ANEW}"
            )
        self.chunks.append(read_chunk(ids, kwargs))
        if not turn:
            return None
        changed = whole_call(self.chunks, kwargs)  # refused where it cannot be said again, though nothing may be chosen
        if not self.decides:
            return None
        self.new = self.chunks[-1].ids.shape[1]
        census = self._again(live_places(changed, torch.cat([chunk.ids for chunk in self.chunks], 1)), said)
        for layer in range(self.adapter.shape.language.layers):
            self.adapter.make_cache_layer(cache, layer).reset()
        return changed, census

    def _again(self, live: Tensor, said: int) -> Census:
        """Take the census of the conversation, with everything there that the tower gave; one device sync."""
        first = self.census
        assert first is not None
        there = torch.arange(first.where.shape[1], device=live.device) < torch.tensor(
            first.started, device=live.device
        ).unsqueeze(1)
        others = live & ~torch.zeros_like(live).scatter(1, first.where[..., 0], there)
        return Census(
            where=first.where,
            alive=first.alive,
            counts=list(first.arrived),
            started=first.started,
            others=others,
            other_counts=[int(n) for n in others.sum(1).tolist()],
            position=first.position,
            image=first.image,
            grid=first.grid,
            ids=torch.cat([chunk.ids for chunk in self.chunks], 1),
            carried=first.carried,
            sizes=first.sizes,
            turn=said,
        )
