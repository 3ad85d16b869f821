"""Who is there: the tokens of one forward through one stack that may leave, where they stand and which are still alive.

Part of the engine. All counts are kept on the host beside the tensors, so that fixed plans need no device sync.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from atp.adapters.base import Adapter, Images, Prompt
from atp.errors import BadInput, UnsupportedModel

CHANNELS = ("alive", "score", "row", "column", "image")
"""What `Adapter.pack` carries from the tower's tokens to the visual tokens of the prompt."""


@dataclass
class Census:
    """The tokens of a batch; `alive`, `counts` and `scores` change as sites are passed.

    Attributes:
        where: `[B, N, g]` int64, places of token n's g patches in the sequence (anything where an input has fewer).
        alive: `[B, N]` bool.
        counts, started: alive tokens now, and at the stack's beginning, per input.
        others: `[S, T]` bool, live places that never leave: class token, text.
        other_counts: how many of them, per input.
        position, image, grid: see `atp.tokens.Tokens`.
        packed: whether all inputs lie in one sequence (S = 1), else S = B.
        ids: `[B, T]` token ids, None in a tower.
        candidates: last tokens that are guesses, not prompt.
        carried: `[B, N]` last scores of the stack before, NaN where there is none.
        scores: `[B, N]` of the last site that scored, NaN where a token was dead; None before.
        history: counts after each layer's site.
        arrived: counts at the stack's first layer.
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
    scores: Tensor | None = None
    history: dict[int, list[int]] = field(default_factory=dict)
    arrived: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.arrived = list(self.counts)

    @property
    def group(self) -> int:
        """g, patches of a token."""
        return self.where.shape[2]

    @property
    def places(self) -> Tensor:
        """`[S, ...]` places of all patches, sequence by sequence."""
        return self.where.reshape(self.others.shape[0], -1)

    def live(self) -> Tensor:
        """All places that run, `[S, T]`."""
        patches = self.alive.unsqueeze(-1).expand_as(self.where).reshape(self.others.shape[0], -1)
        if self.packed:  # places that stand for nothing may be those of another image
            marks = torch.zeros_like(self.others, dtype=torch.uint8)
            return marks.scatter_reduce(1, self.places, patches.to(torch.uint8), "amax").bool() | self.others
        return torch.zeros_like(self.others).scatter(1, self.places, patches) | self.others

    def live_counts(self) -> list[int]:
        """How many places of each sequence run."""
        own = [a * self.group + b for a, b in zip(self.counts, self.other_counts, strict=True)]
        return [sum(own)] if self.packed else own

    def lengths(self, layers: int) -> list[tuple[int, ...]]:
        """Return for each input the places that ran in each layer."""
        found = []
        for row, others in enumerate(self.other_counts):
            now, line = self.arrived[row], []
            for layer in range(layers):
                now = self.history[layer][row] if layer in self.history else now
                line.append(now * self.group + others)
            found.append(tuple(line))
        return found


@dataclass
class TowerPass:
    """What the tower left: travels from its output to the language model.

    Attributes:
        alive: `[P, N]` bool.
        started, counts: tokens of each image, and those alive.
        scores: `[P, N]` of the tower's last scored site, or None.
        lengths: patches (and class token) that ran in each layer, per image.
        grids: (height, width) of each image, in tokens.
        group: patches of a token.
        embedded: patches that were embedded, None = all.
        connected: features of each image that passed the connector, None = all.
    """

    alive: Tensor
    started: list[int]
    counts: list[int]
    scores: Tensor | None
    lengths: list[tuple[int, ...]]
    grids: list[tuple[int, int]]
    group: int = 1
    embedded: int | None = None
    connected: list[int] | None = None

    def facts(self) -> Tensor:
        """What is known of each token, `[P, N, CHANNELS]`."""
        images, most = self.alive.shape
        device = self.alive.device
        number = torch.arange(most, device=device).expand(images, -1)
        width = torch.tensor([w for _, w in self.grids], device=device).unsqueeze(1)
        scores = torch.full_like(number, torch.nan, dtype=torch.float32) if self.scores is None else self.scores
        index = torch.arange(images, device=device).unsqueeze(1).expand(-1, most)
        return torch.stack([part.to(torch.float32) for part in (self.alive, scores, number // width, number % width, index)], -1)


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


@dataclass(frozen=True)
class Arrivals:
    """The visual tokens that the prompts of a call were given, image by image.

    Attributes:
        facts: `[sum of F, CHANNELS]`, the images one after the other; NaN where a token stands for none of the tower's.
        lengths: F of each image.
        counts: alive ones of each image, None = not known on the host.
        grid: largest height and width of an image.
        grids: of each image.
        scored: whether the tower scored them.
    """

    facts: Tensor
    lengths: list[int]
    counts: list[int] | None
    grid: tuple[int, int]
    grids: list[tuple[int, int]]
    scored: bool = False


def arrivals(adapter: Adapter, prompt: Prompt, tower: TowerPass | None, lengths: list[int] | None, device: Any) -> Arrivals:
    """Lay the tower's tokens out as visual tokens.

    Args:
        adapter: the model.
        prompt: the call.
        tower: what the tower left, None where it ran before the block.
        lengths: visual tokens of each image where known; images repeat under beams.
        device: of the language model.
    """
    if tower is None or adapter.connects == "keys":
        assert lengths is not None
        height, width = adapter.grid
        facts = torch.full((sum(lengths), len(CHANNELS)), torch.nan, device=device)
        facts[:, 0] = 1
        number = torch.cat([torch.arange(n, device=device) for n in lengths])
        if set(lengths) == {height * width} and adapter.connects != "keys":
            facts[:, 2], facts[:, 3] = number // width, number % width
        owner = [index for index, n in enumerate(lengths) for _ in range(n)]
        facts[:, 4] = torch.tensor(owner, device=device)
        return Arrivals(facts, lengths, list(lengths), adapter.grid, [adapter.grid] * len(lengths))
    packed = adapter.pack(tower.facts(), tower.started, prompt.extra)
    made = [len(one) for one in packed]
    extra = [a - b for a, b in zip(made, tower.started, strict=True)] if len(made) == len(tower.started) else None
    counts = [a + b for a, b in zip(tower.counts, extra, strict=True)] if extra and min(extra) >= 0 else None
    for index, one in enumerate(packed):
        one[:, 4] = index
    facts = torch.cat(packed).to(device)
    facts[:, 0] = facts[:, 0].nan_to_num(1.0)
    grid = (max(h for h, _ in tower.grids), max(w for _, w in tower.grids))
    return Arrivals(facts, made, counts, grid, list(tower.grids), tower.scores is not None)


def of_prompt(prompt: Prompt, arrived: Arrivals, given: int) -> Census:
    """Take the census of prompts at language layer 0.

    Args:
        prompt: the call.
        arrived: its visual tokens.
        given: images that the call carries; a multiple of the tower's under beams, prompt by prompt.

    Raises:
        UnsupportedModel: features that are not those which the tower made.
        BadInput: prompts whose visual tokens are not those of whole images.
    """
    images = len(arrived.lengths)
    if given % images:
        raise UnsupportedModel(
            f"the tower made features of {images} images but the call carries {given}, so it is unknown which patches of them "
            "are alive; pass pixel_values, or the output of get_image_features as it is"
        )
    device, total = prompt.visual.device, sum(arrived.lengths)
    copies = given // images
    started, live_counts = _count(prompt, total * copies)
    first, used = _places(started, copies)
    borders = {0, *accumulate(arrived.lengths)}
    if used != total or any(start + count not in borders for start, count in zip(first, started, strict=True)):
        raise BadInput(
            f"the prompts have {', '.join(map(str, started))} image tokens, but their {images} images take "
            f"{', '.join(map(str, arrived.lengths))}; let the processor expand the image token: processor(images=..., text=...)"
        )
    most = max(started)
    where = torch.sort((~prompt.visual).to(torch.uint8), dim=1, stable=True).indices[:, :most]
    number = torch.arange(most, device=device)
    there = number < torch.tensor(started, device=device).unsqueeze(1)
    place = (number + torch.tensor(first, device=device).unsqueeze(1)).clamp(max=max(0, total - 1))
    facts = arrived.facts[place]  # [B, N, CHANNELS]
    alive = (facts[..., 0] > 0) & there
    image = facts[..., 4].to(torch.int64)
    live = torch.ones_like(prompt.visual) if prompt.live is None else prompt.live
    return Census(
        where=where.unsqueeze(-1),
        alive=alive,
        counts=_alive(arrived, first, started, alive),
        started=started,
        others=live & ~prompt.visual,
        other_counts=[a - b for a, b in zip(live_counts, started, strict=True)],
        position=facts[..., 2:4].nan_to_num(-1.0).to(torch.int64),
        image=image - image[:, :1],
        grid=arrived.grid,
        ids=prompt.ids,
        candidates=prompt.candidates,
        carried=facts[..., 1].masked_fill(~alive, torch.nan) if arrived.scored else None,
    )


def _places(started: Sequence[int], copies: int) -> tuple[list[int], int]:
    """First visual token of each prompt in the arrivals, and how many are used; `copies` prompts in a row share theirs."""
    first, used = [], 0
    for row, count in enumerate(started):
        first.append(used)
        used += count if row % copies == copies - 1 else 0
    return first, used


def _alive(arrived: Arrivals, first: list[int], started: list[int], alive: Tensor) -> list[int]:
    """Alive tokens of each prompt; a device sync only where the layout of the visual tokens hides it."""
    if arrived.counts is None:
        return [int(n) for n in alive.sum(1).tolist()]
    ends = list(accumulate(arrived.lengths))
    return [
        sum(n for n, end in zip(arrived.counts, ends, strict=True) if start < end <= start + count)
        for start, count in zip(first, started, strict=True)
    ]


def image_rows(arrived: Arrivals, census: Census, copies: int) -> list[int]:
    """The first prompt row of each image."""
    first, _ = _places(census.started, copies)
    rows = []
    for end in accumulate(arrived.lengths):
        rows.append(next(r for r, s in enumerate(first) if s < end <= s + census.started[r]))
    return rows


def _count(prompt: Prompt, visual: int) -> tuple[list[int], list[int]]:
    """Visual and live tokens of each prompt; one device sync, none for a single unpadded prompt."""
    batch, length = prompt.visual.shape
    if batch == 1 and prompt.live is None:
        return [visual], [length]
    seen = prompt.visual.sum(1)
    live = torch.full_like(seen, length) if prompt.live is None else prompt.live.sum(1)
    both = torch.stack([seen, live]).tolist()
    return [int(n) for n in both[0]], [int(n) for n in both[1]]
