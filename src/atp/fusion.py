"""What becomes of the tokens that leave: nothing (gather), or they are merged into their nearest survivor.

Pure tensor code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atp.subset import Subset, gather

__all__ = ["average", "density_peaks", "distances", "gather", "match", "merge_nearest", "nearest_centre"]


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


def match(
    likeness: Tensor, alive: Tensor, counts: Tensor, ease: Tensor | None = None, rounds: int | None = None
) -> tuple[Tensor, Tensor]:
    """Merge pairs until each row has `counts` tokens left (bipartite soft matching: Bolya et al., ICLR 2023, section 3).

    In a round the live tokens of odd rank each find the most similar one of even rank; the most similar pairs merge into the
    latter. At most half leaves in a round, so some counts take several.

    Args:
        likeness: `[B, N, N]`.
        alive: `[B, N]` bool.
        counts: `[B]`, at least 1.
        ease: `[B, N]`, added to a token's likeness when pairs are ranked: who should go first; None = 0.
        rounds: how many it takes (`Tokens.rounds`), so that nobody has to wait for the device to tell; None = ask it.

    Returns:
        survivors `[B, N]` bool, and for each token `[B, N]` the survivor that it went into.
    """
    place = torch.arange(alive.shape[1], device=alive.device)
    into, now = place.expand_as(alive), alive
    done = 0
    while int((now.sum(1) - counts).amax()) > 0 if rounds is None else done < rounds:
        done += 1
        odd = now & ((now.cumsum(1) - 1) % 2 == 1)
        best, partner = likeness.masked_fill(~(now & ~odd).unsqueeze(1), -2.0).max(2)
        value = (best if ease is None else best + ease).masked_fill(~odd, -torch.inf)
        order = value.sort(dim=1, descending=True, stable=True).indices
        most = torch.minimum(now.sum(1) - counts, odd.sum(1)).clamp(min=0).unsqueeze(1)
        gone = torch.zeros_like(odd).scatter(1, order, place.expand_as(order) < most)
        into = torch.where(gone, partner, place).gather(1, into)
        now = now & ~gone
    return now, into


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
