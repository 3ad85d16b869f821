"""What a run remembers of every site (`Record`) and forward (`Trace`), by the numbers of `Tokens`. Knows tensors only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from atp.errors import BadInput
from atp.tracing import lazy


@dataclass(frozen=True)
class Record:
    """What one site did in one forward. Rows are images in the tower, prompts in the language model.

    Attributes:
        forward: number of the forward, from 0; the tower's pass belongs to the forward that reads its features.
        stack, layer: the site; `text` for text tokens that leave in the language model, numbered in the order of the prompt.
        input_index: which rows.
        started: tokens each row's stack started with.
        counts: tokens each row keeps.
        keep: `[B, N]` bool on the device.
        raw_scores: `[B, N]` on the device, NaN-free only where tokens were alive; None where nothing was scored.
        alive: `[B, N]` bool, the tokens alive before.
        seconds: host time of scoring and choosing.
        measured: `[B, N]`, what thresholds are compared with where the method has its own measure (`Method.measure`); else None.
    """

    forward: int
    stack: str
    layer: int
    input_index: list[int]
    started: list[int]
    counts: list[int]
    keep: Tensor = field(repr=False)
    raw_scores: Tensor | None = field(repr=False)
    alive: Tensor = field(repr=False)
    seconds: float = 0.0
    measured: Tensor | None = field(default=None, repr=False)

    @lazy
    def kept(self) -> list[Tensor]:
        """Per row the sorted original indices of the tokens kept, int64 on the CPU."""
        return [row.nonzero().flatten() for row in self.keep.cpu()]

    @lazy
    def scores(self) -> list[Tensor] | None:
        """Per row the scores of the tokens alive before, in their order, on the CPU."""
        return self._live(self.raw_scores)

    @lazy
    def bars(self) -> list[Tensor] | None:
        """Per row what a threshold is compared with, as `scores`: the method's own measure, or the scores."""
        return self._live(self.raw_scores if self.measured is None else self.measured)

    def _live(self, values: Tensor | None) -> list[Tensor] | None:
        return None if values is None else [row[live] for row, live in zip(values.cpu(), self.alive.cpu(), strict=True)]

    def joined(self, other: Record) -> Record:
        """The same site with the rows of another record behind its own."""
        most = max(self.keep.shape[1], other.keep.shape[1])

        def join(own: Tensor | None, more: Tensor | None, fill: float) -> Tensor | None:
            if own is None and more is None:
                return None
            wide = [
                torch.full_like(record.keep, fill, dtype=torch.float32) if part is None else part
                for record, part in ((self, own), (other, more))
            ]
            return torch.cat([torch.nn.functional.pad(one, (0, most - one.shape[1]), value=fill) for one in wide])

        keep, alive = join(self.keep, other.keep, False), join(self.alive, other.alive, False)
        assert keep is not None and alive is not None
        return replace(
            self,
            input_index=list(range(len(keep))),
            started=self.started + other.started,
            counts=self.counts + other.counts,
            keep=keep,
            raw_scores=join(self.raw_scores, other.raw_scores, torch.nan),
            alive=alive,
            seconds=self.seconds + other.seconds,
            measured=join(self.measured, other.measured, torch.nan),
        )


@dataclass
class Trace:
    """Everything a run did, forward by forward. Appended by the engine; read by reports, pictures and calibration.

    Attributes:
        records: in the order in which the sites were met.
        grids: patch grid (height, width) of each image of the last forward.
        image_rows: the prompt row of each image of the last forward, where known.
        tiles: whether each tile of the last call of the tower ran; [] = all.
        layout: how the last forward's images became visual tokens, where the family needs to be told; else None.
        texts: records of text tokens.
    """

    records: list[Record] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    image_rows: list[int] = field(default_factory=list)
    tiles: list[bool] = field(default_factory=list)
    layout: Any = None
    texts: list[Record] = field(default_factory=list)

    def last(self, stack: str) -> list[Record]:
        """Return the records of the last forward that met a site of the stack."""
        mine = [record for record in (*self.records, *self.texts) if record.stack == stack]
        return [record for record in mine if record.forward == mine[-1].forward]

    def kept(self, stack: str) -> dict[int, list[int]]:
        """Return, for the last forward, the tokens kept at each site's layer, row by row."""
        return {record.layer: list(record.counts) for record in self.last(stack)}

    def alive_at_end(self, stack: str, row: int) -> Tensor:
        """Return the sorted original indices of the row's tokens that left at no site of the stack.

        Raises:
            BadInput: no forward has met a site of the stack; the stacks with sites are named.
        """
        records = self.last(stack)
        if not records:
            met = sorted({repr(one.stack) for one in (*self.records, *self.texts)})
            instead = f"ask for {' or '.join(met)}" if met else "run the model inside the block first"
            raise BadInput(f"no forward has met a site of {stack!r}, so no token left there; {instead}")
        kept: list[Tensor] = records[-1].kept
        return kept[row]

    def join(self, passes: Sequence[Sequence[Record]]) -> None:
        """Make one pass of several through the same sites: the rows of the first, then those of the next."""
        taken = {id(record) for one in passes for record in one}
        self.records = [record for record in self.records if id(record) not in taken]
        for records in zip(*passes, strict=True):
            self.records.append(reduce(Record.joined, records))

    def clear(self) -> None:
        """Forget all records."""
        self.records.clear()
        self.texts.clear()
