"""One batch through the model under one plan: answers, NaN steps, FLOPs and seconds. Uses the public API only."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atp.engine import prune
from atp.engine.report import Report
from atp.evals.harness.settings import REFERENCE
from atp.plan import Plan


@dataclass(frozen=True)
class Said:
    """What one batch answered and cost.

    Attributes:
        answers: decoded and stripped; empty where a logit was NaN, since a word chosen from NaN means nothing.
        nan: generated steps of each row with a NaN logit.
        steps: generated tokens of every row, those that only fill up shorter answers of the batch among them.
        seconds: of `generate`.
        flops, flops_unpruned: by part, of the whole batch.
        tokens: mean visual tokens per language layer and prompt.
    """

    answers: list[str]
    nan: list[int]
    steps: int
    seconds: float
    flops: dict[str, float]
    flops_unpruned: dict[str, float]
    tokens: float


class Watch:
    """Counts steps with a NaN logit in each row; called by `generate` with the logits of every step."""

    def __init__(self, rows: int, device: Any) -> None:
        self.steps = torch.zeros(rows, dtype=torch.int64, device=device)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.steps += torch.isnan(scores).any(-1)
        return scores


@dataclass
class Asker:
    """A model with its processor, ready for batches.

    Attributes:
        counted: what unpruned batches cost, by their shapes; see `_count`.
    """

    model: Any
    processor: Any
    counted: dict[Any, Report] = field(default_factory=dict)

    def placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch to the model, pictures in its dtype."""
        model = self.model
        return {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}

    def answer(self, inputs: dict[str, Tensor], plan: Plan, longest: int) -> Said:
        """Ask a batch.

        Args:
            inputs: from `placed`.
            plan: in force; method `none` runs the model without a hook, and is counted apart.
            longest: most new tokens.
        """
        if plan.method == REFERENCE:
            ids, seconds, watch = self.generate(inputs, longest)
            report = self._count(inputs, ids.shape[1])
        else:
            ids, seconds, watch, report = self._pruned(inputs, plan, longest)
        text = self.processor.batch_decode(ids, skip_special_tokens=True)
        nan = watch.steps.tolist()
        answers = ["" if bad else said.strip() for said, bad in zip(text, nan, strict=True)]
        flops, whole = report.flops.to_dict(), report.flops_unpruned.to_dict()
        return Said(answers, nan, ids.shape[1], seconds, flops, whole, report.equivalent_tokens)

    def generate(self, inputs: dict[str, Tensor], longest: int) -> tuple[Tensor, float, Watch]:
        """Answer as the model is now; return the new ids `[B, new]`, seconds, and the steps with NaN."""
        tokenizer = self.processor.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        watch = Watch(len(inputs["input_ids"]), self.model.device)
        self._wait()
        start = time.perf_counter()
        with torch.inference_mode():
            out: Tensor = self.model.generate(
                **inputs, max_new_tokens=longest, do_sample=False, num_beams=1, pad_token_id=pad, logits_processor=[watch]
            )
        self._wait()
        seconds = time.perf_counter() - start
        return _new(out, inputs["input_ids"]), seconds, watch

    def _pruned(self, inputs: dict[str, Tensor], plan: Plan, longest: int) -> tuple[Tensor, float, Watch, Report]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the plan .* removed no token", UserWarning)
            with prune(self.model, plan=plan, processor=self.processor) as run:
                made = self.generate(inputs, longest)
        return *made, run.report()

    def _wait(self) -> None:
        """Let a GPU finish, so that the clock reads what was done."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def _count(self, inputs: dict[str, Tensor], steps: int) -> Report:
        """Count an unpruned batch in a run of its own, outside the clock; batches of one shape cost the same."""
        same = repr((steps, {name: _extent(value) for name, value in inputs.items() if name != "input_ids"}))
        if same not in self.counted:
            self.counted[same] = self._pruned(inputs, Plan(REFERENCE), steps)[3]
        return self.counted[same]


def _new(out: Tensor, prompt: Tensor) -> Tensor:
    """Return the generated ids; models with a decoder of its own do not repeat the prompt."""
    length = prompt.shape[1]
    repeated = out.shape[1] > length and bool((out[:, :length] == prompt).all())
    return out[:, length:] if repeated else out


def _extent(value: Tensor) -> tuple[Any, ...]:
    """Return what an input's cost depends on: its shape, and of whole numbers (masks, sizes of images) the values or row sums."""
    if value.is_floating_point():
        return tuple(value.shape)
    return tuple(value.shape), (value if value.numel() <= 256 else value.flatten(1).sum(1)).tolist()
