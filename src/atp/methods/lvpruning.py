"""LVPruning: small trained modules say which visual tokens the text needs. Knows tensors, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atp.budget.shape import ModelShape
from atp.errors import InvalidPlan
from atp.methods import weights as files
from atp.methods.base import Method, Work, register
from atp.plan import Site
from atp.tokens import Tokens

HEADS = 8


@register("lvpruning")
@dataclass(frozen=True)
class LVPruning(Method):
    """Score visual tokens by a module of two cross-attention blocks, from vision to text, trained beside the frozen model.

    Differences from the paper (there is no code): the text is all live text of the prompt; the width of a module is that of
    its weights; tokens leave before layers 2, 9, 17 of 32, which is after the paper's 1, 8, 16. `atp train-gate` has the paper's
    losses, but the answers of the unpruned model as labels, minutes instead of an epoch, and a rate to match; the paper gives no
    weights of the losses.
    Cost: the module on N visual and M text tokens, see `flops`.

    Attributes:
        weights: file of `atp train-gate --kind lvpruning`, with a `Scorer` for each site.
    """

    weights: str = ""

    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"language": ("text",)}
    stacks: ClassVar[tuple[str, ...]] = ("language",)
    trained: ClassVar[bool] = True
    paper: ClassVar[str] = "Sun et al., LVPruning: Language-Guided Vision Token Pruning for MLLMs, Findings of NAACL 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2501.13652"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", str(self.weights))
        _ = self.header

    @cached_property
    def _read(self) -> tuple[files.Header, dict[str, Scorer]]:
        header, tensors = files.load(self.weights, self.name)
        modules = {}
        try:
            for site in header.sites:
                state = files.of_site(tensors, site)
                width, hidden = state["first.query.weight"].shape
                modules[site] = Scorer(hidden, width).to(state["head.weight"].dtype).eval().requires_grad_(False)
                modules[site].load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise InvalidPlan(
                f"{self.weights!r} is damaged ({error!r}); train it again: atp train-gate --kind lvpruning"
            ) from None
        return header, modules

    @property
    def header(self) -> files.Header:
        """What the file says of itself."""
        return self._read[0]

    def fits(self, mark: Any) -> None:
        """Refuse a model that the weights were not trained beside."""
        self.header.check(self.weights, mark)

    def default_sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """Return the sites that the file has modules for."""
        return self.header.places()

    def score(self, tokens: Tokens) -> Tensor:
        """Return the probability to keep.

        Raises:
            InvalidPlan: the weights have no module for the site.
        """
        header, modules = self._read
        site = f"{tokens.stack}:{tokens.layer}"
        if site not in modules:
            raise files.missing(self.weights, site, header)
        return logits(modules[site].to(tokens.alive.device), tokens).softmax(2)[..., 0]

    def flops(self, work: Work) -> float:
        """Return those of the module, of the width that the first site's has."""
        width = next(iter(self._read[1].values())).width
        n, m, d = work.tokens, work.text, work.hidden
        projected = n * d + n * width + 4 * m * d
        return 2.0 * width * (projected + 4 * n * m + 8 * n * width + 2 * n)


def paper_sites(layers: int) -> tuple[Site, ...]:
    """Return the inputs of the layers after 1, 8, 16 of 32, by depth."""
    places = {max(1, round(layers * after / 32)) for after in (2, 9, 17)}
    return tuple(Site("language", at) for at in sorted(places) if at < layers)


def logits(module: Scorer, tokens: Tokens) -> Tensor:
    """Return logits (keep, drop) `[B, N, 2]`; no gradient flows into the model."""
    dtype = next(module.parameters()).dtype
    found: Tensor = module(tokens.hidden.detach().to(dtype), tokens.text.hidden.detach().to(dtype), tokens.text.valid)
    return found


class Block(nn.Module):
    """Cross-attention from vision to text, with the residual on the queries, and a feed-forward part."""

    def __init__(self, vision: int, text: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(vision, width, bias=False)
        self.key, self.value = nn.Linear(text, width, bias=False), nn.Linear(text, width, bias=False)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width), nn.LayerNorm(width)
        )

    def forward(self, vision: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        """`[B, N, C]` of vision `[B, N, *]` and text `[B, M, *]` with valid `[B, M]`."""
        query = self.query(vision)
        parts = [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (query, self.key(text), self.value(text))]
        logits = parts[0] @ parts[1].transpose(2, 3) / parts[0].shape[3] ** 0.5
        share = logits.masked_fill(~valid[:, None, None], torch.finfo(logits.dtype).min).softmax(3)
        found: Tensor = self.feed((share @ parts[2]).transpose(1, 2).flatten(2) + query)
        return found


class Scorer(nn.Module):
    """The module of one site: two blocks, and logits (keep, drop) of each visual token.

    Args:
        hidden: width D of the model's states.
        width: its own, a multiple of 8.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.first, self.second = Block(hidden, hidden, width), Block(width, hidden, width)
        self.head = nn.Linear(width, 2, bias=False)

    def forward(self, vision: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        """Return logits `[B, N, 2]` of vision `[B, N, D]`, text `[B, M, D]`, valid `[B, M]` bool."""
        logits: Tensor = self.head(self.second(self.first(vision, text, valid), text, valid))
        return logits
