"""One forward through the language model's own layers, where visual tokens are keys of other ones. Part of the engine.

Text that leaves runs neither in these layers nor in the cross-attention layers behind the site, and stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atp.adapters.base import Adapter, Args, Kwargs, OwnView, Prompt
from atp.engine.census import Census
from atp.engine.choice import Chooser
from atp.engine.facts import Place
from atp.engine.passes import StackPass
from atp.engine.words import Guard
from atp.plan import Step


def text_census(prompt: Prompt, guard: Guard) -> Census:
    """Take the census of prompts that are text only, a dead token in the place of the visual ones; one device sync."""
    ids = prompt.ids
    nobody = torch.zeros(len(ids), 1, dtype=torch.int64, device=ids.device)
    census = Census(
        where=nobody.unsqueeze(-1),
        alive=nobody.bool(),
        counts=[0] * len(ids),
        started=[0] * len(ids),
        others=torch.ones_like(ids, dtype=torch.bool) if prompt.live is None else prompt.live,
        other_counts=[],
        position=nobody.new_full((len(ids), 1, 2), -1),
        image=nobody,
        grid=(1, 1),
        ids=ids,
        candidates=prompt.candidates,
    )
    census.words = guard.words(census)
    census.other_counts = [count + prompt.candidates for count in census.words.counts]
    return census


class LinePass(StackPass):
    """State of it; a `CrossPass` asks it which rows run.

    Args:
        adapter: the model.
        view: the layers.
        prompt: the call; None = follow what the cache lacks, choose nothing.
        steps: by language layer.
        chooser: decides at them.
        forward: number of the forward.
        guard: text that never leaves; None = none leaves.
    """

    view: OwnView

    def __init__(
        self,
        adapter: Adapter,
        view: OwnView,
        prompt: Prompt | None,
        steps: Mapping[int, Step],
        chooser: Chooser,
        forward: int,
        guard: Guard | None,
    ) -> None:
        census = None if prompt is None or guard is None else text_census(prompt, guard)
        super().__init__(adapter, view, census, {}, chooser, forward)
        self.due = [] if census is None else sorted(steps.items())

    def enter(self, layer: int, args: Args, kwargs: Kwargs, watched: bool) -> tuple[Args, Kwargs] | None:
        """Return what the layer, counted among these, shall be called with; None = as it is."""
        changed = super().enter(self.view.places[layer], args, kwargs, watched)
        if self.armed and self.capture is not None:
            self.capture.phases = self.view.phases(layer, self.view.read(*(changed or (args, kwargs))))
        return changed

    def _mixer(self, layer: int) -> nn.Module | None:
        return self.view.mixer(self.view.places.index(layer))

    def _decide(self, layer: int, hidden: Tensor) -> Tensor:
        self.reach(layer, hidden)
        return hidden

    def reach(self, at: int, hidden: Tensor) -> None:
        """Apply the steps that are due at the input of language layer `at`, `[B, T, D]`."""
        while self.due and self.due[0][0] <= at:
            layer, step = self.due.pop(0)
            assert self.census is not None
            before = self.census.other_counts
            text = self.chooser.spell(step, Place(self.view, layer, self.census, hidden, None, self.capture), self.forward)
            if self.census.other_counts != before:
                with torch.no_grad():
                    self.shrink()
            self.texts += [] if text is None else [text]
            self.capture = None

    def take(self, hidden: Tensor) -> Tensor:
        """Return the rows that run of the text that another layer is called with; `leave` gives its output the full length."""
        assert self.subset is not None
        self.full = hidden
        return self._rows(hidden, self.subset)
