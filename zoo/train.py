"""Train `atp-mini-llava` on generated scenes: `python zoo/train.py STAGE --minutes M` (stages: vision, language, joint).

One process a worker (two single-thread workers beat two threads on a two-core machine), gradients averaged over gloo. The
schedule follows the clock, so a stage takes the minutes it is given; a leg that is cut resumes from its last checkpoint with the
same command. Everything is logged to `zoo/runs/<stage>.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from build import PAD, SIZE, make_model, tokens_of, vocabulary
from data import GRID, PREFIX, Batch, make_batch
from packed import TEXT_START, language, phases, tower
from torch import Tensor, nn
from torch.nn import functional as F

from atp.scenes.catalog import CATEGORIES, COLOR_NAMES

RUNS = Path(os.environ.get("ATP_ZOO_RUNS", Path(__file__).parent / "runs"))
STAGES = ("vision", "language", "joint")
BATCH = {"vision": 24, "language": 8, "joint": 8}
RATE = {"vision": 1.2e-3, "language": 2e-3, "joint": 2e-4}
QUESTIONS, LENGTH, CAPTION_LENGTH = 20, 16, 56
PATCHES = 196
GUIDED_UNTIL, TAUGHT_UNTIL = 0.8, 0.85  # shares of a stage
AIDS = {"tie": 0.2, "place": 2.0, "guide": 0.4, "meant": 2.0, "number": 0.2}  # weights beside the answers' 1
LOUDNESS = 8.0  # RMS units from one side of the image to the other: our choice
LOG_EVERY = int(os.environ.get("ATP_ZOO_LOG_EVERY", "50"))


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


class Flat:
    """fp32 master weights, AdamW moments and EMA of a parameter list, each one flat vector."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        self.master = torch.cat([p.detach().float().flatten() for p in params])
        self.m, self.v = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.ema = self.master.clone()
        self.decay = torch.cat([torch.full((p.numel(),), 0.03 if p.ndim > 1 else 0.0) for p in params])
        self.step_count = 0

    def step(self, rate: float, workers: int) -> float:
        grad = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).float().flatten() for p in self.params])
        if workers > 1:
            dist.all_reduce(grad)
            grad /= workers
        norm = grad.norm().item()
        if not math.isfinite(norm):
            return norm
        grad *= min(1.0, 1.0 / (norm + 1e-6))
        self.step_count += 1
        t = self.step_count
        self.m.mul_(0.9).add_(grad, alpha=0.1)
        self.v.mul_(0.98).addcmul_(grad, grad, value=0.02)
        update = (self.m / (1 - 0.9**t)) / ((self.v / (1 - 0.98**t)).sqrt() + 1e-8)
        self.master.add_(update + self.decay * self.master, alpha=-rate)
        self.ema.lerp_(self.master, max(1 - 0.9985, 1 / (t + 1)))
        self.write(self.master)
        return norm

    def write(self, vector: Tensor) -> None:
        """Copy a flat vector into the parameters."""
        at = 0
        with torch.no_grad():
            for p in self.params:
                p.copy_(vector[at : at + p.numel()].view_as(p))
                p.grad = None
                at += p.numel()


def parts(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Tower, projector, text model."""
    core = model.model
    return getattr(core.vision_tower, "vision_model", core.vision_tower), core.multi_modal_projector, core.language_model


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


def save(path: Path, state: dict) -> None:
    """Write atomically: a kill leaves the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def worker(rank: int, workers: int, stage: str, minutes: float, port: int, start: str | None) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    torch.manual_seed(0)
    model, heads = make_model(), Heads()
    vocab = {piece: i for i, piece in enumerate(vocabulary())}
    tie = Words(vocab)
    path, elapsed, step = RUNS / f"{stage}.pt", 0.0, 0
    before = RUNS / f"{STAGES[STAGES.index(stage) - 1]}.pt" if stage != "vision" else None
    before = Path(start) if start else before
    if before is not None:
        old = torch.load(before, weights_only=True)
        model.load_state_dict(old["model"])
        heads.load_state_dict(old["heads"], strict=False)
    vision, projector, text = parts(model)
    if stage == "vision":
        trained: list[nn.Module] = [vision, heads]
    elif stage == "language":
        trained = [projector, text, heads.place, heads.meant, heads.number]
    else:
        trained = [vision, heads, projector, text]
    flat = Flat([p for part in trained for p in part.parameters()])
    if path.exists():
        state = torch.load(path, weights_only=True)
        flat.master, flat.m, flat.v, flat.ema = (state["flat"][k] for k in ("master", "m", "v", "ema"))
        flat.step_count, elapsed, step = state["t"], state["elapsed"], state["step"]
    model, heads = model.bfloat16(), heads.bfloat16()
    flat.write(flat.master)
    run_tower = torch.compile(tower, dynamic=False)
    run_language = torch.compile(language, dynamic=False)
    log = (RUNS / f"{stage}.jsonl").open("a") if rank == 0 else None
    begin, shown, images, mark = time.time(), {}, 0, time.time()
    saved = time.time()
    while True:
        spent = torch.tensor(elapsed + (time.time() - begin) / 60)
        if workers > 1:
            dist.broadcast(spent, 0)
        done = spent.item() / minutes
        if done >= 1:
            break
        rate = RATE[stage] * min(1, (step + 1) / 150) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))
        most = 9 if stage != "language" else min(9, 3 + int(done * 40))
        captions = stage == "joint" and step % 16 == 15
        size = BATCH[stage]
        base = (STAGES.index(stage) * 500 + rank) * 1_000_000 + step * size
        count, length = (1, CAPTION_LENGTH) if captions else (QUESTIONS if stage != "vision" else 0, LENGTH)
        drawn = 224 if stage != "vision" and done > 0.4 and step % 2 else SIZE  # users' pictures are larger and get resized
        batch = make_batch(
            list(range(base, base + size)), vocab, count, length, most, captions, drawn=drawn, taught=stage == "language"
        )
        pixels = batch.pixels.bfloat16()
        loss, info = torch.zeros(()), {}
        if stage == "language":
            with torch.no_grad():
                features = run_tower(vision, pixels)
        else:
            features = run_tower(vision, pixels)
            dense, info = heads.loss(features, batch)
            loss = loss + dense * (1.0 if stage == "vision" else 0.2)
        if stage != "vision":
            help_left = max(0.0, 1 - done / GUIDED_UNTIL)
            told, aids, right = answer_loss(model, heads, features, batch, length, run_language, tie, help_left > 0)
            weight = AIDS | {"guide": AIDS["guide"] * help_left}
            loss = loss + told + sum(weight[key] * value for key, value in aids.items())
            info |= {f"{key}_loss": value.item() for key, value in aids.items()}
            info["caption_acc" if captions else "answer_acc"] = right
            info["caption_loss" if captions else "answer_loss"] = told.item()
        loss.backward()
        norm = flat.step(rate, workers)
        step, images = step + 1, images + size * workers
        for key, value in {**info, "loss": loss.item(), "norm": norm}.items():
            shown[key] = value if key not in shown else 0.95 * shown[key] + 0.05 * value
        if log and step % LOG_EVERY == 0:
            speed = images / (time.time() - mark)
            images, mark = 0, time.time()
            entry = {"step": step, "minutes": round(spent.item(), 2), "rate": rate, "img_s": round(speed, 1), "most": most}
            entry |= {key: round(value, 4) for key, value in shown.items()}
            print(json.dumps(entry), file=log, flush=True)
        if rank == 0 and time.time() - saved > 120:
            checkpoint(path, model, heads, flat, spent.item(), step)
            saved = time.time()
    if rank == 0:
        checkpoint(path, model, heads, flat, minutes, step)


def checkpoint(path: Path, model: nn.Module, heads: nn.Module, flat: Flat, elapsed: float, step: int) -> None:
    """Save the EMA weights (what the next stage and the export read) and all that resuming needs."""
    flat.write(flat.ema)
    # tied and frozen weights are in the state dict too; EMA values go through bf16 here, the fp32 ones are in `flat`
    weights = {key: value.float().clone() for key, value in model.state_dict().items()}
    aux = {key: value.float().clone() for key, value in heads.state_dict().items()}
    flat.write(flat.master)
    save(
        path,
        {
            "model": weights,
            "heads": aux,
            "flat": {"master": flat.master, "m": flat.m, "v": flat.v, "ema": flat.ema},
            "t": flat.step_count,
            "elapsed": elapsed,
            "step": step,
        },
    )


def main() -> None:
    """Parse the command line and start the workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--port", type=int, default=29511)
    parser.add_argument("--start", help="checkpoint whose weights the stage begins with, instead of the stage before")
    args = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    assert PAD == 0
    if args.workers == 1:
        worker(0, 1, args.stage, args.minutes, args.port, args.start)
    else:
        mp.spawn(worker, (args.workers, args.stage, args.minutes, args.port, args.start), nprocs=args.workers)


if __name__ == "__main__":
    main()
