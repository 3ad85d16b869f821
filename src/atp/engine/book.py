"""What a run remembers of the calls inside its block, and what it says of them once. Part of the engine.

A call that is traced into a graph is not remembered: numbers that change from call to call would be guards of the graph, and its
tensors have no values.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from atp.engine.census import Census, Crossing, TowerPass
from atp.engine.ledger import Ledger
from atp.plan import Plan
from atp.trace import Record, Trace
from atp.tracing import refuse_adaptive, refuse_sizes, refuse_text, traced

Grids = Sequence[tuple[int, int]]


def untraced(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method that does nothing while a graph is traced."""

    @functools.wraps(method)
    def remembered(*args: Any, **kwargs: Any) -> None:
        if not traced():
            method(*args, **kwargs)

    return remembered


class Book:
    """The memory of a run.

    Attributes:
        trace, ledger: of its calls.
        forwards: how many of them carried images.
        dropped: tokens that left in them.
        graphs: whether calls were traced into graphs.
    """

    def __init__(self) -> None:
        self.trace, self.ledger = Trace(), Ledger()
        self.forwards, self.dropped = 0, 0
        self.warned: set[str] = set()
        self.graphs = False
        self._parts = -1  # forward of the last tiles

    def graph(self, plan: Plan, able: bool) -> None:
        """Note that the call is traced into a graph, if it is.

        Raises:
            UnsupportedModel: its shapes would depend on its values.
        """
        if traced():
            if plan.adaptive:
                refuse_adaptive()
            if plan.spells:
                refuse_text()
            if not able:
                refuse_sizes()
            self.graphs = True

    @property
    def number(self) -> int:
        """Number of the forward that is running."""
        return 0 if traced() else self.forwards

    @untraced
    def warn(self, key: str, message: str) -> None:
        """Say something once."""
        if key not in self.warned:
            self.warned.add(key)
            warnings.warn(message, UserWarning, stacklevel=4)

    @untraced
    def sites(self, stack: str, records: Sequence[Record]) -> None:
        """Add what the sites of one pass through a stack did."""
        (self.trace.texts if stack == "text" else self.trace.records).extend(records)
        self.ledger.sites(stack, records)

    @untraced
    def left(self, started: Sequence[int], counts: Sequence[int]) -> None:
        """Add the tokens that left in one pass through a stack."""
        self.dropped += sum(a - b for a, b in zip(started, counts, strict=True))

    @untraced
    def parts(self, counts: Sequence[tuple[int, int]], seconds: float, windows: bool = False) -> None:
        """Add (ran, all) tiles or windows of each picture of one pass of the tower to those of its forward, and their time."""
        self.ledger.seconds += seconds
        before = self.ledger.tiles if self._parts == self.number else ()
        self._parts, self.ledger.tiles, self.ledger.windows = self.number, [*before, *counts], windows

    @untraced
    def tower(self, tower: TowerPass) -> None:
        """Add the images of one pass of the tower."""
        self.ledger.tower(tower)

    @untraced
    def images(self, rows: Sequence[int], grids: Grids, layout: Any = None, towers: Sequence[TowerPass] = ()) -> None:
        """Note the first prompt of each image, their grids, how they were laid out, and join several passes of the tower."""
        self.trace.image_rows, self.trace.grids, self.trace.layout = list(rows), list(grids), layout
        if len(towers) > 1:
            self.trace.join([tower.records for tower in towers])
            self.ledger.kept["vision"] = self.trace.kept("vision")

    @untraced
    def decoded(self, count: int) -> None:
        """Add tokens that ran after their prompt."""
        self.ledger.decoded += count

    @untraced
    def text_only(self, batch: int, length: int, layers: int) -> None:
        """Add prompts without images."""
        self.ledger.text_only(batch, length, layers)

    @untraced
    def prompts(
        self, census: Census | Crossing, layers: int, records: Sequence[Record], texts: Sequence[Record], new: int
    ) -> None:
        """Add one forward of the language model that carried images, or a conversation whose last `new` tokens are new."""
        self.sites("language", records)
        self.sites("text", texts)
        self.left(census.texts, [row[-1] for row in census.text_lengths(layers)])
        self.ledger.prompts(census, layers, new)
        self.left(census.started, census.counts)
        self.forwards += 1
