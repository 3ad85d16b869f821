"""What becomes of the tokens that leave: nothing (gather), or they are merged into their nearest survivor.

Pure tensor code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atp.subset import Subset, gather

__all__ = [
    "Halves",
    "Matching",
    "average",
    "density_peaks",
    "distances",
    "gather",
    "halve",
    "match",
    "matching_flops",
    "merge_nearest",
    "nearest_centre",
]


def merge_nearest(full: Tensor, subset: Subset, dropped: Tensor) -> Tensor:
    """Average every dropped token into the survivor of the highest cosine similarity.

    Args:
        full: `[B, T, D]`.
        subset: the rows that stay.
        dropped: `[B, T]` bool, the rows that leave here (not those gone before, nor padding).

    Returns:
        `[B, K, D]`, the survivors; each the mean of itself and the tokens merged into it.

    Example:
        >>> subset = build(torch.tensor([[True, False]]), [1])
        >>> merge_nearest(torch.tensor([[[1.0], [3.0]]]), subset, torch.tensor([[False, True]]))
        tensor([[[2.]]])
    """
    kept = gather(full, subset)
    unit, target = torch.nn.functional.normalize(full, dim=-1), torch.nn.functional.normalize(kept, dim=-1)
    likeness = unit @ target.transpose(1, 2)  # [B, T, K]
    if subset.valid is not None:
        likeness = likeness.masked_fill(~subset.valid.unsqueeze(1), -2.0)
    share = torch.zeros_like(likeness).scatter(2, likeness.argmax(2, keepdim=True), 1.0) * dropped.unsqueeze(-1)
    return (kept + share.transpose(1, 2) @ full) / (1 + share.sum(1).unsqueeze(-1))


@dataclass(frozen=True)
class Halves:
    """The live tokens of each row dealt into two halves by rank, and the nearest even one of each odd one.

    Attributes:
        odd: `[B, O]` int64, the tokens of odd rank, dead ones behind.
        there: `[B, O]` bool, which of them are alive.
        best: `[B, O]`, cosine to the nearest live token of even rank.
        partner: `[B, O]` int64, that token.
        even: `[B, E]` int64, the tokens of even rank, dead ones behind.
        found: `[B, E]`, cosine of an even token to its nearest odd one.
    """

    odd: Tensor
    there: Tensor
    best: Tensor
    partner: Tensor
    even: Tensor
    found: Tensor


def halve(unit: Tensor, alive: Tensor, live: int | None = None, window: int | None = None) -> Halves:
    """Deal the live tokens into halves and compare the halves: a quarter of the products of all with all.

    Args:
        unit: `[B, N, D]` of length 1.
        alive: `[B, N]` bool.
        live: at least the most that are alive in a row, known on the host; None = N.
        window: compare an odd token with so many even ones only, those in its own stretch of the order; None = with all.
    """
    order = torch.sort(alive.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :live]
    there, states = alive.gather(1, order), unit.gather(1, order.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))
    even, odd = order[:, 0::2], order[:, 1::2]
    batch, evens, odds = len(alive), even.shape[1], odd.shape[1]
    width = evens if window is None or evens <= window else window
    stretches = -(-evens // max(width, 1))

    def stretch(part: Tensor) -> Tensor:
        """`[B, E or O, ...]` -> `[B * stretches, width, ...]`, padded with zeros."""
        padding = [0, 0] * (part.dim() - 2) + [0, stretches * width - part.shape[1]]
        return torch.nn.functional.pad(part, padding).reshape(batch * stretches, width, *part.shape[2:])

    likeness = stretch(states[:, 1::2]) @ stretch(states[:, 0::2]).transpose(1, 2)
    masked = likeness.masked_fill(~stretch(there[:, 0::2]).unsqueeze(1), -2.0)
    best, at = masked.max(2)
    offset = torch.arange(stretches, device=alive.device).repeat(batch).unsqueeze(1) * width
    found = likeness.masked_fill(~stretch(there[:, 1::2]).unsqueeze(2), -2.0).amax(1)
    at = (at + offset).view(batch, -1)[:, :odds]
    return Halves(odd, there[:, 1::2], best.view(batch, -1)[:, :odds], even.gather(1, at), even, found.view(batch, -1)[:, :evens])


@dataclass(frozen=True)
class Matching:
    """Who stays `[B, N]` bool, and for each token `[B, N]` the survivor that it went into."""

    keep: Tensor
    into: Tensor


def match(
    unit: Tensor,
    alive: Tensor,
    counts: Tensor,
    ease: Tensor | None = None,
    rounds: int | None = None,
    live: int | None = None,
    wanted: int | None = None,
    window: int | None = None,
    first: Halves | None = None,
) -> Matching:
    """Merge pairs until each row has `counts` tokens left (bipartite soft matching: Bolya et al., ICLR 2023, section 3).

    In a round the live tokens of odd rank each find the most similar one of even rank; the most similar pairs merge into the
    latter. At most half leaves in a round, so some counts take several.

    Args:
        unit: `[B, N, D]` of length 1, what tokens are compared by.
        alive: `[B, N]` bool.
        counts: `[B]`, at least 1.
        ease: `[B, N]`, added to a token's likeness when pairs are ranked: who should go first; None = 0.
        rounds: how many it takes (`Tokens.rounds`), so that nobody has to wait for the device to tell; None = ask it.
        live, window: as for `halve`.
        wanted: the largest of the counts, known on the host; None = not known.
        first: `halve` of these tokens, where it is known already.
    """
    place = torch.arange(alive.shape[1], device=alive.device)
    into, now = place.expand_as(alive), alive
    done = 0
    while True:
        if rounds is None:
            left = now.sum(1)
            over, live = torch.stack([(left - counts).amax(), left.amax()]).tolist()
        if (over <= 0) if rounds is None else (done == rounds):
            break
        halves = first if first is not None and done == 0 else halve(unit, now, live, window)
        done += 1
        value = halves.best if ease is None else halves.best + ease.gather(1, halves.odd)
        order = value.masked_fill(~halves.there, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        most = torch.minimum(now.sum(1) - counts, halves.there.sum(1)).clamp(min=0).unsqueeze(1)
        goes = torch.zeros_like(halves.there).scatter(1, order, place[: order.shape[1]].expand_as(order) < most)
        step = place.expand_as(alive).scatter(1, halves.odd, torch.where(goes, halves.partner, halves.odd))
        into, now = step.gather(1, into), now & (step == place)
        if live is not None and wanted is not None:
            live = max(live - live // 2, wanted)
    return Matching(now, into)


def matching_flops(alive: int, kept: int, width: int, window: int | None = None) -> float:
    """FLOPs of `match` for one row, from `alive` to `kept` tokens: the products of the halves, round by round."""
    spent = 0.0
    while alive > max(kept, 1):
        odds, evens = alive // 2, alive - alive // 2
        spent += 2.0 * odds * (evens if window is None else min(evens, window)) * width
        alive -= odds
    return spent


def average(hidden: Tensor, keep: Tensor, into: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Replace each survivor by the mean of its group, weighted by sizes.

    Args:
        hidden: `[B, N, D]`.
        keep: `[B, N]` bool, the survivors.
        into: `[B, N]`, the survivor each token went into.
        size: `[B, N]`, how many tokens each stands for, 0 where it has left before.

    Returns:
        `[B, N, D]`, and the new sizes `[B, N]`.
    """
    heavy = hidden * size.to(hidden.dtype).unsqueeze(-1)
    total = torch.zeros_like(hidden).scatter_add(1, into.unsqueeze(-1).expand_as(hidden), heavy)
    grown = torch.zeros_like(size).scatter_add(1, into, size)
    mean = total / grown.clamp(min=1).to(hidden.dtype).unsqueeze(-1)
    return torch.where(keep.unsqueeze(-1), mean, hidden), grown


def distances(points: Tensor) -> Tensor:
    """Euclidean distances `[B, M, M]` of points `[B, M, D]`, in float32 or float64."""
    wide = points.to(torch.promote_types(points.dtype, torch.float32))
    square = wide.square().sum(2)
    same = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    apart = square.unsqueeze(2) + square.unsqueeze(1) - 2 * wide @ wide.transpose(1, 2)
    return apart.clamp(min=0).sqrt().masked_fill(same, 0.0)


def density_peaks(apart: Tensor, valid: Tensor, clusters: Tensor) -> Tensor:
    """Choose cluster centres: points in dense places, far from any denser one (Rodriguez and Laio, Science 2014).

    Density is exp(-mean squared distance to as many nearest points as there are clusters, itself included). Densities are
    compared as logarithms, which do not underflow.

    Args:
        apart: `[B, M, M]` distances.
        valid: `[B, M]` bool; invalid points are neither centres nor neighbours.
        clusters: `[B]`, at most as many as valid points.

    Returns:
        `[B, M]` bool, `clusters` centres in each row; ties go to the earlier point.
    """
    there = valid.unsqueeze(1) & valid.unsqueeze(2)
    closest = apart.masked_fill(~valid.unsqueeze(1), torch.inf).sort(2).values.square()
    counted = torch.arange(apart.shape[1], device=apart.device) < clusters.view(-1, 1, 1)
    density = -closest.masked_fill(~counted, 0.0).sum(2) / clusters.clamp(min=1).unsqueeze(1)
    denser = (density.unsqueeze(1) > density.unsqueeze(2)) & there
    most = apart.masked_fill(~there, 0.0).flatten(1).amax(1, keepdim=True)
    gap = apart.masked_fill(~denser, torch.inf).amin(2)
    gap = torch.where(gap.isfinite(), gap, most).clamp(min=torch.finfo(apart.dtype).tiny)
    order = (density + gap.log()).masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    taken = torch.arange(order.shape[1], device=order.device) < clusters.unsqueeze(1)
    return torch.zeros_like(valid).scatter(1, order, taken.expand_as(order)) & valid


def nearest_centre(apart: Tensor, centres: Tensor) -> Tensor:
    """Return `[B, M]`, the centre nearest to each point; a centre is its own."""
    place = torch.arange(centres.shape[1], device=centres.device)
    near = apart.masked_fill(~centres.unsqueeze(1), torch.inf).argmin(2)
    return torch.where(centres, place, near)
