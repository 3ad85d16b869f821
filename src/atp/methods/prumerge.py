"""LLaVA-PruMerge(+): patches that stand out, an even grid, and the rest merged into them. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.methods.base import Method, Work, class_attention, largest, rank, register, top, tower_end
from atp.plan import Site
from atp.tokens import Tokens

NEIGHBOURS = 32  # the authors' k


@register("prumerge")
@dataclass(frozen=True)
class PruMerge(Method):
    """Keep the patches of highest class-token attention and add to each its 32 neighbours by key, weighted by their attention.

    One more token is the attention-weighted sum of all that left; PruMerge+ gives a share of the places to an even grid. At an
    adaptive step the outliers of attention (above Q3 + 1.5 IQR), times `threshold`, are the places without the grid's.

    Differences from the authors' code: attention is that of the layer before the site, averaged over the heads (theirs: the
    site's own, as one head of full width); the extra token stands at the place of the lowest kept score and counts as kept;
    the order is raster; grid places never repeat; no outlier keeps 1 token (theirs: division by zero), many keep at most all
    (theirs: error above 1/3, no reduction above 1/6); outliers are each image's own (theirs: of the whole batch).
    Cost: the rows of `fastervlm`, 2 x K x N x key_width FLOPs for the neighbours of K kept and 2 x K x N x hidden for the sums.

    Attributes:
        grid: share of the places that go to an even grid: 0 is PruMerge, 0.5 PruMerge+ at the authors' fixed ratios, 0.75 about
            their adaptive one.
    """

    grid: float = 0.5

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",)}
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("keys",)}
    stacks: ClassVar[tuple[str, ...]] = ("vision",)
    fuses: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Shang et al., LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models, ICCV 2025"
    )
    url: ClassVar[str] = "https://arxiv.org/abs/2403.15388"

    def __post_init__(self) -> None:
        if isinstance(self.grid, bool) or not isinstance(self.grid, (int, float)) or not 0 <= self.grid < 1:
            raise InvalidPlan(f"grid is a share in [0, 1), got {self.grid!r}; e.g. grid=0.5")

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the tower's end."""
        return tower_end(shape)

    def score(self, tokens: Tokens) -> Tensor:
        """Return the class token's row."""
        return class_attention(tokens)

    def count(self, scores: Tensor, tokens: Tokens, threshold: float) -> Tensor:
        """Return outliers, the grid's places, and the extra token."""
        return (outliers(scores, tokens.alive) * (threshold / (1 - self.grid)) + 1e-6).to(torch.int64) + 1

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return picks, grid, and the place of the extra token."""
        return self.picks(scores, tokens.alive, counts) | self.extra(scores, tokens.alive, counts)

    def picks(self, scores: Tensor, alive: Tensor, counts: Tensor) -> Tensor:
        """Mark what is kept for itself `[B, N]`: one less than `counts` where anything leaves."""
        wanted = counts - ((counts > 1) & (counts < alive.sum(1))).to(counts.dtype)
        spread = (wanted * self.grid).to(wanted.dtype)
        best = top(scores, alive, wanted - spread)
        return best | even(alive & ~best, spread)

    def extra(self, scores: Tensor, alive: Tensor, counts: Tensor) -> Tensor:
        """Mark the best of those that leave, whose place the extra token takes."""
        picks = self.picks(scores, alive, counts)
        return top(scores, alive & ~picks, counts - picks.sum(1))

    def fuse(self, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, None]:
        """Add the neighbours to the picks; sum what leaves into the extra token."""
        alive, counts = tokens.alive, keep.sum(1)
        picks, extra = self.picks(scores, alive, counts), self.extra(scores, alive, counts)
        index = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices[:, : largest(counts)]
        weight = scores.masked_fill(~alive, 0.0).to(hidden.dtype)
        share = neighbours(tokens.keys.flatten(2), alive, index).to(hidden.dtype) * weight.unsqueeze(1)
        left = (weight * (alive & ~picks)).unsqueeze(1)  # the patch at the extra token's place is among them
        last = extra.gather(1, index).unsqueeze(-1)
        grows = (picks & (counts < alive.sum(1)).unsqueeze(1)).gather(1, index).unsqueeze(-1)
        added = torch.where(last, left, share * grows) @ hidden.masked_fill(~alive.unsqueeze(-1), 0.0)
        wide = index.unsqueeze(-1).expand_as(added)
        return hidden.scatter(1, wide, hidden.gather(1, wide).masked_fill(last, 0.0) + added), None

    def flops(self, work: Work) -> float:
        """Return those of neighbours and sums."""
        return 2.0 * work.kept * work.tokens * (work.head_dim * work.key_heads + work.hidden)


def outliers(scores: Tensor, alive: Tensor) -> Tensor:
    """Count `[B]` the live scores above Q3 + 1.5 IQR, quartiles by linear interpolation."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    ordered = wide.masked_fill(~alive, torch.inf).sort(1).values
    last = (alive.sum(1, keepdim=True) - 1).clamp(min=0)

    def quantile(share: float) -> Tensor:
        at = last * share
        low = at.floor().to(torch.int64)
        below, above = ordered.gather(1, low), ordered.gather(1, torch.minimum(low + 1, last))
        return below + (above - below) * (at - low)

    first, third = quantile(0.25), quantile(0.75)
    return ((wide > third + 1.5 * (third - first)) & alive).sum(1)


def even(rest: Tensor, counts: Tensor) -> Tensor:
    """Mark `counts` `[B]` of the marked places of each row, spread evenly."""
    total, wanted = rest.sum(1, keepdim=True).clamp(min=1), counts.unsqueeze(1)
    number = rank(rest)
    return rest & ((number + 1) * wanted // total > number * wanted // total)


def neighbours(keys: Tensor, alive: Tensor, index: Tensor) -> Tensor:
    """Mark `[B, K, N]`, for places `[B, K]`, the 32 other live tokens whose keys `[B, N, W]` are most similar."""
    unit = torch.nn.functional.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1)
    own = unit.gather(1, index.unsqueeze(-1).expand(-1, -1, unit.shape[2]))
    barred = (torch.arange(alive.shape[1], device=alive.device) == index.unsqueeze(-1)) | ~alive.unsqueeze(1)
    near = (own @ unit.transpose(1, 2)).masked_fill(barred, -torch.inf)
    order = near.sort(dim=2, descending=True, stable=True).indices[..., :NEIGHBOURS]
    return torch.zeros_like(near, dtype=torch.bool).scatter(2, order, True) & ~barred
