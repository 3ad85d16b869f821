"""What a run cost and kept, in numbers that print. Part of the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from atp.budget.cost import Flops, Lengths, Workload, count
from atp.budget.shape import ModelShape
from atp.engine.kept import Kept
from atp.engine.ledger import Ledger
from atp.plan import STACKS, Plan

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1, ""))
PARTS = ("vision", "connector", "prefill", "decode", "selection")
TELL = 0.05
"""Ours: padding below it is not worth a line."""


@dataclass(frozen=True)
class Report:
    """Sums over a run. Print it, or take `to_dict`.

    Attributes:
        method, plan: what was in force.
        flops, flops_unpruned: by part; the unpruned run has the same images, prompts and answers.
        prompts, images: how many ran.
        kept: tokens kept by stack, layer and input, of the last forward.
        over_all: over all inputs of the run, mean, least and most tokens kept, by stack and layer.
        equivalent_tokens: mean visual tokens per language layer and prompt.
        equivalent_text: mean text tokens per language layer and prompt, where text may leave; else None.
        turns: second turns that chose anew.
        turn_flops, turn_flops_unpruned: what that took, and what the same turns take on the cache of an unpruned chat.
        protected: whether numbers and negations were known and stayed in the text, because a processor was given.
        seconds: host time spent on scoring and choosing.
        levelled: stacks whose layers take no mask, so that all inputs of a batch kept as many as the largest.
        recalled: share of the cross-attention keys that decoded tokens did not project again, as the model alone does.
        tiles: (ran, all) of each picture in tiles of the last forward, thumbnails among them; or windows of each image, (whole,
            all); () = none was to leave.
        windows: whether they are windows.
        padding: of each stack, the share of the rows that ran only because another input of the batch kept more. It is no part
            of the FLOPs; `atp.batches` makes it small.
        packed: stacks in which these rows ran through attention only.
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
    over_all: dict[str, dict[int, Kept]] = field(default_factory=dict)
    levelled: tuple[str, ...] = ()
    recalled: float = 0.0
    equivalent_text: float | None = None
    protected: bool = False
    turns: int = 0
    turn_flops: float = 0.0
    turn_flops_unpruned: float = 0.0
    tiles: tuple[tuple[int, int], ...] = ()
    windows: bool = False
    padding: dict[str, float] = field(default_factory=dict)
    packed: tuple[str, ...] = ()

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
            "over_all": {stack: {str(n): one.to_dict() for n, one in layers.items()} for stack, layers in self.over_all.items()},
            "equivalent_tokens": self.equivalent_tokens,
            "equivalent_text": self.equivalent_text,
            "text_protected": self.protected,
            "turns": self.turns,
            "turn_flops": self.turn_flops,
            "turn_flops_unpruned": self.turn_flops_unpruned,
            "selection_seconds": self.seconds,
            "levelled": list(self.levelled),
            "recalled": self.recalled,
            "tiles": [list(one) for one in self.tiles],
            "padding": dict(self.padding),
            "packed": list(self.packed),
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
                place = "text kept at language" if stack == "text" else f"kept at {stack}"
                lines.append(f"{place}:{layer}: {shown}{self.over_all.get(stack, {}).get(layer, '')}")
        if self.tiles:
            shown = ", ".join(f"{ran} of {whole}" for ran, whole in self.tiles[:8]) + (", ..." if len(self.tiles) > 8 else "")
            lines.append(f"{'windows that ran whole' if self.windows else 'tiles that ran, with the thumbnail'}: {shown}")
        if self.equivalent_text is not None:
            known = (
                "numbers and negations stayed"
                if self.protected
                else "protected by place only: give processor= for numbers and negations"
            )
            lines.append(f"text: {self.equivalent_text:.1f} tokens per language layer; {known}")
        if self.turns:
            now, full = self.turn_flops / size, self.turn_flops_unpruned / size
            lines.append(
                f"second turns: {self.turns} chosen anew for {now:.4g} {unit}FLOPs; on an unpruned chat's cache {full:.4g}"
            )
        for stack in self.levelled:
            lines.append(f"{stack}: its layers take no mask, so all inputs of a batch kept as many as the largest")
        for stack, spare in self.padding.items():
            if spare >= TELL:
                where = ", in attention only" if stack in self.packed else ""
                lines.append(
                    f"{stack}: {spare:.0%} of the rows are padding up to the batch's longest{where}; group inputs: atp.batches"
                )
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
    protected: bool = False,
    packed: tuple[str, ...] = (),
) -> Report:
    """Count what a run spent, and what the same run would have spent unpruned."""
    pruned, full = [Flops(0, 0, 0, 0, selection)], [Flops(0, 0, 0, 0)]
    one, nothing = Workload(images=1, text=0, answer=1), (0.0,) * shape.language.layers
    for (patches, layers, embedded, connected, asked), times in ledger.images.items():
        own = shape.of_size(patches) if asked is None else replace(shape.of_size(patches), query_flops=asked)
        there = Lengths(tuple(map(float, layers)), nothing, embedded, connected)
        for flops, spent in ((pruned, count(own, one, there)), (full, count(own, one))):
            flops.append(Flops(spent.vision * times, spent.connector * times, 0, 0))
    prompts, idle = ledger.count, (0.0,) * shape.vision.layers
    steps = ledger.decoded / prompts if prompts else 0.0
    for (visual, text, layers, texts), times in ledger.rows.items():
        whole = (float(visual + text),) * shape.language.layers
        kept = Lengths(idle, tuple(map(float, layers)), recalled=recalled, text=tuple(map(float, texts)))
        for flops, lengths in ((pruned, kept), (full, Lengths(idle, whole))):
            spent = _decoded(shape, text, lengths, steps)
            flops.append(Flops(0, 0, spent.prefill * times, spent.decode * times))
    now, on = _turns(shape, ledger, steps, recalled)
    return Report(
        method=method,
        plan=plan,
        flops=_sum([*pruned, now]),
        flops_unpruned=_sum([*full, on]),
        prompts=prompts,
        images=sum(ledger.images.values()),
        kept={stack: dict(ledger.kept[stack]) for stack in (*STACKS, "text") if ledger.kept.get(stack)},
        over_all={stack: {n: replace(one) for n, one in layers.items()} for stack, layers in ledger.over_all.items()},
        equivalent_tokens=ledger.visual / prompts if prompts else 0.0,
        seconds=ledger.seconds,
        levelled=tuple(sorted(levelled)),
        recalled=recalled,
        equivalent_text=ledger.text / prompts if prompts and plan.spells else None,
        protected=protected,
        turns=sum(ledger.turns.values()),
        turn_flops=now.prefill,
        turn_flops_unpruned=on.prefill,
        tiles=tuple(ledger.tiles),
        windows=ledger.windows,
        padding={stack: 1 - ledger.rows_asked[stack] / ran for stack, ran in ledger.rows_run.items() if ran},
        packed=packed,
    )


def _turns(shape: ModelShape, ledger: Ledger, steps: float, recalled: float) -> tuple[Flops, Flops]:
    """Count second turns: conversations said again, and what their new tokens take on the cache of an unpruned chat."""
    idle, chosen, on = (0.0,) * shape.vision.layers, [Flops(0, 0, 0, 0)], [Flops(0, 0, 0, 0)]
    head = 2.0 * shape.language.hidden * shape.vocab
    for (visual, text, layers, _, new), times in ledger.turns.items():  # nowhere across
        whole, before = ((float(visual + text - less),) * shape.language.layers for less in (0, new))
        now = _decoded(shape, text, Lengths(idle, tuple(map(float, layers)), recalled=recalled), steps)
        later = _decoded(shape, text, Lengths(idle, whole), steps).decode
        turn = count(shape, Workload(images=1, text=text, answer=new + 1), Lengths(idle, before)).decode - (new - 1) * head
        chosen.append(Flops(0, 0, now.prefill * times, now.decode * times))
        on.append(Flops(0, 0, turn * times, later * times))
    return _sum(chosen), _sum(on)


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
