"""Where a set of patches lies, in four numbers. numpy only; knows nothing of models.

A patch counts for the object by the share of its area that the object covers, so no threshold decides share and recall. N patches
of an image stand in rows, from the top left.

Sources: pointing game, Zhang et al. 2016 (https://arxiv.org/abs/1608.00507); grounding, Hudson and Manning 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atp.evals.tasks import gqa_rules

MEASURES = ("share", "recall", "pointing", "gqa")
"""Mean cover of the patches that stay; cover that stays of all cover; highest score on the object; GQA's grounding score."""
ON = 0.25  # covered share from which a patch is a hit of the pointing game: ours

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Box = tuple[float, float, float, float]
Values = dict[str, float]


def cover(mask: Bools, grid: tuple[int, int], box: Box | None = None) -> Floats:
    """Return the share of each patch's area that a mask covers, `[N]`.

    Args:
        mask: `[height, width]` of the image.
        grid: (height, width) in patches.
        box: (left, top, right, bottom) in pixels, the part of the image that the model sees; None = all.
    """
    left, top, right, bottom = box or (0, 0, mask.shape[1], mask.shape[0])
    shares: Floats = _overlap(top, bottom, grid[0], mask.shape[0]) @ mask @ _overlap(left, right, grid[1], mask.shape[1]).T
    return shares.reshape(-1)


def _overlap(low: float, high: float, cells: int, pixels: int) -> Floats:
    """Return the share of each of `cells` equal parts of [low, high] that each pixel takes, `[cells, pixels]`."""
    edges = np.linspace(low, high, cells + 1)
    pixel = np.arange(pixels)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    found: Floats = shared.clip(min=0.0) * cells / (high - low)
    return found


def attention(scores: Floats | None, kept: Bools) -> Floats:
    """Return weights of sum 1 over the patches that stay, `[N]`: their scores where these say anything, else equal ones."""
    weights: Floats = np.zeros(len(kept))
    if scores is not None:
        weights = np.where(kept & np.isfinite(scores), scores, 0.0).clip(min=0.0)
    if not weights.any():
        weights = kept.astype(np.float64)
    total: Floats = weights / max(float(weights.sum()), 1e-300)
    return total


def gqa(weights: Floats, grid: tuple[int, int], regions: Sequence[Box]) -> float:
    """GQA's grounding score of attention over patches; NaN where a question points at nothing.

    Args:
        weights: `[N]`, sum 1.
        grid: (height, width) in patches.
        regions: of the objects that the question names, as shares of the image's sides.
    """
    if not regions:
        return math.nan
    row, column = np.divmod(np.arange(len(weights)), grid[1])
    edges = [column / grid[1], row / grid[0], (column + 1) / grid[1], (row + 1) / grid[0]]
    return gqa_rules.grounding(regions, np.stack([*edges, weights], 1), boxes=True)


def pointing(covered: Floats, scores: Floats | None, alive: Bools) -> float:
    """Whether the highest score lies on the object, 0 or 1, the mean over equal ones; NaN where nothing was scored."""
    if scores is None or not alive.any():
        return math.nan
    live = np.where(alive & np.isfinite(scores), scores, -np.inf)
    best = live == live.max()
    return float((covered[best] >= ON).mean()) if np.isfinite(live.max()) else math.nan


def measured(
    covered: Floats,
    grid: tuple[int, int],
    regions: Sequence[Box],
    kept: Bools,
    scores: Floats | None = None,
    alive: Bools | None = None,
) -> Values:
    """Measure a selection.

    Args:
        covered: from `cover`, `[N]`, not all 0.
        grid, regions: see `gqa`.
        kept: `[N]`.
        scores: `[N]` by which it was chosen, higher = keep; None = by none.
        alive: `[N]`, patches that were there to choose from; None = all.
    """
    alive = np.ones(len(kept), dtype=bool) if alive is None else alive
    return {
        "share": float(covered[kept].mean()) if kept.any() else math.nan,
        "recall": float(covered[kept].sum() / covered.sum()),
        "pointing": pointing(covered, scores, alive),
        "gqa": gqa(attention(scores, kept), grid, regions),
    }


def expected(covered: Floats, grid: tuple[int, int], regions: Sequence[Box], count: int) -> Values:
    """Return what `count` patches drawn blindly give on average, without drawing any."""
    size = len(covered)
    return {
        "share": float(covered.mean()) if count else math.nan,
        "recall": count / size,
        "pointing": float((covered >= ON).mean()),
        "gqa": gqa(np.full(size, 1 / size), grid, regions),
    }


def drawn(covered: Floats, grid: tuple[int, int], regions: Sequence[Box], count: int, rng: np.random.Generator) -> Values:
    """Measure `count` patches drawn by random scores, which are no attention: GQA's score weighs them equally."""
    scores = rng.random(len(covered))
    kept = highest(scores, count)
    return measured(covered, grid, regions, kept, scores) | {"gqa": gqa(attention(None, kept), grid, regions)}


def highest(scores: Floats, count: int) -> Bools:
    """Mark the `count` highest scores, `[N]`; of equal ones the earlier."""
    kept = np.zeros(len(scores), dtype=bool)
    kept[np.argsort(-scores, kind="stable")[:count]] = True
    return kept
