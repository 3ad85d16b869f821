"""ToMe: merge the most similar patches pair by pair. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.fusion import matching_flops
from atp.methods.base import Method, Work, checked, register
from atp.plan import Site
from atp.tokens import Tokens


@register("tome")
@dataclass(frozen=True)
class ToMe(Method):
    """Split the patches into two alternating sets and merge the most similar pairs across them, at every layer of the tower.

    Similarity is the cosine of the keys, averaged over the heads; a merged token is the mean of all patches it stands for.

    Differences from the authors' code: tokens merge between two layers, not between attention and MLP; the survivor stays at
    its place, so the raster order holds; a site that must lose more than half merges in several rounds. A patch's parity
    counts the class token before it, also where there is none.

    Attributes:
        proportional: where attention counts a merged patch as the patches it stands for (log of its size is added to its logits):
            `tower` as the authors (section 3, "tracking token size"; they leave it out for MAE towers), `none`, or `all`: in the
            language model too, of which the paper knows nothing.
        embeddings: whether patches merge before the tower's first layer, too, by their embeddings' cosine; not in the paper.

    Cost: 2 x odd x even x head_dim FLOPs an image, site and round: half of the live patches against the other half.
    """

    proportional: str = "tower"
    embeddings: bool = False

    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("keys",)}
    stacks: ClassVar[tuple[str, ...]] = ("vision",)
    fuses: ClassVar[bool] = True
    paper: ClassVar[str] = "Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023"
    url: ClassVar[str] = "https://arxiv.org/abs/2210.09461"

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return all layers of the tower, the first one only if embeddings merge."""
        return tuple(Site("vision", layer) for layer in range(0 if self.embeddings else 1, shape.vision.layers))

    def __post_init__(self) -> None:
        checked("proportional", self.proportional, ("tower", "none", "all"))
        checked("embeddings", self.embeddings, (True, False))

    def embedded(self, stack: str) -> bool:
        """Return whether this is the tower: a plan may have a site before its first layer."""
        return stack == "vision"

    def weighs(self, stack: str) -> bool:
        """Return whether merged patches count for what they stand for there."""
        return self.proportional == "all" or (self.proportional == "tower" and stack == "vision")

    def score(self, tokens: Tokens) -> Tensor:
        """Return the distance to the most similar live patch of the other set, at least 0."""
        halves = tokens.halves()
        best = torch.full_like(tokens.unit_keys[..., 0], -1.0).scatter(1, halves.odd, halves.best)
        return (1 - best.scatter(1, halves.even, halves.found())).clamp(min=0)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the tokens that are left after merging down to the counts."""
        tokens.notes["matching"] = tokens.matched(counts)
        return tokens.notes["matching"].keep  # type: ignore[no-any-return]

    def fuse(self, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Average every group, weighted by sizes."""
        matching = tokens.notes.get("matching")
        if matching is None or matching.keep is not keep:
            matching = tokens.matched(keep.sum(1))
        return tokens.merged(hidden, matching)

    def flops(self, work: Work) -> float:
        """Return those of the similarity of keys."""
        return matching_flops(work.alive, work.kept, work.head_dim)
