"""Who is there: the tokens of one forward through one stack that may leave, where they stand and which are still alive.

Part of the engine. All counts are kept on the host beside the tensors, so that fixed plans need no device sync.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atp.adapters.base import Adapter, Args, Images, Kwargs
from atp.trace import Record
from atp.tracing import Latest, lazy

CHANNELS = ("alive", "score", "row", "column", "image", "size")
"""What `Adapter.pack` carries from the tower's tokens to the visual tokens of the prompt."""

HALF = 0.5 - 1e-4
"""A visual token that mixes several is alive where the live ones have half of the weight, up to rounding."""


@dataclass
class Words:
    """The text tokens of prompts, M at most, where some may leave; `alive` and `counts` change as sites are passed.

    Attributes:
        where: `[B, M]` int64 places in the sequence, in order; anything where a prompt has fewer.
        alive, held, last: `[B, M]` bool; those that never leave; the last ones, which are among them.
        counts, started, least: alive, at the beginning, and held, per prompt.
        asking: most of the last ones of a prompt that rate the others.
        history: counts after each layer's site.
    """

    where: Tensor
    alive: Tensor
    held: Tensor
    last: Tensor
    counts: list[int]
    started: list[int]
    least: list[int]
    asking: int
    history: dict[int, list[int]] = field(default_factory=dict)


@dataclass
class Census:
    """The tokens of a batch; `alive`, `counts` and `scores` change as sites are passed.

    Attributes:
        where: `[B, N, g]` int64, places of token n's g patches in the sequence (anything where an input has fewer).
        alive: `[B, N]` bool.
        counts, started: alive tokens now, and at the stack's beginning, per input.
        others: `[S, T]` bool, live places of other tokens: class token, text.
        other_counts: how many of them, per input.
        words: the text, where it may leave; `others` follows.
        turn: place from which on the last turn of a conversation stands, if it is known: the question is there.
        position, image, grid: see `atp.tokens.Tokens`.
        packed: whether all inputs lie in one sequence (S = 1), else S = B.
        ids: `[B, T]` token ids, None in a tower.
        candidates: last tokens that are guesses, not prompt.
        carried: `[B, N]` last scores of the stack before, NaN where there is none.
        rated: `[B, N]` scores of the last site that scored, and who was alive there; None before.
        sizes: `[B, N]` how many tokens each stands for after merges; None = one each.
        history: counts after each layer's site.
        arrived: counts at the stack's first layer.
        asked: the question among `others`, as found last.
    """

    where: Tensor
    alive: Tensor
    counts: list[int]
    started: list[int]
    others: Tensor
    other_counts: list[int]
    position: Tensor
    image: Tensor
    grid: tuple[int, int]
    packed: bool = False
    ids: Tensor | None = None
    candidates: int = 0
    carried: Tensor | None = None
    rated: tuple[Tensor, Tensor] | None = None
    sizes: Tensor | None = None
    words: Words | None = None
    turn: int = 0
    history: dict[int, list[int]] = field(default_factory=dict)
    arrived: list[int] = field(init=False)
    asked: Latest = field(init=False, repr=False)
    _live: Latest = field(init=False, repr=False)
    _weights: Latest = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.arrived = list(self.counts)
        self.asked, self._live, self._weights = Latest(), Latest(), Latest()

    @property
    def group(self) -> int:
        """g, patches of a token."""
        return self.where.shape[2]

    @property
    def whole(self) -> bool:
        """Whether every input began with N tokens: no place in `where` stands for nothing."""
        return all(count == self.where.shape[1] for count in self.started)

    @lazy
    def places(self) -> Tensor:
        """`[S, ...]` places of all patches, sequence by sequence."""
        return self.where.reshape(self.others.shape[0], -1)

    def at_patches(self, values: Tensor) -> Tensor:
        """Repeat `[B, N]` for the patches of each token, in the order of `places`."""
        if self.group == 1 and not self.packed:
            return values
        return values.unsqueeze(-1).expand_as(self.where).reshape(self.others.shape[0], -1)

    def live(self) -> Tensor:
        """All places that run, `[S, T]`."""
        return self._live.of(self.alive, self.others, make=self._mark)

    def _mark(self) -> Tensor:
        patches = self.at_patches(self.alive)
        if self.whole:
            return self.others.scatter(1, self.places, patches)
        if self.packed:  # places that stand for nothing may be those of another image
            marks = torch.zeros_like(self.others, dtype=torch.uint8)
            return marks.scatter_reduce(1, self.places, patches.to(torch.uint8), "amax").bool() | self.others
        return torch.zeros_like(self.others).scatter(1, self.places, patches) | self.others

    def weights(self) -> Tensor | None:
        """Logarithm of how many tokens each live place stands for, `[S, T]` in float32; None = one each."""
        if self.sizes is None or self.packed:
            return None
        return self._weights.of(self.sizes, None if self.whole else self.alive, make=self._logs)

    def _logs(self) -> Tensor:
        assert self.sizes is not None
        grown = self.sizes.clamp(min=1).log().to(torch.float32)
        wide = self.at_patches(grown if self.whole else grown.masked_fill(~self.alive, 0.0))
        return torch.zeros_like(self.others, dtype=torch.float32).scatter_reduce(1, self.places, wide, "amax")

    def live_counts(self) -> list[int]:
        """How many places of each sequence run."""
        own = [a * self.group + b for a, b in zip(self.counts, self.other_counts, strict=True)]
        return [sum(own)] if self.packed else own

    def lengths(self, layers: int) -> list[tuple[int, ...]]:
        """Return for each input the places that ran in each layer."""
        own = alive_by_layer(self.arrived, self.history, layers)
        texts = self.text_lengths(layers)
        return [tuple(a * self.group + b for a, b in zip(*pair, strict=True)) for pair in zip(own, texts, strict=True)]

    @property
    def texts(self) -> list[int]:
        """Text tokens (or prefix) that each input began with."""
        return self.other_counts if self.words is None else [n + self.candidates for n in self.words.started]

    def text_lengths(self, layers: int) -> list[list[int]]:
        """Return for each input the text tokens (or prefix) that ran in each layer."""
        if self.words is None:
            return [[count] * layers for count in self.other_counts]
        own = alive_by_layer(self.words.started, self.words.history, layers)
        return [[count + self.candidates for count in row] for row in own]

    def leave(self, images: Images, layers: int, records: list[Record]) -> TowerPass:
        """Return what travels on at the end of a tower of so many layers."""
        scores = None if self.rated is None else self.rated[0].masked_fill(~self.rated[1], torch.nan)
        told = (self.alive, self.started, self.counts, scores, self.lengths(layers), list(images.grids), self.group, self.sizes)
        return TowerPass(*told, records=records, packed=self.packed)

    def spell(self, keep: Tensor, counts: list[int], layer: int) -> None:
        """Let text leave at a site: all but `keep` `[B, M]`."""
        words = self.words
        assert words is not None
        gone = torch.zeros_like(self.others).scatter(1, words.where, words.alive & ~keep)
        self.others, self.other_counts = self.others & ~gone, [count + self.candidates for count in counts]
        words.alive, words.counts, words.history[layer] = keep, counts, counts


@dataclass
class Crossing:
    """Keys of each prompt, as the ledger counts them; those of images that nobody looks at run until the first ones leave.

    Attributes:
        started, counts: keys at the beginning and now.
        other_counts: rows of text at the beginning.
        lines: the rows of text, where some may leave; None = all run.
        history: counts after each layer's site.
    """

    started: list[int]
    counts: list[int]
    other_counts: list[int]
    lines: Census | None = None
    history: dict[int, list[int]] = field(default_factory=dict)

    @property
    def texts(self) -> list[int]:
        """Rows of text that each prompt began with."""
        return self.other_counts

    def text_lengths(self, layers: int) -> list[list[int]]:
        """Return for each prompt the rows of text at each layer."""
        return [[count] * layers for count in self.other_counts] if self.lines is None else self.lines.text_lengths(layers)

    def lengths(self, layers: int) -> list[tuple[int, ...]]:
        """Return for each prompt the keys and rows of text at each layer."""
        pairs = zip(alive_by_layer(self.started, self.history, layers), self.text_lengths(layers), strict=True)
        return [tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs]


def alive_by_layer(started: list[int], history: dict[int, list[int]], layers: int) -> list[list[int]]:
    """Return for each input how many are alive in each layer, from the counts after sites."""
    found = [list(started)]
    for layer in range(layers):
        found.append(history.get(layer, found[-1]))
    return [[counts[row] for counts in found[1:]] for row in range(len(started))]


@dataclass
class TowerPass:
    """What the tower left: travels from its output to the language model.

    Attributes:
        alive: `[P, N]` bool.
        started, counts: tokens of each image, and those alive.
        scores: `[P, N]` of the tower's last scored site, or None.
        sizes: `[P, N]` how many tokens each stands for, None = one each.
        lengths: patches (and class token) that ran in each layer, per image.
        grids: (height, width) of each image, in tokens.
        group: patches of a token.
        embedded: patches that were embedded, None = all.
        connected: features of each image that passed the connector, None = all.
        layout: how they became visual tokens, where the adapter watched that.
        asked: FLOPs of the connector for an image whatever is alive, None = those of the model's shape.
        records: what its sites did.
        packed: whether all images lay in one sequence, so that none was padded to another's length.
    """

    alive: Tensor
    started: list[int]
    counts: list[int]
    scores: Tensor | None
    lengths: list[tuple[int, ...]]
    grids: list[tuple[int, int]]
    group: int = 1
    sizes: Tensor | None = None
    embedded: int | None = None
    connected: list[int] | None = None
    layout: Any = None
    asked: float | None = None
    records: list[Record] = field(default_factory=list)
    packed: bool = False

    def laid_out(self, adapter: Adapter, name: str, args: Args, kwargs: Kwargs, made: Any) -> Any:
        """Note the layout in a call of a watched method, and return what it made, mended."""
        layout = adapter.layout(name, args, kwargs)
        self.layout = self.layout if layout is None else layout
        return made if self.counts == self.started else adapter.mended(name, made, self.alive, self.layout)

    def facts(self) -> Tensor:
        """What is known of each token, `[P, N, CHANNELS]`."""
        images, most = self.alive.shape
        device = self.alive.device
        number = torch.arange(most, device=device).expand(images, -1)
        width = torch.tensor([w for _, w in self.grids], device=device).unsqueeze(1)
        scores = torch.full_like(number, torch.nan, dtype=torch.float32) if self.scores is None else self.scores
        index = torch.arange(images, device=device).unsqueeze(1).expand(-1, most)
        sizes = torch.ones_like(scores) if self.sizes is None else self.sizes
        parts = (self.alive, scores, number // width, number % width, index, sizes)
        return torch.stack([part.to(torch.float32) for part in parts], -1)


def of_tower(images: Images) -> Census:
    """Take the census of images at the tower's beginning: everything is alive."""
    device, counts = images.where.device, list(images.counts)
    most = images.where.shape[1]
    number = torch.arange(most, device=device).expand(len(counts), -1)
    if min(counts) == most:
        alive = torch.ones(len(counts), most, dtype=torch.bool, device=device)
    else:
        alive = number < torch.tensor(counts, device=device).unsqueeze(1)
    width = torch.tensor([w for _, w in images.grids], device=device).unsqueeze(1)
    return Census(
        where=images.where,
        alive=alive,
        counts=list(counts),
        started=list(counts),
        others=images.others,
        other_counts=[images.prefix] * len(counts),
        position=torch.stack([number // width, number % width], dim=-1),
        image=torch.zeros_like(number),
        grid=(max(h for h, _ in images.grids), max(w for _, w in images.grids)),
        packed=images.packed,
    )
