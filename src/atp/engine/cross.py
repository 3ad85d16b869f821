"""One forward through cross-attention layers whose keys are the visual tokens. Part of the engine.

Keys leave: they and their columns of the mask are cut before the layer is called. Every image of a prompt is chosen from by
itself, by the rows of text that look at it, and keeps at least one key, so that no row is left with nothing to look at. The
choice is made when a sequence begins and remembered beside its cache. Rows of text leave as `LinePass` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atp.adapters.base import Adapter, Args, CrossView, Kwargs, LayerCall, Prompt
from atp.engine.census import Census, Crossing, TowerPass
from atp.engine.choice import Chooser
from atp.engine.facts import Place
from atp.engine.lines import LinePass
from atp.engine.looks import CrossCapture
from atp.engine.recall import Memory
from atp.engine.words import Guard
from atp.errors import UnsupportedModel
from atp.plan import Step
from atp.subset import Subset, build, close, cut_mask, repeat
from atp.trace import Record, Trace

MARK = "_atp_crossing"
"""Attribute of a cache: the subset of each cross-attention layer."""


class CrossPass:
    """State of one forward through the cross-attention layers; the interface of `StackPass`.

    Args:
        adapter: the model.
        view: the layers.
        prompt: the call; None = follow the choice that the cache remembers, choose nothing.
        steps: by language layer.
        chooser: decides at them.
        forward: number of the forward.
        cache: of the call, or None.
        extent: batch and length of the call.
        memory: of the run.
        guard: text that never leaves; None = no text leaves.
        tower: what the tower left of the images, where its patches are the keys; None = all.
    """

    def __init__(
        self,
        adapter: Adapter,
        view: CrossView,
        prompt: Prompt | None,
        steps: Mapping[int, Step],
        chooser: Chooser,
        forward: int,
        cache: Any,
        extent: tuple[int, int],
        memory: Memory,
        guard: Guard | None = None,
        tower: TowerPass | None = None,
    ) -> None:
        self.adapter, self.view, self.prompt = adapter, view, prompt
        assert adapter.own is not None, "what looks at images across stands among layers of its own"
        self.lines = LinePass(adapter, adapter.own, prompt, steps, chooser, forward, guard)
        self.chooser, self.forward, self.tower = chooser, forward, tower
        self.extent, self.memory = extent, memory
        if prompt is not None:
            memory.cuts.clear()
        self.due = sorted(steps.items())
        self.records: list[Record] = []
        self.began = False
        self.census: Crossing | None = None
        self.images: Census | None = None
        self.subset: Subset | None = None
        self.stays: Tensor | None = None
        self.capture: CrossCapture | None = None
        self.armed = False
        self.chosen: list[Subset | None] = list(getattr(cache, MARK, ())) if prompt is None else []
        self._mask: tuple[Any, Any, Any, Tensor] | None = None

    def enter(self, index: int, args: Args, kwargs: Kwargs, watched: bool) -> tuple[Args, Kwargs] | None:
        """Return what the layer shall be called with; None = as it is."""
        call = self.view.read(args, kwargs)
        if self.prompt is not None and not self.began:
            self._start(self.prompt, call, self.view.sees(args, kwargs))
        self.began = True
        if self.prompt is None:
            self.subset = self._followed(index, call)
        else:
            self._decide(self.view.places[index], call)
            self.chosen.append(self.subset)
            self.lines.reach(self.view.places[index], self.view.text(args, kwargs))
        self.armed = watched and self.images is not None
        if self.armed:
            self._arm()
        if self.subset is not None or self.lines.subset is not None:
            args, kwargs = self.view.write(args, kwargs, self._cut(call))
            lines = self.lines.subset
            return (
                (args, kwargs)
                if lines is None
                else self.view.write_text(args, kwargs, self.lines.take(self.view.text(args, kwargs)), lines)
            )
        if self.view.cached or not call.hidden.is_inference():
            return None
        return self.view.write(args, kwargs, replace(call, hidden=self.memory.cut(call.hidden, None)))

    def _arm(self) -> None:
        """Watch the layer that comes; text that does not run in it rates no key."""
        assert self.images is not None
        self.capture, lines = CrossCapture(self.subset, None, None, None), self.lines.census
        if self.lines.subset is not None and lines is not None:
            images = self.images.alive.shape[0] // lines.others.shape[0]
            self.images.others = self.images.others & lines.others.repeat_interleave(images, 0)

    def _start(self, prompt: Prompt, call: LayerCall, sees: Tensor) -> None:
        """Take the census: which key is looked at by whom, image by image; one device sync."""
        batch, rows, columns = sees.shape
        size = self.adapter.shape.visual
        images, device = columns // size, sees.device
        if prompt.live is not None:
            sees = sees & prompt.live.unsqueeze(-1)
        looked = sees.any(1).view(batch * images, size)
        others = sees.view(batch, rows, images, size).any(-1).transpose(1, 2).reshape(batch * images, rows)
        text = torch.full((batch,), rows, device=device) if prompt.live is None else prompt.live.sum(1)
        alone = ~sees.any(2).any(1)
        there, carried = self._arrived(looked)
        alive = looked & there
        counted = torch.cat([looked.sum(1), others.sum(1), alive.sum(1), text]).tolist()
        started, asking, counts = (counted[part * batch * images : (part + 1) * batch * images] for part in range(3))
        self.census = Crossing([columns] * batch, [columns] * batch, counted[-batch:], self.lines.census)
        self.stays = (alone & self.view.lone).unsqueeze(1) & there.view(batch, columns)
        number = torch.arange(size, device=device).expand(batch * images, -1)
        self.images = Census(
            where=number.unsqueeze(-1),
            alive=alive,
            counts=counts,
            started=started,
            others=others,
            other_counts=asking,
            position=torch.full((*looked.shape, 2), -1, device=device),
            image=torch.zeros_like(number),
            grid=self.adapter.grid,
            ids=prompt.ids.repeat_interleave(images, 0),
            candidates=prompt.candidates,
            carried=None if carried is None else carried.masked_fill(~alive, torch.nan),
        )
        if self.tower is not None and self.tower.counts != self.tower.started:
            self._shrink(batch)
            self.census.history[0] = list(self.census.counts)

    def _arrived(self, looked: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keys `[P, N]` that are alive at the tower's end, and its scores of them."""
        if self.tower is None:
            return torch.ones_like(looked), None
        facts = torch.stack(self.adapter.pack(self.tower.facts(), self.tower.started, None)).to(looked.device)
        return facts[..., 0].nan_to_num(1.0) > 0, None if self.tower.scores is None else facts[..., 1]

    def _shrink(self, batch: int) -> None:
        assert self.images is not None and self.census is not None and self.stays is not None
        live = self.images.alive.view(batch, -1) | self.stays
        self.census.counts = self._counts(batch, live)
        self.subset, self._mask = build(live, self.census.counts), None

    def _decide(self, at: int, call: LayerCall) -> None:
        """Apply the steps that are due at the input of language layer `at`."""
        assert self.images is not None and self.census is not None and self.stays is not None
        while self.due and self.due[0][0] <= at:
            (layer, step), batch = self.due.pop(0), len(self.census.counts)
            before = list(self.images.counts)
            states = call.hidden.reshape(len(before), -1, call.hidden.shape[-1])
            record, _ = self.chooser.choose(step, Place(self.view, layer, self.images, states, None, self.capture), self.forward)
            if record.counts != before:
                self._shrink(batch)
            self.census.history[layer] = list(self.census.counts)
            self.records.append(_by_prompt(record, batch))
        self.capture = None

    def _counts(self, batch: int, live: Tensor) -> list[int]:
        if self.view.lone:
            return [int(n) for n in live.sum(1).tolist()]
        assert self.images is not None
        return _sums(self.images.counts, batch)

    def _followed(self, index: int, call: LayerCall) -> Subset | None:
        """The choice of the sequence's beginning.

        Raises:
            UnsupportedModel: other images than then, or another batch.
        """
        subset = self.chosen[index] if index < len(self.chosen) else None
        if subset is None:
            return None
        batch, kept = call.hidden.shape[0], subset.rows.shape[0]
        again = self.view.cached and call.hidden.shape[2] > 0  # keys beside those that are stored
        if again or call.hidden.shape[1] != subset.length or batch % kept:
            raise UnsupportedModel(
                f"the sequence began with {kept} prompts of {subset.length} visual tokens, and goes on with {batch} of "
                f"{call.hidden.shape[1]}; later images and other batches need a new cache: pass past_key_values=None"
            )
        self.chosen[index] = repeat(subset, batch // kept)
        return self.chosen[index]

    def _cut(self, call: LayerCall) -> LayerCall:
        """Return the call on the keys that are left, its mask cut to the rows of text too."""
        mask, keys, lines = call.mask, self.subset, self.lines.subset
        assert mask is not None, "cross-attention layers that are pruned have a mask"
        if self._mask is None or any(a is not b for a, b in zip(self._mask, (mask, keys, lines), strict=False)):
            rows, columns = (None if part is None else part.rows for part in (lines, keys))
            cut = cut_mask(mask, rows, columns, mask.shape[-1])
            self._mask = (mask, keys, lines, cut if keys is None or keys.valid is None else close(cut, keys.valid))
        states, bare = call.hidden, keys is None and (self.view.cached or not call.hidden.is_inference())
        return LayerCall(
            states if bare or not states.shape[2] else self.memory.cut(states, keys), self._mask[3], None, call.cache
        )

    def leave(self, output: Any) -> Any:
        """Return the layer's output at full length; None = as it is."""
        self.armed = False
        return None if self.lines.full is None else self.lines.leave(output)

    def captured(self, which: str, output: Tensor) -> None:
        """Take a projection's output, if a site wants it, and lay it out image by image."""
        if not self.armed or self.capture is None or self.images is None:
            return
        states = self.view.projected(which, output.detach())
        batch, images = states.shape[0], self.images.alive.shape[0] // states.shape[0]
        if which == "queries":
            self.capture.queries = _widened(states, self.lines.subset).repeat_interleave(images, 0)
            return
        states = _widened(states, self.capture.subset)
        self.capture.keys = states.reshape(batch * images, -1, states.shape[-1])
        self.capture.subset, self.capture.mask = None, self.images.alive[:, None, None, :]

    def finish(self, cache: Any, trace: Trace) -> None:
        """Write the choice beside the cache of the sequence that begins, and whose images they are."""
        assert self.images is not None and self.census is not None
        if cache is not None:
            setattr(cache, MARK, tuple(self.chosen))
        batch = len(self.census.counts)
        trace.image_rows = [row for row in range(batch) for _ in range(self.images.alive.shape[0] // batch)]
        trace.grids = [self.adapter.grid] * len(trace.image_rows)

    def close(self) -> None:
        """Take away what was hooked for the running layer."""
        self.lines.close()

    @property
    def texts(self) -> list[Record]:
        """What happened to text."""
        return self.lines.texts

    def widen(self, state: Tensor) -> Tensor:
        """Return a recorded state at full length."""
        return self.lines.widen(state)


def _widened(states: Tensor, subset: Subset | None) -> Tensor:
    """Return states `[B, K, D]` of a subset at their places, zeros elsewhere; None = they are all."""
    if subset is None:
        return states
    wide = states.new_zeros(len(states), subset.length, states.shape[-1])
    return wide.view(-1, wide.shape[-1]).index_copy(0, subset.flat, states.reshape(-1, wide.shape[-1])).view(wide.shape)


def _sums(counts: list[int], batch: int) -> list[int]:
    """Sum the images of each prompt."""
    size = len(counts) // batch
    return [sum(counts[row * size : (row + 1) * size]) for row in range(batch)]


def _by_prompt(record: Record, batch: int) -> Record:
    """Turn a record of images into one of prompts, whose tokens are those of their images one after the other."""
    return replace(
        record,
        input_index=list(range(batch)),
        started=_sums(record.started, batch),
        counts=_sums(record.counts, batch),
        keep=record.keep.reshape(batch, -1),
        raw_scores=None if record.raw_scores is None else record.raw_scores.reshape(batch, -1),
        alive=record.alive.reshape(batch, -1),
    )
