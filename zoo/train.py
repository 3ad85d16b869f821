"""Train a backbone on generated scenes: `python zoo/train.py STAGE --minutes M [--backbone B] [--device cuda]`.

Stages: vision, language, joint. On a CPU one process a worker (two single-thread workers beat two threads on a two-core machine),
on GPUs one process each with feeders that draw its scenes; gradients are averaged over gloo or nccl. The schedule follows the
clock, so a stage takes the minutes it is given; a leg that is cut, or ended by --leg (exit status 75), goes on from its last
checkpoint with the same command. Everything is logged to `zoo/runs/<backbone-><stage>.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from backbones import BACKBONES, get
from build import vocabulary
from feed import STAGES, Feed, Recipe
from losses import Heads, Words, answer_loss
from optimizer import Flat
from torch import Tensor, nn

RUNS = Path(os.environ.get("ATP_ZOO_RUNS", Path(__file__).parent / "runs"))
BATCH = {"cpu": {"vision": 24, "language": 8, "joint": 8}, "cuda": {"vision": 192, "language": 64, "joint": 64}}
RATE = {"vision": 1.2e-3, "language": 2e-3, "joint": 2e-4}
GUIDED_UNTIL = 0.8  # share of a stage
AIDS = {"tie": 0.2, "place": 2.0, "guide": 0.4, "meant": 2.0, "number": 0.2, "look": 0.5}  # weights beside the answers' 1
FADING = ("guide", "look")
LOG_EVERY = int(os.environ.get("ATP_ZOO_LOG_EVERY", "50"))
UNFINISHED = 75  # exit status of a leg that ended before its stage


@dataclass(frozen=True)
class Job:
    """A leg's settings, from the command line."""

    stage: str
    minutes: float
    backbone: str = "llava"
    device: str = "cpu"
    workers: int = 1
    feeders: int = 0
    batch: int = 0
    rate: float = 0.0
    captions_every: int = 16
    leg: float = math.inf
    """Minutes after which this leg ends, wherever the stage is."""
    steps: int = sys.maxsize
    """Steps after which this leg ends."""
    start: str | None = None
    port: int = 29511
    compiled: bool = True

    def path(self, stage: str, kind: str = "pt") -> Path:
        return RUNS / f"{get(self.backbone).prefix}{stage}.{kind}"


def save(path: Path, state: dict) -> None:
    """Write atomically: a kill leaves the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


class Stage:
    """One leg of one stage on one worker: what is trained, from where, and how far it is."""

    def __init__(self, job: Job, rank: int = 0) -> None:
        self.job, self.name, self.workers = job, job.stage, job.workers
        self.device = torch.device("cuda", rank) if job.device == "cuda" else torch.device(job.device)
        self.backbone = get(job.backbone)
        self.model, self.heads = self.backbone.make_model(), Heads(side=self.backbone.side * self.backbone.resampled)
        self.tie = Words({piece: i for i, piece in enumerate(vocabulary())}, self.device)
        self.path, self.elapsed, self.step = job.path(job.stage), 0.0, 0
        state = torch.load(self.path, weights_only=True) if self.path.exists() else None
        before = (
            Path(job.start) if job.start else job.path(STAGES[STAGES.index(self.name) - 1]) if self.name != "vision" else None
        )
        if state is not None and "flat" not in state:  # a slim checkpoint: weights only
            before = self.path
        if before is not None:
            old = torch.load(before, weights_only=True)
            self.model.load_state_dict(old["model"])
            self.heads.load_state_dict(old["heads"], strict=False)
        self.model, self.heads = self.model.to(self.device), self.heads.to(self.device)
        self.flat = Flat(self.trained())
        if state is not None:
            self.elapsed, self.step = state["elapsed"], state["step"]
            if "flat" in state:
                self.flat.resume(state["flat"], state["t"])
        self.model, self.heads = self.model.bfloat16(), self.heads.bfloat16()
        self.flat.write(self.flat.master)
        long = job.feeders > 0
        size = job.batch or BATCH["cuda" if self.device.type == "cuda" else "cpu"][self.name]
        self.recipe = Recipe(self.name, size, rank, job.workers, long, job.captions_every)
        self.feed = Feed(self.recipe, job.feeders)
        ready = torch.compile if job.compiled else lambda f, dynamic: f
        self.run_tower = ready(self.backbone.tower, dynamic=False)
        self.run_language = ready(self.backbone.language, dynamic=False)
        self.begin = time.time()

    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        vision, heads = list(self.backbone.vision(self.model).parameters()), self.heads
        if self.name == "vision":
            return [*vision, *heads.parameters()]
        speaking = list(self.backbone.speaking(self.model))
        if self.name == "language":
            return [*speaking, *(p for head in (heads.place, heads.meant, heads.number) for p in head.parameters())]
        return [*vision, *heads.parameters(), *speaking]

    def spent(self) -> float:
        """Minutes of this stage so far, the same on every worker."""
        minutes = self.elapsed + (time.time() - self.begin) / 60
        if self.workers > 1:
            shared = torch.tensor(minutes, device=self.device)
            dist.broadcast(shared, 0)
            return shared.item()
        return minutes

    def over(self, spent: float, first: int) -> bool:
        """Whether this leg ends here; `first` is its first step."""
        return spent >= self.job.minutes or spent - self.elapsed >= self.job.leg or self.step - first >= self.job.steps

    def loss(self, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of this step, and what to log."""
        batch, length, captions = self.feed.get(self.step, done)
        batch = batch.to(self.device)
        pixels, vision = batch.pixels.bfloat16(), self.backbone.vision(self.model)
        loss, info = torch.zeros((), device=self.device), {}
        with torch.set_grad_enabled(self.name != "language"):
            features = self.run_tower(vision, pixels)
        if self.name != "language":
            dense, info = self.heads.loss(features, batch)
            loss = loss + dense * (1.0 if self.name == "vision" else 0.2)
        if self.name == "vision":
            return loss, info
        left = max(0.0, 1 - done / GUIDED_UNTIL)
        seen = self.backbone.connect(self.model, features)
        told, aids, right = answer_loss(
            self.backbone, self.model, self.heads, seen, batch, length, self.run_language, self.tie, left > 0
        )
        weight = {key: value * (left if key in FADING else 1) for key, value in AIDS.items()}
        loss = loss + told + sum(weight[key] * value for key, value in aids.items())
        info |= {f"{key}_loss": value.detach() for key, value in aids.items()}
        said = "caption" if captions else "answer"
        return loss, info | {f"{said}_acc": right, f"{said}_loss": told.detach()}

    def rate(self, done: float) -> float:
        """Warm up for 150 steps, then a cosine to 2 % of the stage's rate."""
        most = self.job.rate or RATE[self.name]
        return most * min(1, (self.step + 1) / 150) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))


class Log:
    """Running means of what is logged, a line every `LOG_EVERY` steps."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.mark, self.images = path, time.time(), 0
        self.shown: dict[str, float] = {}
        self.every = 1 if device.type == "cpu" else 10  # reading a number off a GPU waits for it

    def add(self, leg: Stage, spent: float, rate: float, info: dict[str, Tensor | float]) -> None:
        """After a step."""
        self.images += leg.recipe.size * leg.workers
        if leg.step % self.every == 0:
            for key, value in info.items():
                value = float(value)
                self.shown[key] = value if key not in self.shown else 0.95 * self.shown[key] + 0.05 * value
        if leg.step % LOG_EVERY == 0:
            speed, self.images, self.mark = self.images / (time.time() - self.mark), 0, time.time()
            most = leg.recipe.most(spent / leg.job.minutes)
            entry = {"step": leg.step, "minutes": round(spent, 2), "rate": rate, "img_s": round(speed, 1), "most": most}
            with self.path.open("a") as file:
                print(json.dumps(entry | {key: round(value, 4) for key, value in self.shown.items()}), file=file)


def worker(rank: int, job: Job) -> None:
    """Train one stage until its minutes, or this leg's, are over."""
    torch.set_num_threads(1)
    if job.device == "cuda":
        torch.cuda.set_device(rank)
    if job.workers > 1:
        kind = "nccl" if job.device == "cuda" else "gloo"
        dist.init_process_group(kind, f"tcp://127.0.0.1:{job.port}", rank=rank, world_size=job.workers)
    torch.manual_seed(0)
    leg = Stage(job, rank)
    log = Log(job.path(job.stage, "jsonl"), leg.device) if rank == 0 else None
    saved, first = time.time(), leg.step
    while not leg.over(spent := leg.spent(), first):
        done = spent / job.minutes
        rate = leg.rate(done)
        loss, info = leg.loss(done)
        loss.backward()
        norm = leg.flat.step(rate, job.workers)
        leg.step += 1
        if log:
            log.add(leg, spent, rate, {**info, "loss": loss.detach(), "norm": norm})
        if rank == 0 and time.time() - saved > 120:
            checkpoint(leg, spent)
            saved = time.time()
    leg.feed.close()
    if rank == 0:
        checkpoint(leg, min(spent, job.minutes))


def checkpoint(leg: Stage, elapsed: float) -> None:
    """Save the EMA weights (what the next stage and the export read) and all that resuming needs."""
    flat = leg.flat
    flat.write(flat.ema)
    # tied and frozen weights are in the state dict too; EMA values go through bf16 here, the fp32 ones are in `flat`
    weights = {key: value.float().cpu().clone() for key, value in leg.model.state_dict().items()}
    aux = {key: value.float().cpu().clone() for key, value in leg.heads.state_dict().items()}
    flat.write(flat.master)
    state = {"model": weights, "heads": aux, "flat": flat.state(), "t": flat.step_count, "elapsed": elapsed, "step": leg.step}
    save(leg.path, state)


def parse(words: list[str] | None = None) -> Job:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--backbone", choices=BACKBONES, default="llava")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, help="processes that train; default: 2 on a CPU, one a GPU")
    parser.add_argument(
        "--feeders", type=int, help="processes a worker that draw scenes; default: 0 on a CPU, else what cores allow"
    )
    parser.add_argument("--batch", type=int, default=0, help="images a worker's step takes; default: by stage and device")
    parser.add_argument("--rate", type=float, default=0.0, help="highest learning rate; default: by stage")
    parser.add_argument("--captions-every", type=int, default=16, help="one batch in so many asks for captions; 0: none")
    parser.add_argument("--leg", type=float, default=math.inf, help="end after so many minutes and leave the rest to another leg")
    parser.add_argument("--steps", type=int, default=sys.maxsize, help="end after so many steps, likewise")
    parser.add_argument("--start", help="checkpoint whose weights the stage begins with, instead of the stage before")
    parser.add_argument("--port", type=int, default=29511)
    parser.add_argument("--eager", dest="compiled", action="store_false", help="do not compile")
    args = vars(parser.parse_args(words))
    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    if args["device"] == "cuda" and not gpus:
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    args["workers"] = args["workers"] or (gpus if args["device"] == "cuda" else min(2, cores))
    if args["feeders"] is None:
        args["feeders"] = max(1, (cores - 1) // args["workers"]) if args["device"] == "cuda" else 0
    return Job(**args)


def main() -> None:
    job = parse()
    RUNS.mkdir(parents=True, exist_ok=True)
    if job.workers == 1:
        worker(0, job)
    else:
        mp.spawn(worker, (job,), nprocs=job.workers)
    if torch.load(job.path(job.stage), weights_only=True, mmap=True)["elapsed"] < job.minutes:
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()
