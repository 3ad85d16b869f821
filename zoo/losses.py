"""What `atp-mini-llava` is taught: dense labels for the tower, answers, and aids that make the language model learn soon."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from build import tokens_of
from data import GRID, PREFIX, Batch
from packed import TEXT_START, phases
from torch import Tensor, nn
from torch.nn import functional as F

from atp.scenes.catalog import CATEGORIES, COLOR_NAMES

PATCHES = 196
LOUDNESS = 8.0  # RMS units from one side of the image to the other: our choice


class Heads(nn.Module):
    """Auxiliary heads on the tower's last layer: dense labels on patches, presence on the class token. Not shipped."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.category, self.color = nn.Linear(width, 47), nn.Linear(width, 8)
        self.offset, self.center = nn.Linear(width, 3), nn.Linear(width, 1)
        self.present = nn.Linear(width, 46)
        self.place, self.spot = nn.Linear(width, 3), nn.Linear(width, 3)
        self.meant, self.number = nn.Linear(width, 3), nn.Linear(width, 6)

    def loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        x = self.norm(features)
        patch, cls = x[:, 1:], x[:, 0]
        weight = torch.ones(47)
        weight[0] = 0.25
        kind = self.category(patch).float().flatten(0, 1)
        truth = batch.category.flatten()
        category = F.cross_entropy(kind, truth, weight=weight)
        color = F.cross_entropy(self.color(patch).float().flatten(0, 1), batch.color.flatten(), ignore_index=-100)
        on = truth > 0
        offset = F.smooth_l1_loss(self.offset(patch).float().flatten(0, 1)[on], batch.offset.flatten(0, 1)[on])
        center = F.binary_cross_entropy_with_logits(
            self.center(patch).float()[..., 0], batch.center, pos_weight=torch.tensor(5.0)
        )
        spot = place_loss(self.spot, patch, batch)
        present = F.binary_cross_entropy_with_logits(self.present(cls).float(), batch.present, pos_weight=torch.tensor(3.0))
        with torch.no_grad():
            colored = batch.color.flatten() >= 0
            guess = self.color(patch).flatten(0, 1)[colored].argmax(-1)
            shown = {
                "category_acc": (kind[on].argmax(-1) == truth[on]).float().mean().item(),
                "color_acc": (guess == batch.color.flatten()[colored]).float().mean().item(),
                "center": center.item(),
                "present": present.item(),
                "offset": offset.item(),
                "spot": spot.item(),
            }
        return category + 0.5 * color + 2 * offset + center + 0.5 * present + 2 * spot, shown


def loudly(head: nn.Linear, image: Tensor) -> Tensor:
    """Read places along unit directions of the RMS-normed patch, so that they must be as loud as categories are.

    A free linear head finds a place that is 10 times quieter than the category, and the language model does not (dev/LOG.md).
    """
    return F.rms_norm(image, image.shape[-1:]) @ F.normalize(head.weight, dim=1).T / LOUDNESS + 0.5


def place_loss(read: Callable[[Tensor], Tensor], image: Tensor, batch: Batch) -> Tensor:
    """Each projected object patch `[B,P,D]` should say where its object is and how large: centre and side, in image sides."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    here = torch.stack([columns, rows, torch.zeros_like(rows)], -1).view(1, PATCHES, 3)
    truth = (4 * batch.offset + here + torch.tensor([0.5, 0.5, 0.0])) / GRID
    on = batch.category > 0
    return F.l1_loss(read(image).float()[on], truth[on])


def parts(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Tower, projector, text model."""
    core = model.model
    return getattr(core.vision_tower, "vision_model", core.vision_tower), core.multi_modal_projector, core.language_model


class Words:
    """Ties patches to words: a projected patch should point the way its category's and its colour's embeddings point.

    What a LLaVA learns from captions, said directly. Without it the language stage sat at chance for its first minutes
    (dev/LOG.md).
    """

    def __init__(self, vocab: dict[str, int]) -> None:
        self.names = torch.tensor([tokens_of(c.name, vocab)[0] for c in CATEGORIES])
        self.colors = torch.tensor([tokens_of(c, vocab)[0] for c in COLOR_NAMES])

    def loss(self, image: Tensor, embed: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of cosines x 16 over category names and over colours, on object patches `[B,P,D]`."""
        at = F.normalize(image.flatten(0, 1).float(), dim=-1)
        kind, color = batch.category.flatten() - 1, batch.color.flatten()
        name = 16 * at[kind >= 0] @ F.normalize(embed[self.names].float(), dim=-1).T
        tint = 16 * at[color >= 0] @ F.normalize(embed[self.colors].float(), dim=-1).T
        return F.cross_entropy(name, kind[kind >= 0]) + F.cross_entropy(tint, color[color >= 0])


def answer_loss(
    model: nn.Module, heads: Heads, features: Tensor, batch: Batch, length: int, run_language: Any, tie: Words, guided: bool
) -> tuple[Tensor, dict[str, Tensor], float]:
    """The loss of answers, those of the aids by name, and the share of wholly right answers."""
    _, projector, text = parts(model)
    embed = text.embed_tokens.weight
    b = features.shape[0]
    image = projector(features[:, 1:])
    prefix = torch.cat([embed[torch.tensor(PREFIX)].expand(b, -1, -1), image], 1)
    start = TEXT_START + PATCHES
    rope_p = phases(text, torch.arange(start), prefix.dtype)
    rope_t = phases(text, torch.arange(start, start + length), prefix.dtype)
    visible = torch.full((length, length), float("-inf"), dtype=prefix.dtype).triu(1)
    hidden, middle, seen = run_language(text, prefix, F.embedding(batch.tokens, embed), visible, rope_p, rope_t, guided)
    wanted = batch.targets >= 0
    logits = (hidden[wanted] @ embed.T).float()
    goal = batch.targets[wanted]
    loss = F.cross_entropy(logits, goal)
    with torch.no_grad():
        wrong = torch.zeros_like(batch.targets, dtype=torch.bool)
        wrong[wanted] = logits.argmax(-1) != goal
        slots = wanted.view(-1, length).any(1)
        right = ~wrong.view(-1, length).any(1)[slots]
    meant, number = meant_loss(heads, middle, batch)
    aids = {
        "tie": tie.loss(image, embed, batch),
        "place": place_loss(partial(loudly, heads.place), image, batch),
        "guide": guide(seen, batch),
        "meant": meant,
        "number": number,
    }
    return loss, aids, right.float().mean().item()


def meant_loss(heads: Heads, middle: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """After the guided layers a noun `middle` `[B,K*T,D]` should know where what it names is, how large, and how many there are.

    Answers about relations and sizes are comparisons of these, and were not learned until they were taught (dev/LOG.md).
    """
    if not len(batch.nouns):
        return torch.zeros(()), torch.zeros(())
    row, at = batch.nouns.T
    here = middle[row, at]
    spots = (batch.where & (batch.center[row] > 0)).sum(-1).clamp(max=5)
    number = F.cross_entropy(heads.number(F.rms_norm(here, here.shape[-1:])).float(), spots)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    grid = torch.stack([columns, rows, torch.zeros_like(rows)], -1).view(PATCHES, 3)
    truth = (4 * batch.offset + grid + torch.tensor([0.5, 0.5, 0.0])) / GRID  # [B,P,3], of the object on each patch
    one = spots == 1
    if not one.any():
        return torch.zeros(()), number
    first = (batch.where & (batch.center[row] > 0))[one].float().argmax(-1)
    return F.l1_loss(loudly(heads.meant, here[one]).float(), truth[row[one], first]), number


def guide(seen: list[Tensor], batch: Batch) -> Tensor:
    """Teach some heads of two layers to look from a noun at the patches it names, or at <s> where there are none.

    A start-up aid: its weight falls to 0 before a stage ends, so what the shipped model attends to is its own.

    Args:
        seen: per guided layer `[B,heads,K*T,P]` attention to the prefix: <s>, USER:, the image.
        batch: its `nouns`, `where` and `tinted`.
    """
    if not seen or not len(batch.nouns):
        return torch.zeros(())
    row, place = batch.nouns.T
    losses = []
    for attention in seen:
        own = attention[row, :, place].float()  # [n,heads,P]
        found = (own[..., TEXT_START:] * batch.where[:, None]).sum(-1)
        mass = torch.where(batch.where.any(-1)[:, None], found, own[..., 0])
        weight = 1 + 3 * batch.tinted[:, None].float()  # red + car is learned later than car
        losses.append(-((mass + 1e-4).log() * weight).mean() / weight.mean())
    return torch.stack(losses).mean()
