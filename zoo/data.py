"""Training batches from the scene generator: pixels, dense patch labels, packed questions. Seeded by (stage, worker, step)."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import numpy as np
import torch
from build import ASSISTANT, EOS, PAD, PATCH, SIZE, USER, tokens_of
from PIL import Image
from torch import Tensor

from atp.scenes.captions import caption
from atp.scenes.catalog import CATEGORIES, COLOR_NAMES
from atp.scenes.questions import ask
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
    nouns: Tensor  # [n,2] (image, place in K*T) of every question token that names a category
    where: Tensor  # [n,P] bool, the patches that it names; all False where there is none
    tinted: Tensor  # [n] bool, whether a colour word comes before it

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, copied without waiting where it can be."""
        pin = device.type == "cuda"
        parts = (getattr(self, field.name) for field in fields(self))
        return Batch(*((p.pin_memory() if pin else p).to(device, non_blocking=pin) for p in parts))


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
    drawn: int = SIZE,
    taught: bool = False,
) -> Batch:
    """Build one batch from scene seeds; `drawn` larger than the model's size goes through the processor's bicubic resize.

    With `taught`, questions come from `lesson` instead of the grammar's own shares.
    """
    names = {tokens_of(form, vocab)[0]: i for i, c in enumerate(CATEGORIES) for form in (c.name, c.plural)}
    tints = {tokens_of(name, vocab)[0]: i for i, name in enumerate(COLOR_NAMES)}
    rows: list[tuple] = []
    for seed in seeds:
        scene = make_scene(seed, split, most=most, fewest=min(3, most))
        image, owner = render(scene, drawn)
        if drawn != SIZE:
            image = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            owner = owner[:: drawn // SIZE, :: drawn // SIZE]
        present = np.zeros(46, np.float32)
        present[[t.category for t in scene.things]] = 1
        if captions:
            sequences = [(CAPTION_PROMPT, caption(scene))]
        elif questions:
            asked = [(q.text, q.answer) for q in ask(scene, questions, seed=1)]
            sequences = lesson(scene, questions) if split == "train" and taught else asked
        else:
            sequences = []
        rows.append((image, *patch_labels(scene, owner), present, *pack(sequences, vocab, questions, length)))
    image, category, color, offset, center, present, tokens, targets = (list(c) for c in zip(*rows, strict=True))
    nouns, where, tinted = [], [], []
    for number, (ids, kinds, shades) in enumerate(zip(tokens, category, color, strict=True)):
        places, masks, colored = named_patches(ids, names, tints, kinds, shades, ahead=captions)
        nouns += [(number, place) for place in places]
        where += masks
        tinted += colored
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
        torch.tensor(nouns, dtype=torch.long).view(-1, 2),
        torch.from_numpy(np.array(where, dtype=bool).reshape(-1, GRID * GRID)),
        torch.tensor(tinted, dtype=torch.bool),
    )


def drills(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """One-object questions that the product's grammar does not ask: which half of the image, larger or smaller than usual.

    They teach to read the place and the size of a named object, which relations and comparisons then have to compare.
    """
    names = [t.name for t in scene.things]
    out = []
    for thing in rng.choices([t for t in scene.things if names.count(t.name) == 1] or [None], k=count):
        if thing is None:
            break
        form = rng.randrange(3)
        if form == 0 and abs(thing.x - 0.5) > 0.04:
            out.append((f"Is the {thing.name} left or right?", "left" if thing.x < 0.5 else "right"))
        elif form == 1 and abs(thing.y - 0.5) > 0.04:
            out.append((f"Is the {thing.name} above or below?", "above" if thing.y < 0.5 else "below"))
        elif form == 2 and abs(thing.side - 0.24) > 0.02:
            out.append((f"Is the {thing.name} bigger or smaller?", "bigger" if thing.side > 0.24 else "smaller"))
    return list(dict.fromkeys(out))


def lesson(scene: Scene, count: int) -> list[tuple[str, str]]:
    """Draw training questions: a third in the grammar's own shares, the rest from the forms that are learned last."""
    rng = random.Random(scene.seed)
    plain = [(q.text, q.answer) for q in ask(scene, count // 3, seed=1)]
    pairs = [(q.text, q.answer) for q in ask(scene, count // 3, seed=2, kinds=("relation", "comparison", "extreme"))]
    bound = [(q.text, q.answer) for q in ask(scene, count, seed=3, kinds=("existence", "color"))]
    bound = [(t, a) for t, a in bound if a in ("yes", "no") and any(c in t for c in COLOR_NAMES)][: count // 5]
    return list(dict.fromkeys([*plain, *pairs, *bound, *drills(scene, rng, count)]))[:count]


def named_patches(
    tokens: list[int],
    names: dict[int, int],
    tints: dict[int, int],
    category: np.ndarray,
    color: np.ndarray,
    ahead: bool = False,
) -> tuple[list[int], list[np.ndarray], list[bool]]:
    """Find the tokens that name a category, the patches each (with a colour word before it) stands for, and if it has one.

    With `ahead`, the words that lead to a name, from the `,` or `and` before its number on, stand for the same patches: who lists
    objects has to find the next one before it is named.
    """
    places, masks, tinted = [], [], []
    for place, token in enumerate(tokens):
        if token in names:
            leading = 2 + (tokens[place - 1] in tints) if ahead and place > 3 else 0
            mask = category == names[token] + 1
            tinted.append(place > 0 and tokens[place - 1] in tints)
            if tinted[-1]:
                mask = mask & (color == tints[tokens[place - 1]])
            places += range(place - leading, place + 1)
            masks += [mask] * (leading + 1)
            tinted += tinted[-1:] * leading
    return places, masks, tinted


PREFIX = [2, USER]  # <s> USER:
