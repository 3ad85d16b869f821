"""Which visual tokens arrive at the language model, where they stand in the prompts, and which are alive. Part of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from atp.adapters.base import Adapter, Prompt, Source
from atp.engine.census import CHANNELS, HALF, Census, TowerPass
from atp.errors import BadInput, UnsupportedModel
from atp.tracing import traced


@dataclass(frozen=True)
class Arrivals:
    """The visual tokens that one call of the tower gave to the prompts, image by image.

    Attributes:
        visual: `[B, T]` bool, the places of these tokens in the prompts.
        facts: `[sum of F, CHANNELS]`, the images one after the other; NaN where a token stands for none of the tower's.
        lengths: F of each image.
        carried: visual tokens of each image that the call carries: those of the tower, or under beams several times those.
        counts: alive ones of each image, None = not known on the host.
        grid: largest height and width of an image.
        grids: of each image.
        scored: whether the tower scored them.
        merged: whether it merged some.
    """

    visual: Tensor
    facts: Tensor
    lengths: list[int]
    carried: list[int]
    counts: list[int] | None
    grid: tuple[int, int]
    grids: list[tuple[int, int]]
    scored: bool = False
    merged: bool = False

    @property
    def total(self) -> int:
        """Visual tokens of all images."""
        return sum(self.lengths)

    @property
    def copies(self) -> int:
        """How many prompts in a row share their images."""
        return sum(self.carried) // self.total if self.total else 1


def all_arrivals(adapter: Adapter, prompt: Prompt, towers: Sequence[TowerPass]) -> tuple[list[Arrivals], list[TowerPass | None]]:
    """Lay out what all calls of the tower made for a prompt: images, videos.

    Args:
        adapter: the model.
        prompt: the call.
        towers: what the tower left in this call of the base model, in order.
    """
    found, made, left = [], [], iter(towers)
    for source in prompt.sources or (Source(prompt.visual, prompt.features),):
        if source.features is None:
            tower, lengths = next(left, None), None
        else:
            tower, lengths = adapter.tagged(source.features)
        found.append(arrivals(adapter, prompt, source, tower, lengths))
        made.append(tower)
    return found, made


def arrivals(adapter: Adapter, prompt: Prompt, source: Source, tower: TowerPass | None, lengths: list[int] | None) -> Arrivals:
    """Lay the tower's tokens out as visual tokens.

    Args:
        adapter: the model.
        prompt: the call.
        source: which of its visual tokens.
        tower: what the tower left, None where it ran before the block.
        lengths: visual tokens of each image where known; images repeat under beams.

    Raises:
        UnsupportedModel: features that are not those which the tower made.
    """
    visual, device = source.visual, source.visual.device
    if tower is None or adapter.connects == "keys":
        if lengths is None:
            assert tower is not None, "features are made by the tower, or come with the call"
            lengths = [adapter.shape.visual] * len(tower.started)
        height, width = adapter.grid
        facts = torch.full((sum(lengths), len(CHANNELS)), torch.nan, device=device)
        facts[:, 0] = 1
        number = torch.cat([torch.arange(n, device=device) for n in lengths])
        if set(lengths) == {height * width} and adapter.connects != "keys":
            facts[:, 2], facts[:, 3] = number // width, number % width
        owner = [index for index, n in enumerate(lengths) for _ in range(n)]
        facts[:, 4] = torch.tensor(owner, device=device)
        return Arrivals(visual, facts, lengths, lengths, list(lengths), adapter.grid, [adapter.grid] * len(lengths))
    packed = adapter.pack(tower.facts(), tower.started, prompt.extra if tower.layout is None else tower.layout)
    made = [len(one) for one in packed]
    carried = made if lengths is None else lengths
    if sum(carried) % max(1, sum(made)):
        raise UnsupportedModel(
            f"the tower made features of {len(made)} images but the call carries {len(carried)}, so it is unknown which "
            "patches of them are alive; pass pixel_values, or the output of get_image_features as it is"
        )
    extra = [a - b for a, b in zip(made, tower.started, strict=True)] if len(made) == len(tower.started) else None
    counts = [a + b for a, b in zip(tower.counts, extra, strict=True)] if extra and min(extra) >= 0 else None
    for index, one in enumerate(packed):
        one[:, 4] = index
    facts = torch.cat(packed).to(device)
    facts[:, 0] = facts[:, 0].nan_to_num(1.0)
    grid = (max(h for h, _ in tower.grids), max(w for _, w in tower.grids))
    told = (tower.scores is not None, tower.sizes is not None)
    return Arrivals(visual, facts, made, carried, counts, grid, list(tower.grids), *told)


def unknown_images(visual: Tensor) -> Arrivals:
    """Take all visual tokens of a prompt for one image of one row, where nothing is known of the tower.

    Args:
        visual: `[B, T]` bool, their places.
    """
    lengths = [int(n) for n in visual.sum(1).tolist() if n]
    facts = torch.full((sum(lengths), len(CHANNELS)), torch.nan, device=visual.device)
    facts[:, 0], facts[:, 2] = 1, 0
    facts[:, 3] = torch.cat([torch.arange(n, device=visual.device) for n in lengths])
    grids = [(1, n) for n in lengths]
    return Arrivals(visual, facts, lengths, lengths, list(lengths), max(grids), grids)


def of_prompt(prompt: Prompt, arrived: Sequence[Arrivals]) -> tuple[Census, list[int]]:
    """Take the census of prompts at language layer 0, and name the first prompt of each image.

    Args:
        prompt: the call.
        arrived: its visual tokens, source by source.

    Raises:
        BadInput: prompts whose visual tokens are not those of whole images.
    """
    device, batch = prompt.visual.device, len(prompt.ids)
    shares, live_counts = _count(prompt, arrived)
    place = torch.zeros_like(prompt.ids)
    counts: list[int] | None = [0] * batch
    base, rows = 0, []
    for one, share in zip(arrived, shares, strict=True):
        first = _first(one, share)
        start = torch.tensor([base + number for number in first], device=device).unsqueeze(1)
        place = torch.where(one.visual, one.visual.cumsum(1) - 1 + start, place)
        own = _alive(one, first, share)
        counts = None if counts is None or own is None else [a + b for a, b in zip(counts, own, strict=True)]
        rows += _rows(one, first, share)
        base += one.total
    started = [sum(row) for row in zip(*shares, strict=True)]
    most = max(started)
    where = torch.sort(prompt.visual.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :most]
    place = place.gather(1, where)
    facts = (arrived[0].facts if len(arrived) == 1 else torch.cat([one.facts for one in arrived]))[place]  # [B, N, CHANNELS]
    alive = facts[..., 0] > HALF
    if min(started) < most:
        alive = alive & (torch.arange(most, device=device) < torch.tensor(started, device=device).unsqueeze(1))
    census = Census(
        where=where.unsqueeze(-1),
        alive=alive,
        counts=[int(n) for n in alive.sum(1).tolist()] if counts is None else counts,
        started=started,
        others=~prompt.visual if prompt.live is None else prompt.live & ~prompt.visual,
        other_counts=[a - b for a, b in zip(live_counts, started, strict=True)],
        position=facts[..., 2:4].nan_to_num(-1.0).to(torch.int64),
        image=_images(arrived, shares, place),
        grid=(max(one.grid[0] for one in arrived), max(one.grid[1] for one in arrived)),
        ids=prompt.ids,
        candidates=prompt.candidates,
        carried=facts[..., 1].masked_fill(~alive, torch.nan) if any(one.scored for one in arrived) else None,
        sizes=facts[..., 5].nan_to_num(1.0) if any(one.merged for one in arrived) else None,
    )
    return census, rows


def _images(arrived: Sequence[Arrivals], shares: list[list[int]], place: Tensor) -> Tensor:
    """Number the images of each prompt from 0, in the order of its visual tokens; `place` `[B, N]` of these in the arrivals."""
    lengths = [length for one in arrived for length in one.lengths]
    if shares == [[length for length in lengths for _ in range(arrived[0].copies)]]:  # one each
        return torch.zeros_like(place)
    owner = torch.repeat_interleave(torch.tensor(lengths, device=place.device), output_size=sum(lengths))[place]
    change = torch.ones_like(owner)
    change[:, 1:] = (owner[:, 1:] != owner[:, :-1]).to(owner.dtype)
    return change.cumsum(1) - 1


def _first(arrived: Arrivals, share: Sequence[int]) -> list[int]:
    """First visual token of each prompt in the arrivals; `copies` prompts in a row share theirs.

    Raises:
        BadInput: prompts whose visual tokens are not those of whole images.
    """
    first, used = [], 0
    for row, count in enumerate(share):
        first.append(used)
        used += count if row % arrived.copies == arrived.copies - 1 else 0
    borders = {0, *accumulate(arrived.lengths)}
    if used != arrived.total or any(start + count not in borders for start, count in zip(first, share, strict=True)):
        raise BadInput(
            f"the prompts have {', '.join(map(str, share))} image tokens, but their {len(arrived.lengths)} images take "
            f"{', '.join(map(str, arrived.lengths))}; let the processor expand the image token: processor(images=..., text=...)"
        )
    return first


def _alive(arrived: Arrivals, first: Sequence[int], share: Sequence[int]) -> list[int] | None:
    """Alive tokens of each prompt; None where the layout of the visual tokens hides it from the host."""
    if arrived.counts is None:
        return None
    ends = list(accumulate(arrived.lengths))
    return [
        sum(n for n, end in zip(arrived.counts, ends, strict=True) if start < end <= start + count)
        for start, count in zip(first, share, strict=True)
    ]


def _rows(arrived: Arrivals, first: Sequence[int], share: Sequence[int]) -> list[int]:
    """The first prompt of each image."""
    places = list(zip(first, share, strict=True))
    ends = accumulate(arrived.lengths)
    return [next(row for row, (start, count) in enumerate(places) if start < end <= start + count) for end in ends]


def _count(prompt: Prompt, arrived: Sequence[Arrivals]) -> tuple[list[list[int]], list[int]]:
    """Visual tokens of each source, and live tokens, of each prompt; one device sync, none for a single unpadded prompt."""
    batch, length = prompt.visual.shape
    if traced():
        return _equal(prompt, arrived), [length] * batch
    if batch == 1 and prompt.live is None:
        return [[sum(one.carried)] for one in arrived], [length]
    seen = [one.visual.sum(1) for one in arrived]
    live = torch.full_like(seen[0], length) if prompt.live is None else prompt.live.sum(1)
    *shares, lives = torch.stack([*seen, live]).tolist()
    return shares, lives


def _equal(prompt: Prompt, arrived: Sequence[Arrivals]) -> list[list[int]]:
    """Share visual tokens out equally, for a graph has one shape: prompts without padding; checked whenever the graph runs."""
    batch = len(prompt.ids)
    shares = [[sum(one.carried) // batch] * batch for one in arrived]
    right = [(one.visual.sum(1) == share[0]).all() for one, share in zip(arrived, shares, strict=True)]
    right += [] if prompt.live is None else [prompt.live.all()]
    torch._assert_async(
        torch.stack(right).all(),
        "a compiled pruned model takes prompts without padding that have equally many visual tokens each; call it on one prompt "
        "at a time, or run this batch without torch.compile",
    )
    return shares
