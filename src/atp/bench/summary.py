"""From samples to numbers: medians with quartiles, speed-ups, what the FLOPs promise, and whether one may conclude from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from atp.bench.clock import PARTS
from atp.bench.measure import BASE, Sample
from atp.bench.settings import LEAST

NOISY = 0.10
"""Ours: above it, half of the unpruned runs differ from their median by more than pruning's finer gains."""

RULE = (
    f"noise = (third - first quartile) / median of the unpruned totals. Nothing is concluded from fewer than {LEAST} rounds, "
    f"from noise above {NOISY:.0%}, or from a speed-up that differs from 1 by no more than the noise."
)
IMAGE_AND_PROMPT = ("vision", "connector", "prefill")
SPANS = {"vision+prefill": IMAGE_AND_PROMPT, "end to end": ("total",)}


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """One span of a side against the unpruned model.

    Attributes:
        measured: speed-up, of each round's two neighbours.
        ideal: unpruned FLOPs over pruned ones, selection included.
    """

    measured: Spread
    ideal: float

    @property
    def realised(self) -> float:
        """Measured over ideal speed-up."""
        return self.measured.median / self.ideal


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles, interpolated between neighbours.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
    """
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    return Spread(at(0.5), at(0.25), at(0.75))


def noise(totals: Sequence[float]) -> float:
    """Return the quartiles' distance as a share of the median."""
    found = spread(totals)
    return (found.high - found.low) / found.median


def verdict(rounds: int, unrest: float, speedup: float) -> str:
    """Say what a speed-up means, by `RULE`."""
    if rounds < LEAST:
        return f"too few rounds ({rounds})"
    if unrest > NOISY:
        return "machine too noisy"
    if abs(speedup - 1) <= unrest:
        return "no difference beyond noise"
    return "faster" if speedup > 1 else "slower"


def gains(base: Sequence[Sample], side: Sequence[Sample]) -> dict[str, Gain]:
    """Return the gain of a pruned side in every span.

    Args:
        base: unpruned samples, in the order of rounds.
        side: those of the side, of the same rounds.
    """
    report = side[0].report
    assert report is not None
    found = {}
    for name, parts in SPANS.items():
        ratios = [_of(one.seconds, parts) / _of(two.seconds, parts) for one, two in zip(base, side, strict=True)]
        whole, now = _of(report.flops_unpruned.to_dict(), parts), _of(report.flops.to_dict(), parts)
        if name == "vision+prefill":  # where all the selecting happens
            now += report.flops.selection
        found[name] = Gain(spread(ratios), whole / now)
    return found


def _of(values: Mapping[str, float], parts: Sequence[str]) -> float:
    return sum(values[part] for part in parts)


def summary(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Sum up one case as plain values: noise, and every side with times, FLOPs, gains, bytes and verdict.

    Args:
        samples: by side, the unpruned one among them.
    """
    base = samples[BASE]
    unrest = noise([sample.seconds["total"] for sample in base])
    found = []
    for name, own in samples.items():
        entry: dict[str, Any] = {
            "side": name,
            "seconds": {part: asdict(spread([one.seconds[part] for one in own])) for part in (*PARTS, "total")},
            "totals": [one.seconds["total"] for one in own],
            "selection_seconds": spread([one.selection for one in own]).median,
            "peak_bytes": own[-1].peak,
            "kv_bytes": own[-1].cache,
        }
        report = own[0].report
        if report is not None:
            made = gains(base, own)
            entry["plan"] = report.plan.to_dict()
            entry["flops_share"] = report.ratio
            entry["flops"], entry["flops_unpruned"] = report.flops.to_dict(), report.flops_unpruned.to_dict()
            entry["gains"] = {
                span: {"measured": asdict(gain.measured), "ideal": gain.ideal, "realised": gain.realised}
                for span, gain in made.items()
            }
            entry["verdict"] = verdict(len(own), unrest, made["end to end"].measured.median)
        found.append(entry)
    return {"noise": unrest, "rounds": len(base), "sides": found}
