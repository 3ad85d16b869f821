"""SparseVLM: what the image's words look at stays, the best of the rest is recycled. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.fusion import density_peaks, distances, nearest_centre
from atp.methods.base import Method, Work, largest, register, top
from atp.plan import Site
from atp.tokens import Rows, Tokens


@register("sparsevlm")
@dataclass(frozen=True)
class SparseVLM(Method):
    """Rank visual tokens by the attention of the question's words that the image speaks to, and recycle the best that leave.

    Raters are words whose share of softmax(visual embeddings x text embeddings), taken over the words, is above the mean. The
    best 30 % of what leaves fall into clusters (density peaks), whose means stay; they count as kept.

    Differences from the authors' code: one rater row each, not full maps in every layer, on any batch (theirs writes all rows'
    choices into the first); words are the question's (theirs: all after the image, template too), chosen anew at each site; a
    cluster stands at the place of its centre; positions keep their gaps; no noise on densities. `rank=True` is their version
    1.0, in effect the number of raters times a constant: adaptive steps keep rank x `threshold` tokens (13.5 for 192).
    Cost: 2 x R x keys x heads x head_dim FLOPs a prompt and site for R words, 2 x N x R x hidden to choose raters, and
    4 x M x M x hidden for M = 30 % of the tokens that leave.

    Attributes:
        recycle: whether clusters of dropped tokens stay.
        rank: whether adaptive steps use the rank rule.
    """

    recycle: bool = True
    rank: bool = False

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"language": ("question",)}
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"language": ("embeddings",)}
    stacks: ClassVar[tuple[str, ...]] = ("language",)
    fuses: ClassVar[bool] = True
    paper: ClassVar[str] = "Zhang et al., SparseVLM: Visual Token Sparsification for Efficient VLM Inference, ICML 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2410.04417"

    def __post_init__(self) -> None:
        for name, value in (("recycle", self.recycle), ("rank", self.rank)):
            if not isinstance(value, bool):
                raise InvalidPlan(f"{name} is True or False, got {value!r}; e.g. {name}=True")

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the inputs of the layers after 2, 6 and 15 of the authors' 32, by depth."""
        layers = shape.language.layers
        places = {max(1, round(layers * after / 32)) for after in (3, 7, 16)}
        return tuple(Site("language", at) for at in sorted(places) if at < layers)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the mean row of the raters."""
        rows = tokens.rows["question"]
        return Rows(rows.values, raters(rows, tokens), rows.sees).mean()

    def count(self, scores: Tensor, tokens: Tokens, threshold: float) -> Tensor | None:
        """Return rank x threshold, and the clusters; None without `rank`."""
        if not self.rank:
            return None
        rows, total = tokens.rows["question"], tokens.alive.sum(1)
        block = rows.values * (raters(rows, tokens).unsqueeze(-1) & tokens.alive.unsqueeze(1))
        found = torch.linalg.matrix_rank(block.to(torch.promote_types(block.dtype, torch.float32)))
        kept = torch.minimum((found * threshold).to(torch.int64), total - 1).clamp(min=1)
        return torch.where(found == total, total, kept + (clusters(total - kept) if self.recycle else 0))

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the best tokens and the centres of the clusters."""
        best, extra = self.split(scores, tokens.alive, counts)
        index, valid = candidates(scores, tokens.alive & ~best, extra)
        if index.shape[1] == 0:
            return best
        states = tokens.hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.hidden.shape[2]))
        centres = density_peaks(distances(states) / states.shape[2] ** 0.5, valid, extra)
        return best | torch.zeros_like(best).scatter(1, index, centres)

    def split(self, scores: Tensor, alive: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens `[B, N]` kept for themselves, and how many clusters `[B]` come on top."""
        kept = without_clusters(alive.sum(1), counts, alive.shape[1]) if self.recycle else counts
        best = top(scores, alive, kept)
        return best, counts - best.sum(1)

    def fuse(self, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, None]:
        """Put the mean of each cluster at its centre."""
        best, extra = self.split(scores, tokens.alive, keep.sum(1))
        index, valid = candidates(scores, tokens.alive & ~best, extra)
        if index.shape[1] == 0:
            return hidden, None
        wide = index.unsqueeze(-1).expand(-1, -1, hidden.shape[2])
        states = hidden.gather(1, wide)
        into = nearest_centre(distances(states), (keep & ~best).gather(1, index) & valid)
        total = torch.zeros_like(states).scatter_add(1, into.unsqueeze(-1).expand_as(states), states * valid.unsqueeze(-1))
        members = torch.zeros_like(states[..., 0]).scatter_add(1, into, valid.to(states.dtype))
        centre = valid & keep.gather(1, index)
        return hidden.scatter(
            1, wide, torch.where(centre.unsqueeze(-1), total / members.clamp(min=1).unsqueeze(-1), states)
        ), None

    def flops(self, work: Work) -> float:
        """Return those of the choice of raters and of the clusters."""
        kept = int(without_clusters(torch.tensor([work.alive]), torch.tensor([work.kept]), work.alive))
        pool = 3 * (work.alive - kept) // 10 + 1 if self.recycle and work.kept < work.alive else 0
        return 2.0 * work.tokens * work.raters * work.hidden + 4.0 * pool**2 * work.hidden


def raters(rows: Rows, tokens: Tokens) -> Tensor:
    """Mark the words `[B, R]` whose share of the image is above the mean; all of them where none is."""
    assert rows.embeddings is not None, "these rows were made without embeddings: name them in the method's `reads`"
    wide = torch.promote_types(rows.embeddings.dtype, torch.float32)
    product = tokens.embeddings.to(wide) @ rows.embeddings.to(wide).transpose(1, 2)  # [B, N, R]
    share = product.masked_fill(~rows.valid.unsqueeze(1), torch.finfo(wide).min).softmax(2)
    share = (share * tokens.alive.unsqueeze(2)).sum(1) / tokens.alive.sum(1, keepdim=True).clamp(min=1)
    mean = share.sum(1, keepdim=True) / rows.valid.sum(1, keepdim=True).clamp(min=1)
    chosen = rows.valid & (share > mean * (1 + 64 * torch.finfo(wide).eps))  # equal shares are not above their mean
    return torch.where(chosen.any(1, keepdim=True), chosen, rows.valid)


def clusters(dropped: Tensor) -> Tensor:
    """Return how many clusters the authors make of so many dropped tokens: one for every ten of the best 30 %."""
    return (3 * dropped // 10 + 1) // 10 + 1


def without_clusters(alive: Tensor, counts: Tensor, most: int) -> Tensor:
    """Return the largest k `[B]` such that k tokens and the clusters of the others are `counts`; `counts` where there is none."""
    tried = torch.arange(most, device=alive.device)
    left = alive.unsqueeze(1) - tried
    fits = (tried + clusters(left) <= counts.unsqueeze(1)) & (left > 0) & (counts < alive).unsqueeze(1)
    return torch.where(fits.any(1), (fits * tried).amax(1), counts)


def candidates(scores: Tensor, gone: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
    """Return places `[B, M]` of the best 30 % of what leaves, and which are valid; none where there are no clusters."""
    wanted = torch.where(extra > 0, 3 * gone.sum(1) // 10 + 1, 0)
    order = scores.masked_fill(~gone, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, : largest(wanted)]
    return order, torch.arange(order.shape[1], device=order.device) < wanted.unsqueeze(1)
