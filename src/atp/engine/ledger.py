"""What a run counts while it runs: plain numbers on the host, from which the report is made. Part of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from atp.engine.census import Census, Crossing, TowerPass
from atp.engine.kept import Kept
from atp.trace import Record


@dataclass
class Ledger:
    """Host-side counts of everything that ran.

    Attributes:
        images: (patches, length of each tower layer, patches embedded, features connected, `TowerPass.asked`) of each image,
            with how often.
        rows: (visual tokens, text tokens, length of each language layer, text in each) of each prompt, with how often.
        turns: the same of each conversation that was said again, and its new tokens.
        visual, text: sums over prompts of the mean visual and text tokens per language layer.
        decoded: tokens that ran after their prompt.
        seconds: host time of scoring and choosing.
        kept: of the last forward, tokens kept by stack, layer and input.
        over_all: of all forwards, by stack and layer.
        tiles: of its pictures in tiles, (ran, all) of each; or of its windows, (whole, all).
        windows: whether they are windows.
        rows_run, rows_asked: of each stack, over layers: with what pads inputs to the longest of their batch, and without.
    """

    images: Counter[tuple[int, tuple[int, ...], int | None, int | None, float | None]] = field(default_factory=Counter)
    rows: Counter[tuple[int, int, tuple[int, ...], tuple[int, ...]]] = field(default_factory=Counter)
    turns: Counter[tuple[int, int, tuple[int, ...], tuple[int, ...], int]] = field(default_factory=Counter)
    visual: float = 0.0
    text: float = 0.0
    decoded: int = 0
    seconds: float = 0.0
    kept: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    over_all: dict[str, dict[int, Kept]] = field(default_factory=dict)
    tiles: list[tuple[int, int]] = field(default_factory=list)
    windows: bool = False
    rows_run: Counter[str] = field(default_factory=Counter)
    rows_asked: Counter[str] = field(default_factory=Counter)

    def sites(self, stack: str, records: Sequence[Record]) -> None:
        """Add what the sites of one pass through a stack did."""
        self.seconds += sum(record.seconds for record in records)
        self.kept[stack] = {record.layer: list(record.counts) for record in records}
        for record in records:
            self.over_all.setdefault(stack, {}).setdefault(record.layer, Kept()).add(record.started, record.counts)

    def tower(self, tower: TowerPass) -> None:
        """Add the images of one pass of the tower."""
        self.batch("vision", [[sum(layer) for layer in zip(*tower.lengths, strict=True)]] if tower.packed else tower.lengths)
        for index, lengths in enumerate(tower.lengths):
            connected = tower.connected[index] if tower.connected else None
            embedded = tower.embedded if any(lengths) else 0  # a tile that did not run
            self.images[tower.started[index] * tower.group, lengths, embedded, connected, tower.asked] += 1

    def prompts(self, census: Census | Crossing, layers: int, new: int = 0) -> None:
        """Add the prompts of one forward, or the conversations whose last `new` tokens are new."""
        self.batch("language", census.lengths(layers))
        for row, (lengths, texts) in enumerate(zip(census.lengths(layers), census.text_lengths(layers), strict=True)):
            known = census.started[row], census.texts[row], lengths, tuple(texts)
            if new:
                self.turns[*known, new] += 1
            else:
                self.rows[known] += 1
            self.visual += (sum(lengths) - sum(texts)) / layers
            self.text += sum(texts) / layers

    def batch(self, stack: str, lengths: Sequence[Sequence[int]]) -> None:
        """Add what one pass runs for each input in each layer; inputs that do not run are no padding."""
        ran = [row for row in lengths if any(row)]
        self.rows_run[stack] += len(ran) * sum(max(layer) for layer in zip(*ran, strict=True))
        self.rows_asked[stack] += sum(map(sum, ran))

    def text_only(self, batch: int, length: int, layers: int) -> None:
        """Add prompts without images."""
        self.rows[0, length, (length,) * layers, (length,) * layers] += batch

    @property
    def count(self) -> int:
        """Prompts."""
        return sum(self.rows.values()) + sum(self.turns.values())
