"""What becomes of the tokens that leave: nothing (gather), or they are merged into their nearest survivor.

Pure tensor code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atp.subset import Subset, gather, numbered, take

__all__ = [
    "Crowd", "Halves", "Matching", "average", "density_peaks", "distances", "gather",
    "halve", "match", "matching_flops", "merge_nearest", "nearest_centre",
]  # fmt: skip


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
class Crowd:
    """What the host knows of the rows that are matched, so that nothing waits for the device and little is masked.

    Attributes:
        live: how many tokens of each row are alive.
        counts: how many of each row are to stay; None = only the device knows.
    """

    live: tuple[int, ...]
    counts: tuple[int, ...] | None = None

    @property
    def most(self) -> int:
        """The most that are alive in a row."""
        return max(self.live, default=0)

    @property
    def alike(self) -> bool:
        """Whether all rows have as many alive."""
        return len(set(self.live)) == 1

    @property
    def leaving(self) -> int | None:
        """How many leave in each row, where that is known, the same in all, and one round does it."""
        if self.counts is None or not self.alike or len(set(self.counts)) != 1:
            return None
        gone = self.live[0] - self.counts[0]
        return gone if 0 <= gone <= self.live[0] // 2 else None

    def after(self) -> Crowd | None:
        """Return the crowd that a round leaves; None = not known."""
        if self.counts is None:
            return None
        return Crowd(tuple(max(n - n // 2, min(n, k)) for n, k in zip(self.live, self.counts, strict=True)), self.counts)

    @property
    def rounds(self) -> int | None:
        """How many rounds it takes until no row has more than its count; None = not known."""
        done, now = 0, self
        while now.counts is not None and any(n > max(k, 1) for n, k in zip(now.live, now.counts, strict=True)):
            done, now = done + 1, now.after() or now
        return None if self.counts is None else done


@dataclass(frozen=True)
class Halves:
    """The live tokens of each row dealt into two halves by rank, and the nearest even one of each odd one.

    Attributes:
        odd: `[B, O]` int64, the tokens of odd rank, dead ones behind; even: `[B, E]`, those of even rank.
        there: `[B, O]` bool, which odd ones are alive; None = all.
        best: `[B, O]`, cosine to the nearest live token of even rank.
        partner: `[B, O]` int64, that token.
        likeness: `[B * stretches, O', E']`, the products; -2 at dead even ones.
    """

    odd: Tensor
    even: Tensor
    there: Tensor | None
    best: Tensor
    partner: Tensor
    likeness: Tensor

    def found(self) -> Tensor:
        """`[B, E]`, cosine of an even token to its nearest odd one."""
        likeness = self.likeness
        if self.there is not None:
            there = _stretched(self.there, len(likeness) // len(self.odd), likeness.shape[1])
            likeness = likeness.masked_fill(~there.unsqueeze(2), -2.0)
        return likeness.amax(1).view(len(self.odd), -1)[:, : self.even.shape[1]]


def _stretched(part: Tensor, stretches: int, width: int) -> Tensor:
    """Cut `[B, n, ...]` into stretches, `[B * stretches, width, ...]`, the last one padded with zeros."""
    if stretches == 1:
        return part
    padding = [0, 0] * (part.dim() - 2) + [0, stretches * width - part.shape[1]]
    return torch.nn.functional.pad(part, padding).reshape(-1, width, *part.shape[2:])


def halve(unit: Tensor, alive: Tensor, crowd: Crowd | None = None, window: int | None = None) -> Halves:
    """Deal the live tokens into halves and compare the halves: a quarter of the products of all with all.

    Args:
        unit: `[B, N, D]` of length 1.
        alive: `[B, N]` bool.
        crowd: what the host knows of them.
        window: compare an odd token with so many even ones only, those in its own stretch of the order; None = with all.
    """
    most = alive.shape[1] if crowd is None else crowd.most
    full = crowd is not None and crowd.alike
    order = torch.sort(alive.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :most]
    states = unit if full and most == unit.shape[1] else take(unit, order)
    there = None if full else alive.gather(1, order)
    odd, even = order[:, 1::2], order[:, 0::2]
    width = even.shape[1] if window is None else min(even.shape[1], window)
    stretches = -(-even.shape[1] // max(width, 1))
    theirs = _stretched(states[:, 0::2], stretches, width)
    likeness = torch.bmm(_stretched(states[:, 1::2], stretches, width), theirs.transpose(1, 2))
    if there is not None or stretches > 1:
        held = torch.ones_like(even, dtype=torch.bool) if there is None else there[:, 0::2]
        likeness = likeness.masked_fill(~_stretched(held, stretches, width).unsqueeze(1), -2.0)
    best, at = likeness.max(2)
    if stretches > 1:
        at = at + torch.arange(stretches, device=at.device).repeat(len(alive)).unsqueeze(1) * width
        best, at = (part.view(len(alive), -1)[:, : odd.shape[1]] for part in (best, at))
    return Halves(odd, even, None if there is None else there[:, 1::2], best, even.gather(1, at), likeness)


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
    crowd: Crowd | None = None,
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
        crowd: what the host knows of the rows; None = ask the device before each round.
        window: as for `halve`.
        first: `halve` of these tokens, where it is known already.
    """
    place = torch.arange(alive.shape[1], device=alive.device).expand_as(alive)
    into, now, done = place, alive, 0
    rounds = None if crowd is None else crowd.rounds
    while True:
        if rounds is None:
            left = now.sum(1)
            crowd = Crowd(tuple(left.tolist()))
        if done == rounds or (rounds is None and int((now.sum(1) - counts).amax()) <= 0):
            return Matching(now, into)
        halves = first if first is not None and done == 0 else halve(unit, now, crowd, window)
        value = halves.best if ease is None else halves.best + ease.gather(1, halves.odd)
        if crowd is not None and crowd.leaving is not None:
            gone = value.sort(dim=1, descending=True, stable=True).indices[:, : crowd.leaving]
            odd, partner = halves.odd.gather(1, gone), halves.partner.gather(1, gone)
            step = place.scatter(1, odd, partner)
            now = now.scatter(1, odd, False)
        else:
            step = place.scatter(1, halves.odd, _partners(now, counts, value, halves))
            now = now & (step == place)
        into = step if done == 0 else step.gather(1, into)
        done, crowd = done + 1, None if crowd is None else crowd.after()


def _partners(now: Tensor, counts: Tensor, value: Tensor, halves: Halves) -> Tensor:
    """Return `[B, O]`, where each odd token goes in a round: to its partner, or nowhere, which is itself."""
    there = torch.ones_like(halves.odd, dtype=torch.bool) if halves.there is None else halves.there
    order = value.masked_fill(~there, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    most = torch.minimum(now.sum(1) - counts, there.sum(1)).clamp(min=0).unsqueeze(1)
    rank = torch.arange(order.shape[1], device=order.device).expand_as(order)
    goes = torch.zeros_like(there).scatter(1, order, rank < most)
    return torch.where(goes, halves.partner, halves.odd)


def matching_flops(alive: int, kept: int, width: int, window: int | None = None) -> float:
    """FLOPs of `match` for one row, from `alive` to `kept` tokens: the products of the halves, round by round."""
    spent = 0.0
    while alive > max(kept, 1):
        odds, evens = alive // 2, alive - alive // 2
        spent += 2.0 * odds * (evens if window is None else min(evens, window)) * width
        alive -= odds
    return spent


def average(hidden: Tensor, into: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each survivor's group, weighted by sizes; what stands at other tokens means nothing.

    Args:
        hidden: `[B, N, D]`.
        into: `[B, N]`, the survivor each token went into.
        size: `[B, N]`, how many tokens each stands for, 0 where it has left before.

    Returns:
        `[B, N, D]`, and the new sizes `[B, N]`.
    """
    heavy = hidden * size.to(hidden.dtype).unsqueeze(-1)
    total = torch.zeros_like(hidden)
    if len(hidden) == 1:
        total = total.scatter_add(1, into.unsqueeze(-1).expand_as(hidden), heavy)
    else:  # rows of one matrix: a fraction of the time
        rows = numbered(into, hidden.shape[1]).unsqueeze(1).expand(-1, hidden.shape[2])
        total = total.flatten(0, 1).scatter_add(0, rows, heavy.flatten(0, 1)).view(hidden.shape)
    grown = torch.zeros_like(size).scatter_add(1, into, size)
    return total / grown.clamp(min=1).to(hidden.dtype).unsqueeze(-1), grown


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
