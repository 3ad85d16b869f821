"""The gate: tiny trained modules correct ATP's saliency. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.fusion import Matching, matching_flops
from atp.methods import weights as files
from atp.methods.base import Method, Work, class_attention, even, received, register, relative, top
from atp.plan import Site
from atp.tokens import Tokens

SALIENCY, PLACE = 2, 2  # features of a token besides its states
COVERAGE = 0.5
LEAST = 1e-4  # saliency below is not told apart: its logarithm is a feature
PROTECT, FAINT, WINDOW = 0.1, 1e-3, 512  # of merging, as in `atp`


@register("gate")
@dataclass(frozen=True)
class Gate(Method):
    """Score tokens by a trained correction of ATP's saliency, from states, question, saliency and place.

    Untrained it keeps what `atp` keeps. Tower sites that the file has no module for are `atp`'s: patches merge by redundancy,
    and the modules say what the language model drops. With a module, a tower site drops by score. Trained by distillation from
    the unpruned model, whose weights stay as they are (`atp train-gate`); at most 0.5 % of the model's parameters.

    Differences from the paper: its gating module is a formula and has nothing to train; this one is free design.
    Cost: ATP's rows, and per token 2 x (D x rank + features x width + width) FLOPs.

    Attributes:
        weights: file of `atp train-gate`.
        coverage: where the file has modules for the tower: share of what stays there that is spread evenly over the image.
    """

    weights: str = ""
    coverage: float = COVERAGE

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("class",), "language": ("question", "visual")}
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("keys",), "language": ("text",)}
    fuses: ClassVar[bool] = True
    trained: ClassVar[bool] = True
    paper: ClassVar[str] = "Li, Song, Hu, Efficient Vision-Language Reasoning via Adaptive Token Pruning, 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2512.12701"

    def __post_init__(self) -> None:
        if isinstance(self.coverage, bool) or not isinstance(self.coverage, (int, float)) or not 0.0 <= self.coverage <= 1.0:
            raise InvalidPlan(f"coverage is a share in [0, 1], got {self.coverage!r}; e.g. coverage=0.5")
        object.__setattr__(self, "weights", str(self.weights))
        _ = self.header

    @cached_property
    def _read(self) -> tuple[files.Header, dict[str, Scorer]]:
        header, tensors = files.load(self.weights, self.name)
        modules = {}
        try:
            for site in header.sites:
                state = files.of_site(tensors, site)
                modules[site] = Scorer(state["token.weight"].shape[1], header.sizes["rank"], header.sizes["width"], site)
                modules[site].load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise InvalidPlan(f"{self.weights!r} is damaged ({error!r}); train it again: atp train-gate") from None
        return header, {site: module.eval().requires_grad_(False) for site, module in modules.items()}

    @property
    def header(self) -> files.Header:
        """What the file says of itself."""
        return self._read[0]

    def fits(self, mark: Any) -> None:
        """Refuse a model that the weights were not trained beside."""
        self.header.check(self.weights, mark)

    def merges(self, stack: str) -> bool:
        """Return whether this is the tower and the file leaves it to merging."""
        return stack == "vision" and not any(site.startswith("vision") for site in self.header.sites)

    def embedded(self, stack: str) -> bool:
        """Return whether patches merge, which those of like embeddings do before the first layer."""
        return self.merges(stack)

    def weighs(self, stack: str) -> bool:
        """Return whether patches merge, and merged ones count for what they stand for."""
        return self.merges("vision")

    def reading(self, stack: str) -> tuple[str, ...]:
        """Return keys where patches merge, text where modules ask for it."""
        return self.reads[stack] if stack == "language" or self.merges(stack) else ()

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the sites that the file has modules for, and before them those where `atp` merges."""
        depths = (0, 1, 2, 3) if self.merges("vision") else ()
        tower = {max(min(part, 1), round(shape.vision.layers * part / 6)) for part in depths}
        return (*(Site("vision", at) for at in sorted(tower) if at < shape.vision.layers), *self.header.places())

    def score(self, tokens: Tokens) -> Tensor:
        """Return saliency with mean 1 over the live tokens.

        Raises:
            InvalidPlan: the weights have no module for the site.
        """
        header, modules = self._read
        site = f"{tokens.stack}:{tokens.layer}"
        if self.merges(tokens.stack) and not tokens.rows:
            return torch.ones_like(tokens.alive, dtype=torch.float32)
        if self.merges(tokens.stack):
            return relative(class_attention(tokens), tokens.alive)
        if site not in modules:
            raise files.missing(self.weights, site, header)
        return saliency(modules[site].to(tokens.alive.device)(tokens), tokens.alive)

    def select(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        """Return the highest scores; in the tower what matching leaves, or also an even spread of the others."""
        if self.merges(tokens.stack):
            tokens.notes["matching"] = self.matching(scores, tokens, counts)
            return tokens.notes["matching"].keep  # type: ignore[no-any-return]
        return select(scores, tokens, counts, self.coverage)

    def matching(self, scores: Tensor, tokens: Tokens, counts: Tensor) -> Matching:
        """Return who merges into whom; salient patches last."""
        return tokens.matched(counts, -PROTECT * scores.clamp(min=FAINT).log(), WINDOW)

    def fuse(self, hidden: Tensor, keep: Tensor, scores: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Average every group of patches, weighted by sizes; in the language model nothing merges."""
        if not self.merges(tokens.stack):
            return hidden, None
        matching = tokens.notes.get("matching")
        if matching is None or matching.keep is not keep:
            matching = self.matching(scores, tokens, keep.sum(1))
        return tokens.merged(hidden, matching)

    def flops(self, work: Work) -> float:
        """Return those of the site's module, or of the similarity of keys."""
        if self.merges(work.stack):
            return matching_flops(work.alive, work.kept, work.head_dim, WINDOW)
        rank, width = self.header.sizes["rank"], self.header.sizes["width"]
        n, asks = work.tokens, work.stack != "vision"
        return 2.0 * (n * work.hidden * rank + asks * work.hidden * rank + n * width * (inputs(rank, asks) + 1))


def select(scores: Tensor, tokens: Tokens, counts: Tensor, coverage: float) -> Tensor:
    """Mark `[B, N]` the `counts` `[B]` tokens that stay: by score, in the tower a share of them spread evenly instead."""
    if tokens.stack != "vision":
        return top(scores, tokens.alive, counts)
    spread = (counts * coverage).to(counts.dtype)
    salient = top(scores, tokens.alive, counts - spread)
    return salient | top(even(tokens), tokens.alive & ~salient, spread)


def inputs(rank: int, asks: bool) -> int:
    """Features of a token: low-rank states, their mean over the live, what the question makes of them; saliency; place."""
    return rank * (4 if asks else 2) + SALIENCY + PLACE


def saliency(logits: Tensor, alive: Tensor) -> Tensor:
    """Turn logits `[B, N]` into scores >= 0 with mean 1 over the live tokens."""
    return logits.masked_fill(~alive, -torch.inf).softmax(1).nan_to_num(0.0) * alive.sum(1, keepdim=True)


class Scorer(nn.Module):
    """The module of one site: the logarithm of ATP's saliency, plus a small perceptron's correction, zero at first.

    Args:
        hidden: width D of the model's states.
        rank: of the projection that states pass.
        width: of the perceptron.
        site: where, `'vision:2'`; in the tower no question is known.
    """

    def __init__(self, hidden: int, rank: int, width: int, site: str) -> None:
        super().__init__()
        asks = not site.startswith("vision")
        self.token = nn.Linear(hidden, rank, bias=False)
        self.question = nn.Linear(hidden, rank, bias=False) if asks else None
        self.inner, self.out = nn.Linear(inputs(rank, asks), width), nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return logits `[B, N]`; what stands at dead tokens means nothing. No gradient flows into the model."""
        dtype, alive = self.token.weight.dtype, tokens.alive
        parts = [part.to(dtype) for part in known(tokens)]
        states = self.token(normed(tokens.hidden.detach().to(dtype)))  # [B, N, r]
        features = [states, pooled(states, alive).unsqueeze(1).expand_as(states)]
        if self.question is not None:
            text = tokens.text
            asked = torch.where(text.asks.any(1, keepdim=True), text.asks, text.valid)
            asking = self.question(pooled(normed(text.hidden.detach().to(dtype)), asked)).unsqueeze(1)
            features += [asking.expand_as(states), states * asking]
        found: Tensor = self.out(gelu(self.inner(torch.cat([*features, *parts[1:]], 2))))
        return parts[0] + found.squeeze(2)


def known(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithm of ATP's saliency `[B, N]`, features of saliency `[B, N, 2]` and of place `[B, N, 2]`."""
    if tokens.stack == "vision":
        inter = relative(even(tokens), tokens.alive)
        mixed = intra = relative(class_attention(tokens), tokens.alive)
    else:
        inter = relative(tokens.rows["question"].mean(), tokens.alive)
        intra = relative(received(tokens.rows["visual"]), tokens.alive)
        mixed = (inter + intra) / 2
    size = torch.tensor(tokens.grid, device=tokens.alive.device)
    place = torch.where(tokens.position < 0, 0.0, (2 * tokens.position + 1) / size - 1)
    both = torch.stack([inter, intra], 2).detach().clamp(min=LEAST).log()
    return mixed.detach().clamp(min=LEAST).log(), both, place


def normed(states: Tensor) -> Tensor:
    """Give each state mean 0 and variance 1."""
    return layer_norm(states, states.shape[-1:])


def pooled(states: Tensor, chosen: Tensor) -> Tensor:
    """Mean of `[B, T, C]` over the chosen `[B, T]`, `[B, C]`."""
    weight = chosen.unsqueeze(2)
    return states.masked_fill(~weight, 0.0).sum(1) / weight.sum(1).clamp(min=1)
