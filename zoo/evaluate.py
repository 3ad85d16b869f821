"""Accuracy of a checkpoint on held-out scenes by kind of question: `python zoo/evaluate.py [STAGE] [--questions N]`.

Runs the packed forward (equal to transformers' own, see tests/zoo), so thousands of questions take seconds.
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from build import make_model, vocabulary
from data import PREFIX, make_batch, pack
from losses import PATCHES, Heads, parts
from packed import TEXT_START, language, phases, tower
from torch.nn import functional as F
from train import LENGTH, QUESTIONS, RUNS, STAGES

from atp.scenes import ask, make_scene


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", default="joint", choices=STAGES)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = torch.load(RUNS / f"{args.stage}.pt", weights_only=True)
    model, heads = make_model(), Heads()
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"], strict=False)
    model, heads = model.bfloat16().eval(), heads.bfloat16().eval()
    vision, projector, text = parts(model)
    vocab = {piece: i for i, piece in enumerate(vocabulary())}
    embed = text.embed_tokens.weight
    right, total = Counter[str](), Counter[str]()
    dense = Counter[str]()
    images = -(-args.questions // QUESTIONS)
    start = TEXT_START + PATCHES
    rope_p = phases(text, torch.arange(start), torch.bfloat16)
    rope_t = phases(text, torch.arange(start, start + LENGTH), torch.bfloat16)
    visible = torch.full((LENGTH, LENGTH), float("-inf"), dtype=torch.bfloat16).triu(1)
    for first in range(0, images, 10):
        seeds = list(range(first, min(first + 10, images)))
        batch = make_batch(seeds, vocab, QUESTIONS, LENGTH, split=args.split)
        features = tower(vision, batch.pixels.bfloat16())
        _, shown = heads.loss(features, batch)
        dense.update(shown)
        dense["batches"] += 1
        if args.stage == "vision":
            continue
        image = projector(features[:, 1:])
        prefix = torch.cat([embed[torch.tensor(PREFIX)].expand(len(seeds), -1, -1), image], 1)
        hidden, _, _ = language(text, prefix, F.embedding(batch.tokens, embed), visible, rope_p, rope_t)
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
