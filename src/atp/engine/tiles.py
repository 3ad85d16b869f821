"""Whole tiles leave before the tower runs: those of which the thumbnail already tells everything. Part of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from atp.adapters.base import Args, Kwargs
from atp.adapters.tiled import Picture, Tiled
from atp.engine.census import TowerPass
from atp.engine.pictures import pictures, residuals, stay
from atp.engine.run import Run
from atp.trace import Record
from atp.tracing import clock, refuse_tiles, traced


@dataclass(frozen=True)
class Chosen:
    """Which tiles of one call run.

    Attributes:
        rows: `[K]` their numbers, in order.
        ran: of each of the P tiles.
        counts: (kept, all) tiles of each picture, its thumbnail among them.
    """

    rows: Tensor
    ran: list[bool]
    counts: list[tuple[int, int]]

    def widen(self, state: Tensor) -> Tensor:
        """Lay `[K, ...]` out among all tiles; zero at those that did not run."""
        return state.new_zeros(len(self.ran), *state.shape[1:]).index_copy(0, self.rows, state)

    def scores(self, own: Tensor | None) -> Tensor | None:
        """The same with NaN, of `[K, N]`; None of None."""
        return (
            None if own is None else self.widen(own).masked_fill(~torch.tensor(self.ran, device=own.device)[:, None], torch.nan)
        )

    def among(self, values: list[Any], other: Any) -> list[Any]:
        """The same on the host."""
        left = iter(values)
        return [next(left) if ran else other for ran in self.ran]

    def record(self, record: Record) -> Record:
        """The tower's site with a row for each tile."""
        return replace(
            record,
            input_index=list(range(len(self.ran))),
            started=self.among(record.started, record.started[0]),
            counts=self.among(record.counts, 0),
            keep=self.widen(record.keep),
            raw_scores=self.scores(record.raw_scores),
            alive=self.widen(record.alive),
            measured=self.scores(record.measured),
        )

    def tower(self, tower: TowerPass, records: list[Record]) -> TowerPass:
        """What the tower left, with nothing alive in tiles that did not run; all tiles have one size."""
        return replace(
            tower,
            alive=self.widen(tower.alive),
            started=self.among(tower.started, tower.started[0]),
            counts=self.among(tower.counts, 0),
            scores=self.scores(tower.scores),
            sizes=None if tower.sizes is None else self.widen(tower.sizes),
            lengths=self.among(tower.lengths, (0,) * len(tower.lengths[0])),
            grids=self.among(tower.grids, tower.grids[0]),
            records=records,
        )


def choose(tiles: Tensor, wanted: float | str, known: Sequence[Picture] | None = None) -> Chosen:
    """Choose tiles `[P, C, H, W]`: a share of each picture's, or those with more than a residual; thumbnails always stay.

    Args:
        tiles: of the tower's call.
        wanted: see `atp.prune`.
        known: pictures that they make; None = their pixels must tell.
    """
    ran, counts = [True] * len(tiles), []
    found = pictures(tiles) if known is None else known
    scores = torch.cat([residuals(tiles, one) for one in found]).tolist() if found else []
    for one in found:
        own, scores = scores[: one.size], scores[one.size :]
        there = stay(own, wanted)
        for place in range(len(own)):
            ran[one.start + place] = place in there
        counts.append((len(there) + 1, len(own) + 1))
    rows = torch.tensor([place for place, there in enumerate(ran) if there], device=tiles.device)
    return Chosen(rows, ran, counts)


class TiledRun(Run):
    """A run whose plan says which tiles stay."""

    _chosen: Chosen | None = None

    def enter_tower(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        self._chosen, self.trace.tiles = None, []
        if self.plan.tiles is None:
            return super().enter_tower(module, args, kwargs)
        if traced():
            refuse_tiles()
        adapter = self.adapter
        assert isinstance(adapter, Tiled)
        begin, tiles = clock(), adapter.tiles_of(args, kwargs)
        with torch.no_grad():
            chosen = choose(tiles, self.plan.tiles, adapter.pictures(tiles))
        self.book.parts(chosen.counts, clock() - begin)
        if not chosen.counts and len(tiles) > 1:
            told = f"none of the {len(tiles)} images of a call is the thumbnail of a picture in tiles, so all of them stay"
            self.book.warn("tiles", told)
        if all(chosen.ran):
            return super().enter_tower(module, args, kwargs)
        self._chosen, self.trace.tiles = chosen, chosen.ran
        changed = adapter.some_tiles(args, kwargs, chosen.rows)
        super().enter_tower(module, *changed)
        return changed

    def leave_tower(self, module: nn.Module, args: Args, output: Any) -> Any:
        chosen, before = self._chosen, len(self.trace.records)
        output = super().leave_tower(module, args, output)
        if chosen is None:
            return output
        assert self._tower is not None
        records = [chosen.record(record) for record in self._tower.records]
        self.trace.records[before:] = records
        self.book.ledger.kept["vision"] = {record.layer: list(record.counts) for record in records}
        tower = chosen.tower(self._tower, records)
        self.book.left([n for n, ran in zip(tower.started, chosen.ran, strict=True) if not ran], [0] * chosen.ran.count(False))
        output = self.adapter.map_states(output, chosen.widen)
        self.adapter.tag(output, tower)
        self._tower = tower
        if self._prompt is not None:
            self._towers[-1] = tower
        return output

    def enter_connector(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if self._chosen is None:
            return super().enter_connector(module, args, kwargs)
        args = (args[0][self._chosen.rows], *args[1:])
        return super().enter_connector(module, args, kwargs) or (args, kwargs)

    def leave_connector(self, module: nn.Module, args: Args, output: Any) -> Any:
        chosen, self._chosen = self._chosen, None
        made = super().leave_connector(module, args, output)
        return made if chosen is None else chosen.widen(output if made is None else made)
