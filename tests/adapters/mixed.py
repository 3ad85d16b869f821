"""Prompts with images and videos in any order, as Qwen's processors make them, and the masked reference for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conformance import hiding as masked
from families import Inputs
from families.base import BEGIN, END, IMAGE, VIDEO, noise, prompts
from families.packed import FRAMES, GRIDS, MERGE, PATCH

ROWS = (("image", "video"), ("video", "image", "image"), ("video",))
TOKEN = {"image": IMAGE, "video": VIDEO}
KEYS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}


def mixed(model: Any, rows: Any = ROWS, texts: Any = (6, 9, 4)) -> Inputs:
    """Prompts with images and videos of several sizes, in any order."""
    generator = torch.Generator().manual_seed(2)
    sizes = iter(GRIDS * 3)
    grids: dict[str, list[tuple[int, int, int]]] = {"image": [], "video": []}
    blocks: list[list[list[int]]] = []
    for row in rows:
        blocks.append([])
        for kind in row:
            high, wide = next(sizes)
            time = 1 if kind == "image" else FRAMES
            grids[kind].append((time, high, wide))
            frame = [TOKEN[kind]] * (high * wide // MERGE**2)
            if kind == "video" and model.config.model_type == "qwen3_vl":
                blocks[-1].append([each for number in range(time) for each in (20 + number, BEGIN, *frame, END)])
            else:
                blocks[-1].append([BEGIN, *frame * time, END])
    inputs = prompts(texts, blocks, "left", generator)
    ids = inputs["input_ids"]
    inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    for kind, found in grids.items():
        if found:
            made = torch.tensor(found)
            inputs[KEYS[kind][0]] = noise(generator, model, int(made.prod(-1).sum()), 3 * 2 * PATCH**2)
            inputs[KEYS[kind][1]] = made
    return inputs


def alone(inputs: Inputs, row: int) -> Inputs:
    """One prompt of `mixed`."""
    mask = inputs["attention_mask"][row].bool()
    one = Inputs({key: inputs[key][row : row + 1, mask] for key in ("input_ids", "attention_mask", "mm_token_type_ids")})
    for kind, (pixels, grids) in KEYS.items():
        first = sum(each.count(kind) for each in ROWS[:row])
        counts = inputs[grids].prod(-1).tolist()
        last = first + ROWS[row].count(kind)
        if last > first:
            one[pixels] = inputs[pixels][sum(counts[:first]) : sum(counts[:last])]
            one[grids] = inputs[grids][first:last]
    return one


class Several(masked.Hiding):
    """The masked reference where the tower runs twice: images, then videos."""

    def enter_tower(self, module: Any, args: Any, kwargs: Any) -> None:
        self.calls = [*getattr(self, "calls", []), self.adapter.images(args, kwargs)]
        self.images, self.offsets = self.calls[-1], {}

    def patches(self, layer: int) -> Tensor:
        images, first = self.calls[-1], sum(len(one.counts) for one in self.calls[:-1])
        there = images.others.clone()
        kept = [range(count) for one in self.calls for count in one.counts]
        for record in self.trace.last("vision"):
            if record.layer <= layer:
                kept = [row.tolist() for row in record.kept]
        for image in range(len(images.counts)):
            there[0, images.where[image, list(kept[first + image])].flatten()] = True
        return there

    def arrived(self) -> list[set[int]]:
        ends, kinds = self.trace.last("vision")[-1], {}
        first = 0
        for kind, images in zip(KEYS, self.calls, strict=True):
            rows = ends.kept[first : first + len(images.counts)]
            first += len(images.counts)
            kinds[TOKEN[kind]] = iter(
                [n in set(row.tolist()) for row, c in zip(rows, images.counts, strict=True) for n in range(c)]
            )
        tokens = [ids[visual].tolist() for ids, visual in zip(self.ids, self.visual, strict=True)]
        return [{number for number, token in enumerate(row) if next(kinds[token])} for row in tokens]

    ids: Tensor
