"""What the backbones are taught: dense labels for the tower, answers, and aids that make the language model learn soon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from backbones import PATCHES, Backbone
from build import tokens_of
from data import GRID, Batch
from torch import Tensor, nn
from torch.nn import functional as F

from atp.scenes.catalog import CATEGORIES, COLOR_NAMES

LOUDNESS = 8.0  # RMS units from one side of the image to the other: our choice


class Heads(nn.Module):
    """Auxiliary heads on the tower's last layer: dense labels on patches, presence on the class token. Not shipped.

    With `side`, a patch also says in which cell of a grid of that side it lies, which a resampler's latents have to find.
    """

    def __init__(self, width: int = 192, side: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.category, self.color = nn.Linear(width, 47), nn.Linear(width, 8)
        self.offset, self.center = nn.Linear(width, 3), nn.Linear(width, 1)
        self.present = nn.Linear(width, 46)
        self.place, self.spot = nn.Linear(width, 3), nn.Linear(width, 3)
        self.meant, self.number = nn.Linear(width, 3), nn.Linear(width, 6)
        self.side = side
        self.cell = nn.Linear(width, side**2) if side else None

    def loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.norm(features)
        patch, cls = x[:, 1:], x[:, 0]
        weight = torch.ones(47, device=x.device)
        weight[0] = 0.25
        kind = self.category(patch).float().flatten(0, 1)
        truth = batch.category.flatten()
        category = F.cross_entropy(kind, truth, weight=weight)
        color = F.cross_entropy(self.color(patch).float().flatten(0, 1), batch.color.flatten(), ignore_index=-100)
        on = truth > 0
        offset = F.smooth_l1_loss(self.offset(patch).float().flatten(0, 1)[on], batch.offset.flatten(0, 1)[on])
        five, three = torch.tensor(5.0, device=x.device), torch.tensor(3.0, device=x.device)
        center = F.binary_cross_entropy_with_logits(self.center(patch).float()[..., 0], batch.center, pos_weight=five)
        spot = place_loss(self.spot, patch, labels(batch, GRID))
        present = F.binary_cross_entropy_with_logits(self.present(cls).float(), batch.present, pos_weight=three)
        loss = category + 0.5 * color + 2 * offset + center + 0.5 * present + 2 * spot
        with torch.no_grad():
            colored = batch.color.flatten() >= 0
            guess = self.color(patch).flatten(0, 1)[colored].argmax(-1)
            shown = {
                "category_acc": (kind[on].argmax(-1) == truth[on]).float().mean(),
                "color_acc": (guess == batch.color.flatten()[colored]).float().mean(),
                "center": center,
                "present": present,
                "offset": offset,
                "spot": spot,
            }
        if self.cell is not None:
            own = cells(self.side).to(x.device).repeat(len(x))
            shown["cell"] = F.cross_entropy(self.cell(patch).float().flatten(0, 1), own)
            loss = loss + 0.5 * shown["cell"]
        return loss, {key: value.detach() for key, value in shown.items()}


def loudly(head: nn.Linear, image: Tensor) -> Tensor:
    """Read places along unit directions of the RMS-normed patch, so that they must be as loud as categories are.

    A free linear head finds a place that is 10 times quieter than the category, and the language model does not (dev/LOG.md).
    """
    return F.rms_norm(image, image.shape[-1:]) @ F.normalize(head.weight, dim=1).T / LOUDNESS + 0.5


def cells(side: int) -> Tensor:
    """The cell of every patch, `[P]`, on a grid of `side` x `side` cells."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return (rows * side // GRID * side + columns * side // GRID).flatten()


def places(batch: Batch) -> Tensor:
    """Centre and side of the object on each patch, in image sides, `[B,P,3]`; of no meaning on the background."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    here = torch.stack([columns, rows, torch.zeros_like(rows)], -1).view(1, PATCHES, 3).to(batch.offset.device)
    return (4 * batch.offset + here + torch.tensor([0.5, 0.5, 0.0], device=batch.offset.device)) / GRID


@dataclass
class Labels:
    """A batch's labels on L visual tokens: patches, or the cells that latents stand for at first."""

    category: Tensor  # [B,L]
    color: Tensor  # [B,L]
    places: Tensor  # [B,L,3]
    where: Tensor  # [n,L] bool


def labels(batch: Batch, side: int) -> Labels:
    """Labels on a grid of `side` x `side`; a cell takes those of its most frequent object, a noun's cells are all it touches."""
    if side == GRID:
        return Labels(batch.category, batch.color, places(batch), batch.where)
    inside = cells(side).argsort(stable=True).view(side**2, -1).to(batch.category.device)  # [L, patches of a cell]
    kind = (batch.category * 16 + batch.color.clamp(min=-1))[:, inside]
    votes = (kind[..., None] == kind[..., None, :]).sum(-1) + 8 * (batch.category[:, inside] > 0)
    chosen = inside[torch.arange(side**2, device=inside.device), votes.argmax(-1)]  # [B,L], a patch
    return Labels(
        batch.category.gather(1, chosen),
        batch.color.gather(1, chosen),
        places(batch).gather(1, chosen[..., None].expand(-1, -1, 3)),
        batch.where[:, inside].any(-1),
    )


def place_loss(read: Callable[[Tensor], Tensor], image: Tensor, truth: Labels) -> Tensor:
    """Each visual token on an object `[B,L,D]` should say where its object is and how large: centre and side, in image sides."""
    on = truth.category > 0
    return F.l1_loss(read(image).float()[on], truth.places[on])


def look_loss(looks: list[Tensor], side: int) -> Tensor:
    """The first heads of latent i should look at cell i, `[B,heads,L,P]` a layer: a start-up aid like `guide`."""
    own = cells(side).to(looks[0].device) == torch.arange(side**2, device=looks[0].device)[:, None]
    return torch.stack([-((look.float() * own).sum(-1) + 1e-4).log().mean() for look in looks]).mean()


class Words:
    """Ties visual tokens to words: one on an object should point the way its category's and its colour's embeddings point.

    What a LLaVA learns from captions, said directly. Without it the language stage sat at chance for its first minutes
    (dev/LOG.md).
    """

    def __init__(self, vocab: dict[str, int], device: torch.device | str = "cpu") -> None:
        self.names = torch.tensor([tokens_of(c.name, vocab)[0] for c in CATEGORIES], device=device)
        self.colors = torch.tensor([tokens_of(c, vocab)[0] for c in COLOR_NAMES], device=device)

    def loss(self, image: Tensor, embed: Tensor, truth: Labels) -> Tensor:
        """Cross-entropy of cosines x 16 over category names and over colours, on visual tokens on objects `[B,L,D]`."""
        at = F.normalize(image.flatten(0, 1).float(), dim=-1)
        kind, color = truth.category.flatten() - 1, truth.color.flatten()
        name = 16 * at[kind >= 0] @ F.normalize(embed[self.names].float(), dim=-1).T
        tint = 16 * at[color >= 0] @ F.normalize(embed[self.colors].float(), dim=-1).T
        loss = F.cross_entropy(name, kind[kind >= 0])
        return loss + F.cross_entropy(tint, color[color >= 0]) if len(tint) else loss  # a small batch may have no colour


def answer_loss(
    backbone: Backbone,
    model: nn.Module,
    heads: Heads,
    seen: tuple[Tensor, list[Tensor]],
    batch: Batch,
    length: int,
    run_language: Any,
    tie: Words,
    guided: bool,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss of answers, those of the aids by name, and the share of wholly right answers; `seen` as `connect` gives it."""
    embed, (image, looks) = backbone.embed(model), seen
    hidden, middle, attention = run_language(*backbone.arguments(model, image, batch.tokens, length), guided)
    wanted = batch.targets >= 0
    logits = (hidden[wanted] @ embed.T).float()
    goal = batch.targets[wanted]
    loss = F.cross_entropy(logits, goal)
    with torch.no_grad():
        wrong = torch.zeros_like(batch.targets, dtype=torch.bool)
        wrong[wanted] = logits.argmax(-1) != goal
        slots = wanted.view(-1, length).any(1)
        right = ~wrong.view(-1, length).any(1)[slots]
    truth = labels(batch, backbone.side)
    meant, number = meant_loss(heads, middle, batch)
    aids = {
        "tie": tie.loss(image, embed, truth),
        "place": place_loss(partial(loudly, heads.place), image, truth),
        "guide": guide([backbone.split(one) for one in attention], batch, truth),
        "meant": meant,
        "number": number,
    }
    if looks:
        aids["look"] = look_loss(looks, backbone.side)
    return loss, aids, right.float().mean()


def meant_loss(heads: Heads, middle: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """After the guided layers a noun `middle` `[B,K*T,D]` should know where what it names is, how large, and how many there are.

    Answers about relations and sizes are comparisons of these, and were not learned until they were taught (dev/LOG.md).
    """
    none = torch.zeros((), device=middle.device)
    if not len(batch.nouns):
        return none, none
    row, at = batch.nouns.T
    here = middle[row, at]
    spots = (batch.where & (batch.center[row] > 0)).sum(-1).clamp(max=5)
    number = F.cross_entropy(heads.number(F.rms_norm(here, here.shape[-1:])).float(), spots)
    truth = places(batch)
    one = spots == 1
    if not one.any():
        return none, number
    first = (batch.where & (batch.center[row] > 0))[one].float().argmax(-1)
    return F.l1_loss(loudly(heads.meant, here[one]).float(), truth[row[one], first]), number


def guide(seen: list[tuple[Tensor, Tensor | None]], batch: Batch, truth: Labels) -> Tensor:
    """Teach some heads to look from a noun at what it names, or at <s> where there is nothing (and <s> can be seen).

    A start-up aid: its weight falls to 0 before a stage ends, so what the shipped model attends to is its own.

    Args:
        seen: per guided layer the attention to visual tokens `[B,heads,K*T,L]` and to <s> `[B,heads,K*T]`.
        batch: its `nouns` and `tinted`.
        truth: its `where`.
    """
    if not seen or not len(batch.nouns):
        return torch.zeros((), device=batch.tokens.device)
    row, place = batch.nouns.T
    there = truth.where.any(-1)[:, None]
    losses = []
    for image, start in seen:
        found = (image[row, :, place].float() * truth.where[:, None]).sum(-1)  # [n,heads]
        mass = torch.where(there, found, torch.ones_like(found) if start is None else start[row, :, place].float())
        weight = 1 + 3 * batch.tinted[:, None].float()  # red + car is learned later than car
        losses.append(-((mass + 1e-4).log() * weight).mean() / weight.mean())
    return torch.stack(losses).mean()
