"""What becomes of the tokens that leave: nothing (gather), or they are merged into their nearest survivor.

Pure tensor code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atp.subset import Subset, gather

__all__ = ["density_peaks", "distances", "gather", "merge_nearest", "nearest_centre"]


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
