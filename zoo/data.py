"""Training batches from the scene generator: pixels, dense patch labels, packed questions. Seeded by (stage, worker, step)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from build import ASSISTANT, EOS, PAD, PATCH, SIZE, USER, tokens_of
from torch import Tensor

from atp.scenes.questions import ask, caption
from atp.scenes.render import render
from atp.scenes.world import Scene, make_scene

GRID = SIZE // PATCH
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
CAPTION_PROMPT = "Describe the image."


@dataclass
class Batch:
    """One step's data; B images, P patches, K questions of T tokens.

    `category` counts 0 = background, i + 1 = category i; `color` is -100 where no colour is asked; `offset` is (dx, dy, side).
    `targets` is -100 except where an answer token is to be predicted.
    """

    pixels: Tensor  # [B,3,S,S] float
    category: Tensor  # [B,P]
    color: Tensor  # [B,P]
    offset: Tensor  # [B,P,3]
    center: Tensor  # [B,P] float
    present: Tensor  # [B,46] float
    tokens: Tensor  # [B,K*T]
    targets: Tensor  # [B,K*T]


def patch_labels(scene: Scene, owner: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return category, colour, (dx, dy, side) and centre flag of every patch, raster order."""
    n = len(scene.things)
    cover = np.zeros((n, GRID, GRID), np.float32)
    for i in range(n):
        cover[i] = (owner == i).reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
    best = cover.argmax(0)
    seen = cover.max(0) >= 0.2
    kinds = np.array([t.category + 1 for t in scene.things])
    colors = np.array([t.color if t.color >= 0 else -100 for t in scene.things])
    ys, xs = np.mgrid[0:GRID, 0:GRID]
    where = np.array([[t.x * GRID - 0.5, t.y * GRID - 0.5, t.side * GRID] for t in scene.things], np.float32)
    dx, dy, side = where[best, 0] - xs, where[best, 1] - ys, where[best, 2]
    center = np.zeros((GRID, GRID), np.float32)
    for t in scene.things:
        center[min(int(t.y * GRID), GRID - 1), min(int(t.x * GRID), GRID - 1)] = 1
    category = np.where(seen, kinds[best], 0)
    color = np.where(seen, colors[best], -100)
    offset = np.stack([dx, dy, side], -1).astype(np.float32) / 4
    return category.ravel(), color.ravel(), offset.reshape(-1, 3), center.ravel()


def pack(sequences: list[tuple[str, str]], vocab: dict[str, int], count: int, length: int) -> tuple[list[int], list[int]]:
    """Lay (prompt, answer) pairs end to end in `count` slots of `length` tokens; longer ones are left out."""
    tokens, targets = [], []
    used = 0
    for prompt, answer in sequences:
        question = [*tokens_of(prompt, vocab), ASSISTANT]
        reply = tokens_of(answer, vocab)
        if len(question) + len(reply) > length or used == count:
            continue
        ids = question + reply
        goal = [-100] * (len(question) - 1) + reply + [EOS]
        tokens += ids + [PAD] * (length - len(ids))
        targets += goal + [-100] * (length - len(goal))
        used += 1
    tokens += [PAD] * (length * (count - used))
    targets += [-100] * (length * (count - used))
    return tokens, targets


def make_batch(
    seeds: list[int],
    vocab: dict[str, int],
    questions: int,
    length: int,
    most: int = 9,
    captions: bool = False,
    split: str = "train",
) -> Batch:
    """Build one batch from scene seeds."""
    rows: list[tuple] = []
    for seed in seeds:
        scene = make_scene(seed, split, most=most, fewest=min(3, most))
        image, owner = render(scene, SIZE)
        present = np.zeros(46, np.float32)
        present[[t.category for t in scene.things]] = 1
        if captions:
            sequences = [(CAPTION_PROMPT, caption(scene))]
        elif questions:
            sequences = [(q.text, q.answer) for q in ask(scene, questions, seed=1)]
        else:
            sequences = []
        rows.append((image, *patch_labels(scene, owner), present, *pack(sequences, vocab, questions, length)))
    image, category, color, offset, center, present, tokens, targets = (list(c) for c in zip(*rows, strict=True))
    pixels = torch.from_numpy(np.stack(image)).permute(0, 3, 1, 2).float() / 255
    return Batch(
        (pixels - MEAN) / STD,
        torch.from_numpy(np.stack(category)),
        torch.from_numpy(np.stack(color)),
        torch.from_numpy(np.stack(offset)),
        torch.from_numpy(np.stack(center)),
        torch.from_numpy(np.stack(present)),
        torch.tensor(tokens),
        torch.tensor(targets),
    )


PREFIX = [2, USER]  # <s> USER:
