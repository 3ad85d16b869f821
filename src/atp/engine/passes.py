"""One forward through one stack: which rows each layer runs on, and what it is called with. Part of the engine.

The residual stream keeps its full length. A layer gets the rows of the subset in force, with mask columns and rotary phases cut
to match, and its output is written back over the full residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from atp.adapters.base import Adapter, Args, Kwargs, LayerCall, StackView
from atp.blocks import blocked, hides_later
from atp.cache import Columns, SubsetStore
from atp.engine.attention import Capture, cut_phases
from atp.engine.census import Census
from atp.engine.choice import Chooser
from atp.engine.facts import Place
from atp.engine.packing import Attended, Packing, packing_of
from atp.plan import Step
from atp.subset import Subset, build, causal, close, cut_mask, cut_segments, gather, open_rows, ragged_mask, scatter, weighted
from atp.trace import Record
from atp.tracing import traced


class StackPass:
    """State of one forward through one stack.

    Args:
        adapter: the model.
        view: the stack.
        census: its visual tokens; None = follow a cache that already lacks some, prune nothing.
        steps: by layer.
        chooser: decides at them.
        forward: number of the forward.
    """

    def __init__(
        self,
        adapter: Adapter,
        view: StackView,
        census: Census | None,
        steps: Mapping[int, Step],
        chooser: Chooser,
        forward: int,
    ) -> None:
        self.adapter, self.view, self.census = adapter, view, census
        self.steps, self.chooser, self.forward = steps, chooser, forward
        self.records: list[Record] = []
        self.texts: list[Record] = []
        self.subset: Subset | None = None
        self.capture: Capture | None = None
        self.armed = False
        self.full: Tensor | None = None  # residual before the running layer
        self.first: Tensor | None = None  # residual before layer 0
        self.merged: list[tuple[Tensor, Tensor]] = []  # residuals before and after tokens were merged
        # last full output, the rows it was made of, how these were laid out, its version
        self._narrow: tuple[Tensor, Tensor, Packing | None, int | None] | None = None
        self._memo: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self.packing: Packing | None = None  # of the subset, where padding would be much
        self.attended: Attended | None = None  # of the running layer, if it runs packed
        self.weights: Tensor | None = None  # logarithm of how many tokens each place stands for
        if census is not None and census.counts != census.started:
            self.shrink()

    def shrink(self) -> None:
        """Run on the live tokens from here on."""
        assert self.census is not None
        counts = self.census.live_counts()
        self.subset = build(self.census.live(), counts)
        self.packing = packing_of(self.subset, sum(counts))
        weighs = self.view.maskable and self.chooser.method.weighs(self.view.name)
        self.weights = self.census.weights() if weighs else None
        self._memo.clear()
        self._narrow = None

    def enter(self, layer: int, args: Args, kwargs: Kwargs, watched: bool) -> tuple[Args, Kwargs] | None:
        """Return what the layer shall be called with; None = as it is.

        Args:
            layer: its number.
            args, kwargs: what the model calls it with.
            watched: whether the next layer has a site that reads this layer's rows.
        """
        call = self.view.read(args, kwargs)
        self.full = call.hidden
        if layer == 0:
            self.first = call.hidden
        states = self._decide(layer, call.hidden)
        if states is not call.hidden:
            self.merged.append((call.hidden, states))
            call, self.full = replace(call, hidden=states), states
        store = None
        if call.cache is not None:
            store = self.adapter.cache_layer(call.cache, layer)
            if store is None and self.subset is not None:
                store = self.adapter.make_cache_layer(call.cache, layer)
        mixer = None if self.packing is None or torch.is_grad_enabled() else self._mixer(layer)
        if mixer is not None and self.packing is not None:
            self.attended = Attended(self.view, mixer, self.packing)
            self.chooser.packed.add(self.view.name)
        changed = self._cut(call, store)
        if watched and self.census is not None:
            seen = changed or call
            past = self.adapter.stored_keys(call.cache, layer)
            padded = self.subset is not None and self.subset.valid is not None
            hides = padded or self.view.causal or call.mask is not None or call.bias is not None or past is not None
            self.capture, self.armed = Capture(self.subset, biased(seen), seen.phases, past, hides=hides), True
        return None if changed is None else self.view.write(args, kwargs, changed)

    def _mixer(self, layer: int) -> nn.Module | None:
        """The attention of a layer, outside of which rows do not meet."""
        return self.view.mixer(layer)

    def _decide(self, layer: int, hidden: Tensor) -> Tensor:
        """Apply the step at the input of a layer, if there is one, and return the states to go on with."""
        step = self.steps.get(layer)
        if step is None or self.census is None:
            return hidden
        before = self.census.live_counts()
        place = Place(self.view, layer, self.census, hidden, self.first, self.capture)
        record, states = self.chooser.choose(step, place, self.forward)
        text = self.chooser.spell(step, place, self.forward)
        if self.census.live_counts() != before:
            with torch.no_grad():
                self.shrink()
        self.records.append(record)
        self.texts += [] if text is None else [text]
        self.capture = None
        return states

    def _cut(self, call: LayerCall, store: SubsetStore | None) -> LayerCall | None:
        """Return the call on the rows that run, and tell the cache what comes; None = nothing changes."""
        subset, length = self.subset, call.hidden.shape[1]
        if subset is None and (store is None or store.base is None):
            return None
        if subset is None and call.mask is None and store is not None and store.base is not None and store.base.plain:
            store.announce(length)  # nothing to mask: decoding goes on without a tensor of ours
            return None
        past = 0 if store is None else store.seen
        columns = self._columns(call.hidden, store)
        if store is not None:
            store.announce(length, None if subset is None else columns)
        mask = self._mask(call, columns, past + length)
        if subset is None:
            return None if mask is call.mask else replace(call, mask=mask)
        segments = call.segments
        if segments is not None:
            known = self._remember(("segments", id(segments)), lambda: (cut_segments(segments, subset), segments))
            segments = known[0]
        phases = self._remember(("phases", id(call.phases)), lambda: (cut_phases(call.phases, subset), call.phases))[0]
        positions = call.positions
        if positions is not None:
            known = self._remember(("positions", id(positions)), lambda: (gather(positions, subset), positions))
            positions = known[0]
        bias = call.bias
        if bias is not None:
            bias = self._remember(("bias", id(bias)), lambda: (cut_bias(bias, subset), bias))[0]
        return LayerCall(self._rows(call.hidden, subset), mask, phases, call.cache, segments, positions, bias)

    def _rows(self, hidden: Tensor, subset: Subset) -> Tensor:
        """Gather, unless nothing touched the residual, not even in place, since the layer before wrote the same rows."""
        packing = None if self.attended is None else self.attended.packing
        if self._narrow is not None and self._narrow[0] is hidden and (subset.valid is None or packing is not None):
            _, part, laid, version = self._narrow
            if laid is packing and version is not None and version == version_of(hidden):
                return part
        return gather(hidden, subset) if packing is None else packing.gather(hidden)

    def _columns(self, hidden: Tensor, store: SubsetStore | None) -> Columns:
        """Return the positions of the keys that this layer will attend to."""
        subset, batch, length = self.subset, hidden.shape[0], hidden.shape[1]
        if subset is None:
            assert store is not None and store.base is not None
            tail = store.stored - store.base.size
            return store.base.extend(store.seen - tail, tail + length)
        if store is None or store.stored == 0:
            fresh: Columns = self._remember(("fresh",), lambda: (self._own(0),))[0]
            return fresh
        base, seen = store.base, store.seen
        known = ("columns", id(base), seen, store.stored)
        joined: Columns = self._remember(known, lambda: (self._joined(store, batch, hidden.device), base))[0]
        return joined

    def _own(self, seen: int) -> Columns:
        """The columns of the rows that run, at logical positions after `seen`."""
        assert self.subset is not None
        weight = None if self.weights is None else self.weights.gather(1, self.subset.rows)
        return Columns(self.subset.rows + seen if seen else self.subset.rows, self.subset.valid, weight)

    def _joined(self, store: SubsetStore, batch: int, device: torch.device) -> Columns:
        """The stored columns and those of the rows that run."""
        return store.columns(batch, device).join(self._own(store.seen))

    def _mask(self, call: LayerCall, columns: Columns, total: int) -> Tensor | None:
        key = ("mask", id(call.mask), id(columns))
        made: Tensor | None = self._remember(key, lambda: (self._cut_mask(call, columns, total), call.mask, columns))[0]
        return made

    def _cut_mask(self, call: LayerCall, columns: Columns, total: int) -> Tensor | None:
        """Cut the model's mask, close padding columns, and add what merged tokens weigh to their logits."""
        subset = self.subset
        dtype = call.hidden.dtype if self.view.additive_masks or columns.weight is not None else None
        if call.mask is None:
            if columns.plain:
                return None
            queries = call.hidden.shape[1] if subset is None else subset.size
            if columns.valid is not None:
                mask = weighted(ragged_mask(columns.valid, queries, self.view.causal, dtype), columns.weight, dtype)
                return blocked(mask, self.view.causal)
            assert columns.weight is not None
            weight = columns.weight.view(len(columns.weight), 1, 1, -1).to(call.hidden.dtype)
            return weight if queries == 1 or not self.view.causal else blocked(causal(queries, weight) + weight, True)
        mask = cut_mask(call.mask, None if subset is None else subset.rows, columns.positions, total)
        if columns.valid is not None:
            mask = close(mask, columns.valid)
        hides = self.view.causal and hides_later(mask, None if subset is None else subset.valid)
        if subset is not None and subset.valid is not None:
            mask = open_rows(mask, subset.valid)
        return blocked(weighted(mask, columns.weight, dtype), hides)

    def _remember(self, key: tuple[Any, ...], make: Any) -> tuple[Any, ...]:
        """Compute once per subset. What is made keeps its sources alive, so that no `id` is used twice."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def leave(self, output: Any) -> Any:
        """Return the layer's output at full length; None = as it is."""
        self.armed = False
        full, self.full = self.full, None
        if self.subset is None:
            return None
        assert full is not None
        part = self.view.states(output)
        packing = None if self.attended is None else self.attended.packing
        wide = scatter(full, part, self.subset) if packing is None else packing.scatter(full, part)
        self._narrow = (wide, part, packing, version_of(wide))
        self.close()
        return self.view.restated(output, wide)

    def close(self) -> None:
        """Take away what was hooked for the running layer."""
        if self.attended is not None:
            self.attended.remove()
            self.attended = None

    @property
    def extent(self) -> tuple[int, int] | None:
        """Batch and length of what ran; None where nothing did."""
        return None if self.first is None else (self.first.shape[0], self.first.shape[1])

    def captured(self, which: str, output: Tensor) -> None:
        """Take a projection's output, if a site wants it."""
        if self.armed and self.capture is not None:
            setattr(self.capture, which, self.view.projected(which, output.detach() if output.requires_grad else output))

    def widen(self, state: Tensor) -> Tensor:
        """Mend a recorded state: the input of layer 0 had no full length yet, and what a site merged it recorded unmerged.

        Models that take their features from a recorded state would not see the merge otherwise.
        """
        for before, after in self.merged:
            if state is before:
                return after
        if self.first is None or state.shape[1] == self.first.shape[1]:
            return state
        return self.first


def version_of(state: Tensor) -> int | None:
    """Count what was written to a tensor in place; None where torch does not count."""
    return None if traced() or state.is_inference() else state._version


def biased(call: LayerCall) -> Tensor | None:
    """Return a layer's mask with what distances add to its logits."""
    if call.bias is None or call.mask is None:
        return call.mask if call.bias is None else call.bias
    if call.mask.dtype == torch.bool:
        return call.bias.masked_fill(~call.mask, torch.finfo(call.bias.dtype).min)
    return call.bias + call.mask


def cut_bias(bias: Tensor, subset: Subset) -> Tensor:
    """Take the rows and columns that run of what distances add."""
    return cut_mask(bias, subset.rows, subset.rows, subset.length)
