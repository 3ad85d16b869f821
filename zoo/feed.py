"""Batches for the stages: drawn where the model trains, or by worker processes that keep a queue filled, as a GPU needs."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
from build import SIZE, vocabulary
from data import Batch, make_batch

STAGES = ("vision", "language", "joint")
QUESTIONS, LENGTH, CAPTION_LENGTH = 20, 16, 56


@dataclass(frozen=True)
class Recipe:
    """How scenes are drawn: called with (step, share of the stage done), gives (batch, tokens of a question, caption?)."""

    stage: str
    size: int
    """Images a batch."""
    rank: int = 0
    workers: int = 1
    long: bool = False
    """Seeds of the workers interleave, so that there is no end to them; else each has a million."""
    captions_every: int = 16
    """One batch in so many asks for captions, 0 = none; in the language stage once words have begun to mean something."""

    def most(self, done: float) -> int:
        """Most objects of a scene: few at first."""
        return 9 if self.stage != "language" else min(9, 3 + int(done * 40))

    def seeds(self, step: int) -> list[int]:
        """Of one batch's scenes; no other stage, worker or step has them."""
        if self.long:
            base = STAGES.index(self.stage) * 500_000_000 + (step * self.workers + self.rank) * self.size
        else:
            base = (STAGES.index(self.stage) * 500 + self.rank) * 1_000_000 + step * self.size
        return list(range(base, base + self.size))

    def captions(self, step: int, done: float) -> bool:
        """Whether this step's batch asks for captions instead of answers."""
        begun = self.stage == "joint" or (self.stage == "language" and done > 0.1)
        return begun and self.captions_every > 0 and step % self.captions_every == self.captions_every - 1

    def __call__(self, step: int, done: float) -> tuple[Batch, int, bool]:
        captions = self.captions(step, done)
        count, length = (1, CAPTION_LENGTH) if captions else (QUESTIONS if self.stage != "vision" else 0, LENGTH)
        # users' pictures are larger and get resized
        drawn = 224 if self.stage != "vision" and done > 0.4 and step % 2 else SIZE
        vocab = {piece: i for i, piece in enumerate(vocabulary())}
        taught = self.stage == "language"
        made = make_batch(self.seeds(step), vocab, count, length, self.most(done), captions, drawn=drawn, taught=taught)
        return made, length, captions


def _alone() -> None:
    torch.set_num_threads(1)


def _packed(recipe: Callable[..., Any], step: int, done: float) -> bytes:
    """One batch as plain bytes: shared memory is 64 MB in many containers, and a queue of batches is more."""
    batch, length, captions = recipe(step, done)
    return pickle.dumps((replace(batch, pixels=batch.pixels.bfloat16()), length, captions))


class Feed:
    """Gives `recipe(step, done)` for step after step.

    With `feeders` processes, `ahead` batches are being made while a step runs; `done` is then that of the asking, a little old.
    The batches are those that no feeder gives, with pixels rounded to bf16, as the model reads them.
    """

    def __init__(self, recipe: Callable[..., Any], feeders: int = 0, ahead: int | None = None) -> None:
        self.recipe, self.ahead = recipe, ahead or 3 * feeders
        self.pool = ProcessPoolExecutor(feeders, get_context("spawn"), initializer=_alone) if feeders else None
        self.queue: deque[tuple[int, Future[bytes]]] = deque()

    def get(self, step: int, done: float) -> Any:
        """The batch of this step; the next call asks for the next step."""
        if self.pool is None:
            return self.recipe(step, done)
        first = self.queue[-1][0] + 1 if self.queue else step
        for later in range(first, step + self.ahead):
            self.queue.append((later, self.pool.submit(_packed, self.recipe, later, done)))
        number, made = self.queue.popleft()
        if number != step:
            raise ValueError(f"asked for step {step}, but {number} comes next; ask for one step after the other")
        return pickle.loads(made.result())

    def close(self) -> None:
        """End the feeders."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
