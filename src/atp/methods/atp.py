"""ATP: what the question looks at, mixed with what the image itself looks at. Knows tensors, nothing of models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.fusion import Matching, matching_flops
from atp.methods.base import Method, Work, checked, even, received, register, relative, top
from atp.plan import Site
from atp.tokens import Tokens

INTRA = ("received", "carried", "none")
FAINT = 1e-3  # saliency below is not told apart
WINDOW = 512  # a patch is compared with so many others: those of its stretch, where an image has more than twice as many


@register("atp")
@dataclass(frozen=True)
class ATP(Method):
    """Mix inter-modal saliency (question tokens -> visual tokens) with intra-modal saliency, each with mean 1.

    In the tower a patch scores by the class token's row, or without class token by the attention it receives from at most
    32 sampled patches. In the language model it scores `alpha * inter + (1 - alpha) * intra`.

    Differences from the paper: its relevance is the cosine to a separate text encoder; here the model's own attention, of the
    question's tokens without those of the template. The count is the plan's, per input where its steps have thresholds.
    A text token scores `alpha *` what visual tokens give it (average where none sees it, as behind the image) `+ (1 - alpha) *`
    what the question, the last tokens of the prompt, gives it; the latter alone where images are read across, whose visual
    tokens attend to no text.

    Attributes:
        alpha: share of inter-modal saliency, in [0, 1].
        intra: `received` = attention from sampled visual tokens of the layer before the site; `carried` = the tower's last
            scores (falls back to received where the tower scored nothing); `none` = inter-modal only, as `alpha=1`.
        merge: whether patches of the tower that leave are averaged into the most similar ones that stay (bipartite soft matching,
            as in ToMe), first before the tower's first layer, where near patches of the same look have like embeddings.
            A patch then leaves by its redundancy first: cosine to the nearest patch that stays, of embeddings or later of keys,
            `- protect * log(saliency)`; a text reader of merged patches loses less than one of dropped ones (dev/LOG.md).
        proportional: whether attention, in the tower and the language model, counts a merged patch as the patches it stands for
            (log of its size is added to its logits). Without, models that count by how much they see count too little, and name
            the same thing again and again.
        protect: how much salient patches are protected from merging, at least 0.
        coverage: without `merge`, share of what stays in the tower that is spread evenly over the image instead of chosen by
            score, in [0, 1]. The tower has not seen the question, and with none plain backgrounds vanish wholly.

    Cost: 2 x raters x keys x heads x head_dim FLOPs a site; raters = 1 or 32 in the tower, question (at most 64) + 32 after it;
    merging adds 2 x N/2 x min(N/2, 512) x head_dim FLOPs an image and site, N patches being left.
    """

    alpha: float = 0.5
    intra: str = "received"
    coverage: float = 0.5
    merge: bool = True
    protect: float = 0.1
    proportional: bool = True

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",), "language": ("question", "visual")}
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("keys",)}
    fuses: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("visual", "text")
    text_raters: ClassVar[tuple[str, ...]] = ("question", "visual")
    paper: ClassVar[str] = "Li, Song, Hu, Efficient Vision-Language Reasoning via Adaptive Token Pruning, 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2512.12701"

    def __post_init__(self) -> None:
        for name, value, usual in (("alpha", self.alpha, 0.5), ("coverage", self.coverage, 0.5)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
                raise InvalidPlan(f"{name} is a share in [0, 1], got {value!r}; e.g. {name}={usual}")
        checked("intra", self.intra, INTRA)
        checked("merge", self.merge, (True, False))
        checked("proportional", self.proportional, (True, False))
        if isinstance(self.protect, bool) or not isinstance(self.protect, (int, float)) or not 0.0 <= self.protect < 100:
            raise InvalidPlan(f"protect is a number >= 0, got {self.protect!r}; e.g. protect=0.1")

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...] | None:
        """Return four sites from the patches' embeddings to the middle of the tower, and the usual two behind it."""
        if not self.merge:
            return None
        parts = {"vision": (0, 1, 2, 3), "language": (2, 4)}
        layers = {"vision": shape.vision.layers, "language": shape.language.layers}
        found = {Site(name, max(min(part, 1), round(layers[name] * part / 6))) for name in parts for part in parts[name]}
        return tuple(sorted(site for site in found if site.layer < layers[site.stack]))

    def raters(self, stack: str) -> tuple[str, ...]:
        """Return question and, where they have a part in the score, visual raters."""
        if stack == "language" and (self.alpha == 1 or self.intra == "none"):
            return ("question",)
        return self.needs[stack]

    def score(self, tokens: Tokens) -> Tensor:
        """Return saliency with mean 1 over the live tokens."""
        if tokens.kind == "text":
            known = {kind: relative(received(rows), tokens.alive) for kind, rows in tokens.rows.items()}
            asked = known["question"]
            return self.alpha * known["visual"] + (1 - self.alpha) * asked if "visual" in known else asked
        if tokens.stack == "vision":
            return self.saliency(tokens)
        inter = relative(tokens.rows["question"].mean(), tokens.alive)
        if "visual" not in tokens.rows:
            return inter
        return self.alpha * inter + (1 - self.alpha) * self.saliency(tokens)

    def reading(self, stack: str) -> tuple[str, ...]:
        """Return keys where patches merge."""
        return self.reads[stack] if self.merge and stack == "vision" else ()

    def embedded(self, stack: str) -> bool:
        """Return whether patches merge: those of the same look and nearly the same place do so before the first layer."""
        return self.merges(stack)

    def merges(self, stack: str) -> bool:
        """Return whether this is the tower and merging is on: what the question does not ask for is dropped, not merged."""
        return self.merge and stack == "vision"

    def weighs(self, stack: str) -> bool:
        """Return whether patches merge, and merged ones count for what they stand for."""
        return self.merge and self.proportional

    def measures(self, stack: str) -> bool:
        """Return whether patches merge there: how unlike its neighbours a patch is means the same in every image."""
        return self.merges(stack)

    def ease(self, scores: Tensor) -> Tensor:
        """Return what is added to a patch's likeness: salient ones go later."""
        return -self.protect * scores.clamp(min=FAINT).log()

    def measure(self, scores: Tensor, tokens: Tokens) -> Tensor | None:
        """Return what merging a patch would cost: distance to the nearest of the other half, more where salient, at least 0."""
        if not self.merges(tokens.stack):
            return None
        halves = tokens.halves(WINDOW)
        floor = -self.protect * math.log(FAINT)  # so that no cost is negative
        cost = (1 - halves.best).clamp(min=0) - self.ease(scores).gather(1, halves.odd) + floor
        return torch.full_like(scores, 3 + 4 * floor).scatter(1, halves.odd, cost.to(scores.dtype))

    def matching(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Matching:
        """Return who merges into whom; salient patches last."""
        return tokens.matched(counts, self.ease(scores), WINDOW)

    def fuse(self, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Average every group of patches, weighted by sizes; in the language model nothing merges."""
        if not self.merges(tokens.stack):
            return hidden, None
        matching = tokens.notes.get("matching")
        if matching is None or matching.keep is not keep:
            matching = self.matching(scores, tokens, keep.sum(1))
        return tokens.merged(hidden, matching)

    def flops(self, work: Work) -> float:
        """Return those of the similarity of keys."""
        return matching_flops(work.alive, work.kept, work.head_dim, WINDOW) if self.merges(work.stack) else 0.0

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the highest scores; in the tower what matching leaves, or without `merge` also an even spread."""
        if tokens.stack != "vision" or tokens.kind == "text":
            return top(scores, tokens.alive, counts)
        if self.merge:
            tokens.notes["matching"] = self.matching(scores, tokens, counts)
            return tokens.notes["matching"].keep  # type: ignore[no-any-return]
        spread = (counts * self.coverage).to(counts.dtype)
        salient = top(scores, tokens.alive, counts - spread)
        return salient | top(even(tokens), tokens.alive & ~salient, spread)

    def saliency(self, tokens: Tokens) -> Tensor:
        """Return intra-modal saliency `[B, N]`, mean 1; before the first layer nobody has looked yet, and all are alike."""
        if tokens.stack == "vision" and not tokens.rows:
            return torch.ones_like(tokens.alive, dtype=torch.float32)
        if tokens.stack == "vision" and "class" in tokens.rows:
            return relative(tokens.rows["class"].mean(), tokens.alive)
        if tokens.stack == "language" and self.intra == "carried" and tokens.carried is not None:
            known = tokens.carried.isfinite()
            return relative(torch.where(known, tokens.carried, 1.0).to(torch.float32), tokens.alive)
        return relative(received(tokens.rows["visual"]), tokens.alive)
