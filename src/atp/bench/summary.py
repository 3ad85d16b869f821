"""From samples to numbers: medians with quartiles, speed-ups, what the FLOPs promise, and whether one may conclude from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from atp.bench.clock import PARTS
from atp.bench.measure import Sample
from atp.bench.settings import LEAST
from atp.bench.sides import BASE

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
        ideal: unpruned FLOPs over pruned ones, selection included; 1 where nothing is pruned.
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
    found = {}
    for name, parts in SPANS.items():
        ratios = [_of(one.seconds, parts) / _of(two.seconds, parts) for one, two in zip(base, side, strict=True)]
        if side[0].flops is None:
            found[name] = Gain(spread(ratios), 1.0)
            continue
        less, full = side[0].flops
        whole, now = _of(full.to_dict(), parts), _of(less.to_dict(), parts)
        if name == "vision+prefill":  # where all the selecting happens
            now += less.selection
        found[name] = Gain(spread(ratios), whole / now)
    return found


def _of(values: Mapping[str, float], parts: Sequence[str]) -> float:
    return sum(values[part] for part in parts)


def ours(samples: Sequence[Sample], steps: int) -> dict[str, float]:
    """Sum up what our hooks cost the host: seconds before the first token, besides selecting, its share, and a decode step's."""
    before = [_of(one.hooks, [part for part in one.hooks if part != "decode"]) for one in samples]
    prompt = [_of(one.seconds, IMAGE_AND_PROMPT) for one in samples]
    return {
        "seconds": spread([hooks - one.selection for hooks, one in zip(before, samples, strict=True)]).median,
        "share": spread([hooks / max(took, 1e-9) for hooks, took in zip(before, prompt, strict=True)]).median,
        "step_seconds": spread([one.hooks.get("decode", 0.0) / max(1, steps) for one in samples]).median,
    }


def summary(samples: Mapping[str, Sequence[Sample]], tokens: int = 1, steps: int = 0) -> dict[str, Any]:
    """Sum up one case as plain values: noise, and every side with times, FLOPs, gains, bytes and verdict.

    Args:
        samples: by side, the unpruned one among them.
        tokens: answered by one generation, all prompts together.
        steps: of decoding in it.
    """
    base = samples[BASE]
    unrest = noise([sample.seconds["total"] for sample in base])
    found = []
    for name, own in samples.items():
        total = spread([one.seconds["total"] for one in own])
        entry: dict[str, Any] = {
            "side": name,
            "seconds": {part: asdict(spread([one.seconds[part] for one in own])) for part in (*PARTS, "total")},
            "totals": [one.seconds["total"] for one in own],
            "tokens_per_second": tokens / total.median,
            "selection_seconds": spread([one.selection for one in own]).median,
            "hooks": ours(own, steps),
            "peak_bytes": own[-1].peak,
            "kv_bytes": own[-1].cache,
        }
        report, spent = own[0].report, own[0].flops
        if report is not None:
            entry["plan"] = report.plan.to_dict()
        if spent is not None:
            entry["flops"], entry["flops_unpruned"] = spent[0].to_dict(), spent[1].to_dict()
        if name != BASE:
            made = gains(base, own)
            entry["flops_share"] = 1.0 if spent is None else spent[0].total / spent[1].total
            entry["gains"] = {
                span: {"measured": asdict(gain.measured), "ideal": gain.ideal, "realised": gain.realised}
                for span, gain in made.items()
            }
            entry["verdict"] = verdict(len(own), unrest, made["end to end"].measured.median)
        found.append(entry)
    return {"noise": unrest, "rounds": len(base), "sides": found}
