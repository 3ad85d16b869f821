"""What a method sees at a site: `Tokens`, with parts that are gathered only where the method reads them. Part of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atp.adapters.base import Adapter, StackView
from atp.engine.attention import Attention, Capture
from atp.engine.census import Census
from atp.fusion import Crowd
from atp.methods.base import Method, Work
from atp.plan import Site
from atp.subset import numbered, take
from atp.tokens import Rows, Text, Tokens


@dataclass(frozen=True)
class Place:
    """One site of a forward, and the states that it may look at.

    Attributes:
        view: the stack.
        layer: the site's layer.
        census: who is there.
        hidden: `[S, T, D]` states at the site.
        entered: `[S, T, D]` states at layer 0 of the stack, where the engine has them.
        capture: what the layer before projected, where the method asks for it.
    """

    view: StackView
    layer: int
    census: Census
    hidden: Tensor
    entered: Tensor | None = None
    capture: Capture | None = None

    def attention(self) -> Attention:
        """Return what computes rows of the captured layer, and knows who asks."""
        return (self.capture or Capture(None, None, None, None)).attention(self.view, self.census)

    def patches(self) -> Tensor:
        """States of the tokens' patches at the site, `[B, N, g, D]`."""
        return at_places(self.hidden, self.census.places, self.census)


@dataclass
class Facts:
    """Builds the tokens of a site for one method.

    Attributes:
        method: the method.
        template: ids that ask no question.
    """

    method: Method
    template: frozenset[int]

    def tokens(self, place: Place, counts: Sequence[int] | None = None) -> tuple[Tokens, float]:
        """Return the tokens, and the FLOPs of their rows; `counts` are those to keep, where they are known already."""
        view, census = place.view, place.census
        reads, kinds = self.method.reading(view.name), rater_kinds(self.method, view)
        rows: dict[str, Rows] = {}
        spent = 0.0
        if kinds and place.capture is not None:
            attention = place.attention()
            rows = attention.rows(kinds, self.template, place.entered if "embeddings" in reads else None)
            spent = attention.flops
        made = Tokens(
            stack=view.name,
            layer=place.layer,
            alive=census.alive,
            started=tuple(census.started),
            position=census.position,
            image=census.image,
            grid=census.grid,
            rows=rows,
            carried=census.carried,
            sizes=census.sizes,
            crowd=Crowd(tuple(census.counts), None if counts is None else tuple(counts)),
            _hidden=lambda: _mean(place.patches()),
            _keys=(lambda: keys(place)) if "keys" in reads else None,
            _embeddings=(lambda: embeddings(place)) if "embeddings" in reads else None,
            _text=(lambda: self.text(place, "keys" in reads)) if "text" in reads else None,
        )
        return made, spent

    def text(self, place: Place, with_keys: bool) -> Text:
        """Gather the live text tokens of each prompt; guesses of assisted decoding are none."""
        census, attention = place.census, place.attention()
        assert place.entered is not None, "the language model's layer 0 ran before"
        live = attention.prompt(census.others)
        index = torch.sort((~live).to(torch.uint8), dim=1, stable=True).indices[:, : max(census.other_counts)]
        valid = live.gather(1, index)
        found = None
        if with_keys:
            assert place.capture is not None and place.capture.keys is not None, "the layer before the site did not run"
            found = _heads(take(place.capture.keys, attention.capture.slots(index)), place.view.head_dim)
        return Text(
            hidden=take(place.hidden, index),
            embeddings=take(place.entered, index),
            valid=valid,
            asks=attention.question(self.template).gather(1, index) & valid,
            keys=found,
        )

    def flops(self, tokens: Tokens, place: Place, counts: list[int]) -> float:
        """FLOPs of score, select and fuse for all inputs of the batch, by the method's own account."""
        view, census, reads = place.view, place.census, self.method.reading(place.view.name)
        wide = place.hidden.shape[-1] * (census.group if self.method.merges(view.name) else 1)
        raters = sum(rows.values.shape[1] for rows in tokens.rows.values())
        heads, width = tokens.keys.shape[2:] if "keys" in reads else (0, view.head_dim)
        text = max(census.other_counts) if "text" in reads else 0
        size = tokens.alive.shape[1]
        return sum(
            self.method.flops(Work(view.name, size, alive, kept, wide, width, heads, text, raters))
            for alive, kept in zip(census.counts, counts, strict=True)
        )


def merge(method: Method, place: Place, tokens: Tokens, keep: Tensor, scores: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the states at the site `[S, T, D]` with the survivors `keep` `[B, N]` as `Method.fuse` leaves them, and the sizes.

    A token of several patches is given to the method as their states side by side, so each patch merges with its counterparts.
    """
    census, own = place.census, place.patches()
    width = own.shape[-1]
    flat = own.flatten(2)
    fused, sizes = method.fuse(flat, keep, scores, tokens)
    states = torch.where(keep.unsqueeze(-1), fused.to(own.dtype), flat)
    places = census.where
    if not census.whole:
        # Where an input has fewer tokens than its neighbour nothing is written: the first survivor is once more.
        number = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        pick = torch.where(keep, number, keep.to(torch.uint8).argmax(1, keepdim=True))
        states = take(states, pick)
        places = places.gather(1, pick.unsqueeze(-1).expand_as(places))
    sequences = len(census.others)
    states, sizes = states.reshape(sequences, -1, width), None if sizes is None else sizes.detach()
    if sequences == 1:
        return place.hidden.index_copy(1, places.reshape(-1), states), sizes
    hidden = place.hidden
    flat = numbered(places.reshape(sequences, -1), hidden.shape[1])
    return hidden.reshape(-1, width).index_copy(0, flat, states.reshape(-1, width)).view(hidden.shape), sizes


def keys(place: Place) -> Tensor:
    """Keys of the tokens as the layer before projected them, `[B, N, H, d]`; the mean of a token's patches.

    At layer 0 there are none: the states that come in stand for them, `[B, N, 1, D]`.
    """
    if place.layer == 0:
        return place.patches().mean(2).unsqueeze(2)
    assert place.capture is not None and place.capture.keys is not None, "the layer before the site did not run"
    places = place.capture.slots(place.census.places)
    return _heads(_mean(at_places(place.capture.keys, places, place.census)), place.view.head_dim)


def embeddings(place: Place) -> Tensor:
    """The tokens as they entered layer 0, `[B, N, D]`."""
    assert place.entered is not None, "the stack's layer 0 ran before"
    return _mean(at_places(place.entered, place.census.places, place.census))


def at_places(states: Tensor, places: Tensor, census: Census) -> Tensor:
    """Take `[S, T, D]` at the places `[S, B * N * g / S]` of the tokens' patches, `[B, N, g, D]`."""
    return take(states, places).view(*census.where.shape, states.shape[-1])


def _mean(patches: Tensor) -> Tensor:
    """Mean over the patches of each token, `[B, N, g, D]` -> `[B, N, D]`."""
    return patches.squeeze(2) if patches.shape[2] == 1 else patches.mean(2)


def _heads(states: Tensor, head_dim: int) -> Tensor:
    return states.view(*states.shape[:-1], -1, head_dim)


def rater_kinds(method: Method, view: StackView) -> tuple[str, ...]:
    """Return the raters a method needs in a stack; `class` becomes `visual` where there is no class token."""
    kinds = method.raters(view.name)
    return tuple(dict.fromkeys("visual" if kind == "class" and not view.prefix else kind for kind in kinds))


def looks_back(method: Method, view: StackView) -> bool:
    """Whether a site in the stack reads what the layer before it projected."""
    words = method.text_raters if view.name == "language" else ()
    return bool(rater_kinds(method, view) or words) or "keys" in method.reading(view.name)


def carried_from(adapter: Adapter, method: Method) -> Site | None:
    """Return where the tower is scored although nothing leaves, the input of its last layer; None where it is not."""
    layers = adapter.shape.vision.layers
    if not method.carries or "vision" not in adapter.stacks or layers < 2:
        return None
    return Site("vision", layers - 1)
