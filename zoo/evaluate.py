"""Accuracy of a checkpoint on held-out scenes by kind of question: `python zoo/evaluate.py [STAGE] [--backbone B]`.

Runs the packed forward (equal to transformers' own, see tests/zoo), so thousands of questions take seconds.
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from backbones import BACKBONES, get
from build import vocabulary
from data import make_batch, pack
from feed import LENGTH, QUESTIONS, STAGES
from losses import Heads
from train import Job

from atp.scenes import ask, make_scene


@torch.no_grad()
def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", default="joint", choices=STAGES)
    parser.add_argument("--backbone", default="llava", choices=BACKBONES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--split", default="val")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    device = torch.device(args.device)
    backbone = get(args.backbone)
    state = torch.load(Job(args.stage, 0.0, args.backbone).path(args.stage), weights_only=True)
    model, heads = backbone.make_model(), Heads(side=backbone.side * backbone.resampled)
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"], strict=False)
    model, heads = model.to(device, torch.bfloat16).eval(), heads.to(device, torch.bfloat16).eval()
    vocab = {piece: i for i, piece in enumerate(vocabulary())}
    embed = backbone.embed(model)
    right, total = Counter[str](), Counter[str]()
    dense = Counter[str]()
    images = -(-args.questions // QUESTIONS)
    for first in range(0, images, 10):
        seeds = list(range(first, min(first + 10, images)))
        batch = make_batch(seeds, vocab, QUESTIONS, LENGTH, split=args.split).to(device)
        features = backbone.tower(backbone.vision(model), batch.pixels.bfloat16())
        _, shown = heads.loss(features, batch)
        dense.update({key: float(value) for key, value in shown.items()})
        dense["batches"] += 1
        if args.stage == "vision":
            continue
        image, _ = backbone.connect(model, features)
        hidden, _, _ = backbone.language(*backbone.arguments(model, image, batch.tokens, LENGTH))
        guess = (hidden @ embed.T).argmax(-1)
        good = ((guess == batch.targets) | (batch.targets < 0)).view(len(seeds), QUESTIONS, LENGTH).all(-1)
        for row, seed in enumerate(seeds):
            slot = 0
            for question in ask(make_scene(seed, args.split), QUESTIONS, seed=1):
                if not any(t >= 0 for t in pack([(question.text, question.answer)], vocab, 1, LENGTH)[1]):
                    continue
                right[question.kind] += int(good[row, slot])
                total[question.kind] += 1
                slot += 1
    print({key: round(value / dense["batches"], 4) for key, value in dense.items() if key != "batches"})
    if total:
        print({kind: round(100 * right[kind] / total[kind], 1) for kind in total})
        print(f"overall {100 * right.total() / total.total():.2f} of {total.total()} questions, step {state['step']}")


if __name__ == "__main__":
    main()
