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
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from build import PAD, SIZE, make_model, vocabulary
from data import Batch, make_batch
from losses import Heads, Words, answer_loss, parts
from optimizer import Flat
from packed import language, tower
from torch import Tensor, nn

RUNS = Path(os.environ.get("ATP_ZOO_RUNS", Path(__file__).parent / "runs"))
STAGES = ("vision", "language", "joint")
BATCH = {"vision": 24, "language": 8, "joint": 8}
RATE = {"vision": 1.2e-3, "language": 2e-3, "joint": 2e-4}
QUESTIONS, LENGTH, CAPTION_LENGTH = 20, 16, 56
GUIDED_UNTIL = 0.8  # share of a stage
AIDS = {"tie": 0.2, "place": 2.0, "guide": 0.4, "meant": 2.0, "number": 0.2}  # weights beside the answers' 1
LOG_EVERY = int(os.environ.get("ATP_ZOO_LOG_EVERY", "50"))


def save(path: Path, state: dict) -> None:
    """Write atomically: a kill leaves the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


class Stage:
    """One leg of one stage on one worker: what is trained, from where, and how far it is."""

    def __init__(self, name: str, minutes: float, rank: int, workers: int, start: str | None) -> None:
        self.name, self.minutes, self.rank, self.workers = name, minutes, rank, workers
        self.model, self.heads = make_model(), Heads()
        self.vocab = {piece: i for i, piece in enumerate(vocabulary())}
        self.tie = Words(self.vocab)
        self.path, self.elapsed, self.step = RUNS / f"{name}.pt", 0.0, 0
        before = Path(start) if start else RUNS / f"{STAGES[STAGES.index(name) - 1]}.pt" if name != "vision" else None
        if before is not None:
            old = torch.load(before, weights_only=True)
            self.model.load_state_dict(old["model"])
            self.heads.load_state_dict(old["heads"], strict=False)
        self.flat = Flat([p for part in self.trained() for p in part.parameters()])
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.flat.master, self.flat.m, self.flat.v, self.flat.ema = (state["flat"][k] for k in ("master", "m", "v", "ema"))
            self.flat.step_count, self.elapsed, self.step = state["t"], state["elapsed"], state["step"]
        self.model, self.heads = self.model.bfloat16(), self.heads.bfloat16()
        self.flat.write(self.flat.master)
        self.run_tower = torch.compile(tower, dynamic=False)
        self.run_language = torch.compile(language, dynamic=False)
        self.begin = time.time()

    def trained(self) -> list[nn.Module]:
        """The modules that learn."""
        vision, projector, text = parts(self.model)
        if self.name == "vision":
            return [vision, self.heads]
        if self.name == "language":
            return [projector, text, self.heads.place, self.heads.meant, self.heads.number]
        return [vision, self.heads, projector, text]

    def spent(self) -> float:
        """Minutes of this stage so far, the same on every worker."""
        spent = torch.tensor(self.elapsed + (time.time() - self.begin) / 60)
        if self.workers > 1:
            dist.broadcast(spent, 0)
        return spent.item()

    def most(self, done: float) -> int:
        """Most objects of a scene: few at first."""
        return 9 if self.name != "language" else min(9, 3 + int(done * 40))

    def batch(self, done: float) -> tuple[Batch, int, bool]:
        """Draw this step's scenes: the batch, tokens of a question, and whether it asks for captions."""
        captions = self.name == "joint" and self.step % 16 == 15
        size = BATCH[self.name]
        base = (STAGES.index(self.name) * 500 + self.rank) * 1_000_000 + self.step * size
        count, length = (1, CAPTION_LENGTH) if captions else (QUESTIONS if self.name != "vision" else 0, LENGTH)
        # users' pictures are larger and get resized
        drawn = 224 if self.name != "vision" and done > 0.4 and self.step % 2 else SIZE
        seeds = list(range(base, base + size))
        taught = self.name == "language"
        made = make_batch(seeds, self.vocab, count, length, self.most(done), captions, drawn=drawn, taught=taught)
        return made, length, captions

    def loss(self, done: float) -> tuple[Tensor, dict[str, float]]:
        """Loss of this step, and what to log."""
        batch, length, captions = self.batch(done)
        pixels, (vision, _, _) = batch.pixels.bfloat16(), parts(self.model)
        loss, info = torch.zeros(()), {}
        with torch.set_grad_enabled(self.name != "language"):
            features = self.run_tower(vision, pixels)
        if self.name != "language":
            dense, info = self.heads.loss(features, batch)
            loss = loss + dense * (1.0 if self.name == "vision" else 0.2)
        if self.name == "vision":
            return loss, info
        left = max(0.0, 1 - done / GUIDED_UNTIL)
        told, aids, right = answer_loss(self.model, self.heads, features, batch, length, self.run_language, self.tie, left > 0)
        weight = AIDS | {"guide": AIDS["guide"] * left}
        loss = loss + told + sum(weight[key] * value for key, value in aids.items())
        info |= {f"{key}_loss": value.item() for key, value in aids.items()}
        said = "caption" if captions else "answer"
        return loss, info | {f"{said}_acc": right, f"{said}_loss": told.item()}

    def rate(self, done: float) -> float:
        """Warm up for 150 steps, then a cosine to 2 % of the stage's rate."""
        return RATE[self.name] * min(1, (self.step + 1) / 150) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))


def worker(rank: int, workers: int, stage: str, minutes: float, port: int, start: str | None) -> None:
    """Train one stage until its minutes are over."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    torch.manual_seed(0)
    leg = Stage(stage, minutes, rank, workers, start)
    log = (RUNS / f"{stage}.jsonl").open("a") if rank == 0 else None
    shown: dict[str, float] = {}
    images, mark, saved = 0, time.time(), time.time()
    while (spent := leg.spent()) < minutes:
        done = spent / minutes
        rate = leg.rate(done)
        loss, info = leg.loss(done)
        loss.backward()
        norm = leg.flat.step(rate, workers)
        leg.step, images = leg.step + 1, images + BATCH[stage] * workers
        for key, value in {**info, "loss": loss.item(), "norm": norm}.items():
            shown[key] = value if key not in shown else 0.95 * shown[key] + 0.05 * value
        if log and leg.step % LOG_EVERY == 0:
            speed, images, mark = images / (time.time() - mark), 0, time.time()
            entry = {"step": leg.step, "minutes": round(spent, 2), "rate": rate, "img_s": round(speed, 1), "most": leg.most(done)}
            print(json.dumps(entry | {key: round(value, 4) for key, value in shown.items()}), file=log, flush=True)
        if rank == 0 and time.time() - saved > 120:
            checkpoint(leg, spent)
            saved = time.time()
    if rank == 0:
        checkpoint(leg, minutes)


def checkpoint(leg: Stage, elapsed: float) -> None:
    """Save the EMA weights (what the next stage and the export read) and all that resuming needs."""
    flat = leg.flat
    flat.write(flat.ema)
    # tied and frozen weights are in the state dict too; EMA values go through bf16 here, the fp32 ones are in `flat`
    weights = {key: value.float().clone() for key, value in leg.model.state_dict().items()}
    aux = {key: value.float().clone() for key, value in leg.heads.state_dict().items()}
    flat.write(flat.master)
    vectors = {"master": flat.master, "m": flat.m, "v": flat.v, "ema": flat.ema}
    state = {"model": weights, "heads": aux, "flat": vectors, "t": flat.step_count, "elapsed": elapsed, "step": leg.step}
    save(leg.path, state)


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
