"""Who is there: the visual tokens of one forward through one stack, where they stand and which are still alive.

Part of the engine. All counts are kept on the host beside the tensors, so that fixed plans need no device sync.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from atp.adapters.base import Adapter, Prompt
from atp.errors import BadInput, UnsupportedModel


@dataclass
class Census:
    """The tokens of a batch of sequences; `alive`, `counts` and `scores` change as sites are passed.

    Attributes:
        where: `[B, N]` int64, the place of visual token n in the sequence (anything where an input has fewer).
        alive: `[B, N]` bool.
        counts, started: alive tokens now, and at the stack's beginning, per input.
        others: `[B, T]` bool, live tokens that never leave: class token, text.
        other_counts: how many of them.
        position, image, grid: see `atp.tokens.Tokens`.
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
    ids: Tensor | None = None
    candidates: int = 0
    carried: Tensor | None = None
    scores: Tensor | None = None
    history: dict[int, list[int]] = field(default_factory=dict)
    arrived: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.arrived = list(self.counts)

    def live(self) -> Tensor:
        """All tokens that run, `[B, T]`."""
        places = torch.zeros_like(self.others).scatter(1, self.where, self.alive)
        return places | self.others

    def live_counts(self) -> list[int]:
        """How many tokens of each input run."""
        return [a + b for a, b in zip(self.counts, self.other_counts, strict=True)]

    def lengths(self, layers: int) -> list[tuple[int, ...]]:
        """Return for each input the tokens that ran in each layer."""
        found = []
        for row, others in enumerate(self.other_counts):
            now, line = self.arrived[row], []
            for layer in range(layers):
                now = self.history[layer][row] if layer in self.history else now
                line.append(now + others)
            found.append(tuple(line))
        return found


@dataclass
class TowerPass:
    """What the tower left: travels from its output to the language model.

    Attributes:
        alive: `[P, patches]` bool.
        counts: alive patches of each image.
        scores: `[P, patches]` of the tower's last scored site, or None.
        lengths: tokens that ran in each layer, per image.
        embedded: patches that were embedded, None = all.
        connected: features of each image that passed the connector.
        features: the connector's output `[P, F, D]`.
    """

    alive: Tensor
    counts: list[int]
    scores: Tensor | None
    lengths: list[tuple[int, ...]]
    embedded: int | None = None
    connected: list[int] | None = None
    features: Tensor | None = None

    @property
    def images(self) -> int:
        """P."""
        return len(self.counts)


def of_tower(adapter: Adapter, batch: int, device: torch.device) -> Census:
    """Take the census of images at the tower's beginning: everything is alive."""
    prefix, patches = adapter.vision.prefix, adapter.shape.patches
    others = torch.zeros(batch, prefix + patches, dtype=torch.bool, device=device)
    others[:, :prefix] = True
    return Census(
        where=torch.arange(prefix, prefix + patches, device=device).expand(batch, -1),
        alive=torch.ones(batch, patches, dtype=torch.bool, device=device),
        counts=[patches] * batch,
        started=[patches] * batch,
        others=others,
        other_counts=[prefix] * batch,
        position=grid_positions(patches, adapter.grid, device),
        image=torch.zeros(patches, dtype=torch.int64, device=device),
        grid=adapter.grid,
    )


def grid_positions(patches: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return (row, column) of each patch, `[patches, 2]`."""
    number = torch.arange(patches, device=device)
    return torch.stack([number // grid[1], number % grid[1]], dim=1)


def feature_patches(adapter: Adapter, features: int, device: torch.device) -> Tensor:
    """Return which patch each of an image's features stands for, `[F]`; -1 for the class token.

    Towers give prefix + patches states of which the connector may have got all or all but the first.
    """
    cut = adapter.shape.prefix + adapter.shape.patches - features
    if cut not in (0, 1):
        raise UnsupportedModel(
            f"an image gives {features} visual tokens but the tower has {adapter.shape.patches} patches; "
            "only feature selections 'default' (all but the first) and 'full' are supported"
        )
    return torch.arange(features, device=device) + (cut - adapter.shape.prefix)


def feature_alive(patch: Tensor, tower: TowerPass) -> tuple[Tensor, list[int]]:
    """Return which features of each image are alive, `[P, F]`, and how many."""
    alive = tower.alive[:, patch.clamp(min=0)] | (patch < 0)
    patches, features = tower.alive.shape[1], patch.shape[0]
    if features < patches:  # the first patch is no feature: whether it is alive decides the count
        return alive, [int(n) for n in alive.sum(1).tolist()]
    return alive, [n + features - patches for n in tower.counts]


def image_index(tower: TowerPass, features: Sequence[Tensor]) -> list[int]:
    """Find which image of the tower each feature tensor belongs to; beams repeat the images of a prompt.

    Raises:
        UnsupportedModel: the features are no longer those that the tower made.
    """
    made = tower.features
    if made is not None:
        start, step = made.untyped_storage().data_ptr(), made.stride(0)
        if all(one.untyped_storage().data_ptr() == start for one in features):
            return [one.storage_offset() // step for one in features]
    if len(features) == tower.images:
        return list(range(tower.images))
    raise UnsupportedModel(
        f"the tower made features of {tower.images} images but the call carries {len(features)}, so it is unknown which patches "
        "of them are alive; pass pixel_values, or the output of get_image_features as it is"
    )


def of_prompt(adapter: Adapter, prompt: Prompt, features: int, images: list[int], tower: TowerPass | None) -> Census:
    """Take the census of prompts at language layer 0.

    Args:
        adapter: the model.
        prompt: the call.
        features: F, visual tokens of an image.
        images: for each image in the order of the placeholders, its row in the tower's pass.
        tower: what the tower left, None where it ran unpruned.

    Raises:
        BadInput: a prompt whose number of visual tokens is no multiple of F.
    """
    device = prompt.visual.device
    started, live_counts = _count(prompt, features * len(images))
    for row, count in enumerate(started):
        if count % features:
            raise BadInput(
                f"prompt {row} has {count} image tokens, but an image of this model takes {features}; "
                "let the processor expand the image token: processor(images=..., text=...)"
            )
    most = max(started)
    where = torch.sort((~prompt.visual).to(torch.uint8), dim=1, stable=True).indices[:, :most]
    patch = feature_patches(adapter, features, device)
    position = grid_positions(adapter.shape.patches, adapter.grid, device)[patch.clamp(min=0)]
    position = position.masked_fill((patch < 0).unsqueeze(1), -1)
    number = torch.arange(most, device=device)
    there = torch.tensor(started, device=device).unsqueeze(1)
    alive, counts, carried = number < there, list(started), None
    if tower is not None and images:
        alive, counts, carried = _arrived(tower, patch, images, started, alive)
    live = torch.ones_like(prompt.visual) if prompt.live is None else prompt.live
    return Census(
        where=where,
        alive=alive,
        counts=counts,
        started=started,
        others=live & ~prompt.visual,
        other_counts=[a - b for a, b in zip(live_counts, started, strict=True)],
        position=position[number % features],
        image=number // features,
        grid=adapter.grid,
        ids=prompt.ids,
        candidates=prompt.candidates,
        carried=carried,
    )


def _count(prompt: Prompt, visual: int) -> tuple[list[int], list[int]]:
    """Visual and live tokens of each prompt; one device sync, none for a single unpadded prompt."""
    batch, length = prompt.visual.shape
    if batch == 1 and prompt.live is None:
        return [visual], [length]
    seen = prompt.visual.sum(1)
    live = torch.full_like(seen, length) if prompt.live is None else prompt.live.sum(1)
    both = torch.stack([seen, live]).tolist()
    return [int(n) for n in both[0]], [int(n) for n in both[1]]


def _arrived(
    tower: TowerPass, patch: Tensor, images: list[int], started: list[int], there: Tensor
) -> tuple[Tensor, list[int], Tensor | None]:
    """Spread what is alive of each image over the prompts' visual tokens: alive `[B, N]`, counts, carried scores."""
    features, device = patch.shape[0], patch.device
    alive, counts = feature_alive(patch.to(tower.alive.device), tower)
    index = torch.tensor(images, device=alive.device)
    first = [sum(started[:row]) for row in range(len(started))]
    place = torch.arange(there.shape[1], device=device) + torch.tensor(first, device=device).unsqueeze(1)
    place = place.clamp(max=len(images) * features - 1)
    spread = alive[index].reshape(-1).to(device)[place] & there
    per_row = [
        sum(counts[images[i]] for i in range(start // features, (start + n) // features))
        for start, n in zip(first, started, strict=True)
    ]
    carried = None
    if tower.scores is not None:
        scores = tower.scores[:, patch.to(tower.scores.device).clamp(min=0)]
        scores = scores.masked_fill((patch < 0).to(scores.device), torch.nan)
        carried = scores[index].reshape(-1).to(device)[place].masked_fill(~spread, torch.nan)
    return spread, per_row, carried
