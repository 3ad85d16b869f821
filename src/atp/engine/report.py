"""What a run cost and kept, in numbers that print. Part of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from atp.budget.cost import Flops, Lengths, Workload, count
from atp.budget.shape import ModelShape
from atp.engine.census import Census, TowerPass
from atp.engine.cross import Crossing
from atp.plan import STACKS, Plan
from atp.tokens import Record

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1, ""))
PARTS = ("vision", "connector", "prefill", "decode", "selection")


@dataclass
class Ledger:
    """Host-side counts of everything that ran.

    Attributes:
        images: (patches, length of each tower layer, patches embedded, features connected, `TowerPass.asked`) of each image,
            with how often.
        rows: (visual tokens, text tokens, length of each language layer) of each prompt, with how often.
        visual: sum over prompts of the mean visual tokens per language layer.
        decoded: tokens that ran after their prompt.
        seconds: host time of scoring and choosing.
        kept: of the last forward, tokens kept by stack, layer and input.
    """

    images: Counter[tuple[int, tuple[int, ...], int | None, int | None, float | None]] = field(default_factory=Counter)
    rows: Counter[tuple[int, int, tuple[int, ...]]] = field(default_factory=Counter)
    visual: float = 0.0
    decoded: int = 0
    seconds: float = 0.0
    kept: dict[str, dict[int, list[int]]] = field(default_factory=dict)

    def sites(self, stack: str, records: Sequence[Record]) -> None:
        """Add what the sites of one pass through a stack did."""
        self.seconds += sum(record.seconds for record in records)
        self.kept[stack] = {record.layer: list(record.counts) for record in records}

    def tower(self, tower: TowerPass) -> None:
        """Add the images of one pass of the tower."""
        for index, lengths in enumerate(tower.lengths):
            connected = tower.connected[index] if tower.connected else None
            self.images[tower.started[index] * tower.group, lengths, tower.embedded, connected, tower.asked] += 1

    def prompts(self, census: Census | Crossing, layers: int) -> None:
        """Add the prompts of one forward."""
        for row, lengths in enumerate(census.lengths(layers)):
            text = census.other_counts[row]
            self.rows[census.started[row], text, lengths] += 1
            self.visual += sum(lengths) / layers - text

    def text_only(self, batch: int, length: int, layers: int) -> None:
        """Add prompts without images."""
        self.rows[0, length, (length,) * layers] += batch

    @property
    def count(self) -> int:
        """Prompts."""
        return sum(self.rows.values())


@dataclass(frozen=True)
class Report:
    """Sums over a run. Print it, or take `to_dict`.

    Attributes:
        method, plan: what was in force.
        flops, flops_unpruned: by part; the unpruned run has the same images, prompts and answers.
        prompts, images: how many ran.
        kept: tokens kept by stack, layer and input, of the last forward.
        equivalent_tokens: mean visual tokens per language layer and prompt.
        seconds: host time spent on scoring and choosing.
        levelled: stacks whose layers take no mask, so that all inputs of a batch kept as many as the largest.
        recalled: share of the cross-attention keys that decoded tokens did not project again, as the model alone does.
    """

    method: str
    plan: Plan
    flops: Flops
    flops_unpruned: Flops
    prompts: int
    images: int
    kept: dict[str, dict[int, list[int]]]
    equivalent_tokens: float
    seconds: float
    levelled: tuple[str, ...] = ()
    recalled: float = 0.0

    @property
    def ratio(self) -> float:
        """FLOPs as a share of the unpruned ones; 1 where nothing ran."""
        return self.flops.total / self.flops_unpruned.total if self.flops_unpruned.total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "method": self.method,
            "plan": self.plan.to_dict(),
            "flops_ratio": self.ratio,
            "flops": self.flops.to_dict(),
            "flops_unpruned": self.flops_unpruned.to_dict(),
            "prompts": self.prompts,
            "images": self.images,
            "kept": {stack: {str(layer): rows for layer, rows in layers.items()} for stack, layers in self.kept.items()},
            "equivalent_tokens": self.equivalent_tokens,
            "selection_seconds": self.seconds,
            "levelled": list(self.levelled),
            "recalled": self.recalled,
        }

    def __str__(self) -> str:
        size, unit = next((s, u) for s, u in UNITS if self.flops_unpruned.total >= s or s == 1)
        lines = [
            f"{self.method}: {self.ratio:.1%} of the FLOPs, {self.equivalent_tokens:.1f} visual tokens per language layer "
            f"({self.prompts} prompts, {self.images} images, {self.seconds * 1000:.1f} ms selecting)",
            f"{unit + 'FLOPs':<12}{'unpruned':>12}{'pruned':>12}{'share':>9}",
        ]
        for part in (*PARTS, "total"):
            full, now = getattr(self.flops_unpruned, part), getattr(self.flops, part)
            share = f"{now / full:>8.1%}" if full else f"{'-':>8}"
            lines.append(f"{part:<12}{full / size:>12.4g}{now / size:>12.4g} {share}")
        for stack, layers in self.kept.items():
            for layer, rows in layers.items():
                shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
                lines.append(f"kept at {stack}:{layer}: {shown}")
        for stack in self.levelled:
            lines.append(f"{stack}: its layers take no mask, so all inputs of a batch kept as many as the largest")
        if self.recalled:
            lines.append(f"decoded tokens: {self.recalled:.0%} of their cross-attention keys remembered, not projected again")
        return "\n".join(lines)


def make_report(
    shape: ModelShape,
    plan: Plan,
    method: str,
    ledger: Ledger,
    selection: float,
    levelled: Iterable[str] = (),
    recalled: float = 0.0,
) -> Report:
    """Count what a run spent, and what the same run would have spent unpruned."""
    pruned, full = [Flops(0, 0, 0, 0, selection)], [Flops(0, 0, 0, 0)]
    one = Workload(images=1, text=0, answer=1)
    nothing = (0.0,) * shape.language.layers
    for (patches, layers, embedded, connected, asked), times in ledger.images.items():
        own = shape.of_size(patches)
        own = own if asked is None else replace(own, query_flops=asked)
        spent = count(own, one, Lengths(tuple(map(float, layers)), nothing, embedded, connected))
        pruned.append(Flops(spent.vision * times, spent.connector * times, 0, 0))
        spent = count(own, one)
        full.append(Flops(spent.vision * times, spent.connector * times, 0, 0))
    prompts = ledger.count
    steps = ledger.decoded / prompts if prompts else 0.0
    idle = (0.0,) * shape.vision.layers
    for (visual, text, layers), times in ledger.rows.items():
        whole = (float(visual + text),) * shape.language.layers
        now = Lengths(idle, tuple(map(float, layers)), recalled=recalled)
        for flops, lengths in ((pruned, now), (full, Lengths(idle, whole))):
            spent = _decoded(shape, text, lengths, steps)
            flops.append(Flops(0, 0, spent.prefill * times, spent.decode * times))
    return Report(
        method=method,
        plan=plan,
        flops=_sum(pruned),
        flops_unpruned=_sum(full),
        prompts=prompts,
        images=sum(ledger.images.values()),
        kept={stack: dict(ledger.kept[stack]) for stack in STACKS if ledger.kept.get(stack)},
        equivalent_tokens=ledger.visual / prompts if prompts else 0.0,
        seconds=ledger.seconds,
        levelled=tuple(sorted(levelled)),
        recalled=recalled,
    )


def _decoded(shape: ModelShape, text: int, lengths: Lengths, steps: float) -> Flops:
    """Count one prompt with a mean number of decode steps, between the two whole numbers around it."""
    low = int(steps)
    first = count(shape, Workload(images=1, text=text, answer=low + 1), lengths)
    if steps == low:
        return first
    second = count(shape, Workload(images=1, text=text, answer=low + 2), lengths)
    return Flops(0, 0, first.prefill, first.decode + (second.decode - first.decode) * (steps - low))


def _sum(parts: Iterable[Flops]) -> Flops:
    total = dict.fromkeys(PARTS, 0.0)
    for part in parts:
        for name in PARTS:
            total[name] += getattr(part, name)
    return Flops(**total)
