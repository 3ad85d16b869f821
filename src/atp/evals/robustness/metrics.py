"""How much worse a pruned model gets under disturbance than the unpruned one, with paired intervals. numpy only.

Corruption error after Hendrycks & Dietterich (ICLR 2019, arXiv 1903.12261, section 4.1), with one difference: their reference is
AlexNet on ImageNet; ours is the same model unpruned, on the same disturbed items. 100 = as many errors as unpruned.
Severities are any labels and every name of a disturbance counts the same, so pictures and questions are measured alike.

A model that always says the same loses nothing under disturbance, so shares and losses alone would call a collapsed one stable.
Beside them stands the absolute difference under disturbance (relative robustness of Taori et al., NeurIPS 2020, arXiv
2007.00644, section 2), and `Robustness.verdict` asks for it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp.errors import BadInput
from atp.evals.stats import Interval, paired_bootstrap

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """What one setting scored on the clean items and on every disturbed copy of them.

    Attributes:
        clean: score of every item, `[N]`, 0..1.
        disturbed: the same items' scores, `[N]`, by (name, severity).
        groups: image of every item, number or name, `[N]`.
    """

    clean: Floats
    disturbed: Mapping[tuple[str, int], Floats]
    groups: NDArray[Any]

    def __post_init__(self) -> None:
        if not len(self.clean) or len(self.groups) != len(self.clean):
            raise BadInput(f"expected a group for each of at least one item, got {len(self.groups)} for {len(self.clean)} items")
        if not self.disturbed:
            raise BadInput("expected scores of at least one disturbance, got none; fill `disturbed` by (name, severity)")
        for label, scores in {("clean", 0): self.clean, **self.disturbed}.items():
            if len(scores) != len(self.clean):
                raise BadInput(
                    f"{label[0]} {label[1]} has {len(scores)} scores for {len(self.clean)} items; score the same items"
                )
            if not np.all((scores >= 0) & (scores <= 1)):  # NaN is neither
                raise BadInput(f"scores of {label[0]} {label[1]} must lie in 0..1; divide points by 100, leave no NaN")

    @property
    def names(self) -> tuple[str, ...]:
        """Disturbances, in the order given."""
        return tuple(dict.fromkeys(name for name, _ in self.disturbed))

    @property
    def disturbed_mean(self) -> Floats:
        """Score of every item, averaged over severities and then over names, `[N]`."""
        each = [np.mean([s for (n, _), s in self.disturbed.items() if n == name], axis=0) for name in self.names]
        return np.asarray(np.mean(each, axis=0))


@dataclass(frozen=True)
class Robustness:
    """Pruned against unpruned under disturbance.

    Attributes:
        by_name: corruption error of each disturbance, in per cent of the unpruned model's errors.
        mce: their mean.
        relative_mce: the same for the errors that came on top of the clean ones; None where no name is left.
        left_out: names without a relative error, since the unpruned model does not surely get worse (lower bound <= 0).
        retained: share of the clean accuracy that is left under disturbance, in points: pruned, unpruned.
        retained_gap: first minus second.
        extra_drop: how many points more the pruned model loses.
        disturbed: score under disturbance in points: pruned, unpruned.
        disturbed_gap: first minus second.
        clean_gap: the same on the clean items.
        sum_gap: both gaps added up, on equal terms.
    """

    by_name: Mapping[str, Interval]
    mce: Interval
    relative_mce: Interval | None
    left_out: tuple[str, ...]
    retained: tuple[float, float]
    retained_gap: Interval
    extra_drop: Interval
    disturbed: tuple[float, float]
    disturbed_gap: Interval
    clean_gap: Interval
    sum_gap: Interval

    @property
    def verdict(self) -> str:
        """Judge, each condition beyond its interval.

        "more stable": right more often under disturbance, keeps a larger share, loses fewer points, and gains more under
        disturbance than it loses on clean items. "less stable": the first three the other way round. "less accurate": worse on
        clean items and under disturbance, so what it loses says little, as there was less to lose. Else "undecided".

        A model that is right on the same items whatever is done to them is thus more stable only where the unpruned model,
        averaged over clean and disturbed items, is right less often than that.
        """
        gains = self.disturbed_gap.low > 0 and self.sum_gap.low > 0
        if gains and self.retained_gap.low > 0 and self.extra_drop.high < 0:
            return "more stable"
        if self.disturbed_gap.high < 0 and self.retained_gap.high < 0 and self.extra_drop.low > 0:
            return "less stable"
        return "less accurate" if self.disturbed_gap.high < 0 and self.clean_gap.high < 0 else "undecided"


def compare(pruned: Outcomes, unpruned: Outcomes, samples: int = 2000, seed: int = 0) -> Robustness:
    """Compare two settings over the same items, whole images resampled.

    Args:
        pruned, unpruned: with equal groups and disturbances.
        samples: bootstrap replicates.
        seed: of the resampling, the same as `paired_bootstrap` draws.

    Raises:
        BadInput: the two were not asked the same; no error of the unpruned model under some disturbance; no right clean answer.
    """
    _check(pruned, unpruned)
    _, index = np.unique(pruned.groups, return_inverse=True)
    weights = _resampled(int(index.max()) + 1, samples, seed)
    sizes = weights @ np.bincount(index)
    ours, theirs = (_errors(scores, index, weights) for scores in (pruned, unpruned))
    by_name = {name: 100 * _ratio(ours[name], theirs[name]) for name in pruned.names}
    on_top = {name: (ours[name] - ours[""], theirs[name] - theirs[""]) for name in pruned.names}
    left_out = tuple(name for name, (_, base) in on_top.items() if base[0] <= 0 or np.percentile(base[1:], 2.5) <= 0)
    relative = [100 * _ratio(*on_top[name]) for name in pruned.names if name not in left_out]
    kept = [100 * _retained(scores, pruned.names, sizes) for scores in (ours, theirs)]
    clean, disturbed = ([scores.clean for scores in (pruned, unpruned)], [scores.disturbed_mean for scores in (pruned, unpruned)])

    def gap(signs: tuple[int, int]) -> Interval:
        mine, theirs = (signs[0] * clean[n] + signs[1] * disturbed[n] for n in (0, 1))
        return paired_bootstrap(mine, theirs, index, samples, seed)

    return Robustness(
        {name: _interval(values) for name, values in by_name.items()},
        _interval(np.mean(list(by_name.values()), axis=0)),
        _interval(np.mean(relative, axis=0)) if relative else None,
        left_out,
        (float(kept[0][0]), float(kept[1][0])),
        _interval(kept[0] - kept[1]),
        gap((1, -1)),
        (float(100 * disturbed[0].mean()), float(100 * disturbed[1].mean())),
        gap((0, 1)),
        gap((1, 0)),
        gap((1, 1)),
    )


def _check(pruned: Outcomes, unpruned: Outcomes) -> None:
    if set(pruned.disturbed) != set(unpruned.disturbed):
        odd = ", ".join(f"{name} {severity}" for name, severity in sorted(set(pruned.disturbed) ^ set(unpruned.disturbed)))
        raise BadInput(f"pruned and unpruned must be asked under the same disturbances; only one of them has {odd}")
    if not np.array_equal(pruned.groups, unpruned.groups):
        raise BadInput("pruned and unpruned must be asked the same items in the same order; their groups differ")
    for name in unpruned.names:
        if all(np.all(scores == 1) for (other, _), scores in unpruned.disturbed.items() if other == name):
            raise BadInput(f"the unpruned model makes no error under {name}, so there is nothing to divide by; leave {name} out")
    for scores, which in ((pruned, "pruned"), (unpruned, "unpruned")):
        if not np.any(scores.clean):
            raise BadInput(
                f"the {which} model answers no clean item right, so no share of its accuracy can be left; check its answers"
            )


def _resampled(count: int, samples: int, seed: int) -> Floats:
    """Return how often each group is drawn, `[1 + samples, count]`; row 0 is the data as they are."""
    draws = np.random.default_rng(seed).integers(count, size=(samples, count))
    return np.stack([np.ones(count), *(np.bincount(row, minlength=count) for row in draws)])


def _errors(scores: Outcomes, index: NDArray[np.intp], weights: Floats) -> dict[str, Floats]:
    """Return errors summed over items, averaged over severities, by name and "" for clean, `[1 + samples]` each."""
    missed = {"": [1 - scores.clean]} | {name: [] for name in scores.names}
    for (name, _), values in scores.disturbed.items():
        missed[name].append(1 - values)
    return {name: weights @ np.bincount(index, weights=np.mean(rows, axis=0)) for name, rows in missed.items()}


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0))


def _retained(errors: Mapping[str, Floats], names: tuple[str, ...], sizes: Floats) -> Floats:
    right = sizes - np.mean([errors[name] for name in names], axis=0)
    return _ratio(right, sizes - errors[""])


def _interval(values: Floats) -> Interval:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Interval(float(values[0]), float(low), float(high))
