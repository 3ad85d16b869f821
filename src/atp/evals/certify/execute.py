"""From a model to a certificate: ask every budget the same independent items, test, write down. Uses what `atp eval` runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atp.budget.calibration import fingerprint
from atp.budget.certificate import Certificate
from atp.errors import BadInput, UnreachableBudget
from atp.evals.certify.pvalues import TESTS, Floats
from atp.evals.certify.testing import Verdict, fixed_sequence, items_needed
from atp.evals.harness import header
from atp.evals.harness.cells import label
from atp.evals.harness.execute import CLEAN, run
from atp.evals.harness.gather import Gathered, cost, gather, reference
from atp.evals.harness.settings import REFERENCE, Settings
from atp.evals.tasks.base import REGISTRY as TASKS
from atp.loading import check_kind, check_model_type, load, resolve
from atp.methods import spelled
from atp.plan import Plan
from atp.scenes import SPLITS
from atp.scenes.official import write

SCENES, ASKED = "scenes", "gqa"
"""Generated scenes are asked with the exact answers that their GQA files hold."""
USUAL = {SCENES: "exact", "gqa": "exact", "pope": "exact", "vqav2": "betting", "textvqa": "betting"}
"""The test for each task, set before any answer is seen: `exact` where a score is 0 or 1, `betting` where it lies between."""
FIRST, APART = 10_000_000, 100_000
"""Seeds of certified scenes begin at FIRST + seed * APART; no table of ours uses them."""
THEOREM = "Angelopoulos et al. 2021, Learn then Test, arXiv 2110.01052, Theorem 1, with fixed-sequence testing"


@dataclass(frozen=True)
class Wanted:
    """What shall be certified.

    Attributes:
        model: shipped name, folder or hub id.
        max_drop, confidence: the bound and its probability, shares.
        task: `scenes`, or a task of `atp eval` whose scores lie in [0, 1], with a mode where not the default.
        budgets: the grid, tested from dear to cheap.
        method: that prunes.
        data, split: folder and split of official files; scenes are drawn where no folder is named.
        items: to ask at most, one an image; to be set before the first answer is seen.
        seed: of the scenes.
        test: name in `TESTS`, "auto" = that of `USUAL`.
        batch, dtype, device: as `atp eval` takes them.
    """

    model: str
    max_drop: float
    confidence: float
    task: str = SCENES
    budgets: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5)
    method: str = "atp"
    data: str = ""
    split: str = "val"
    items: int = 1000
    seed: int = 0
    test: str = "auto"
    batch: int = 20
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for name, value, example in (("max-drop", self.max_drop, "0.01"), ("confidence", self.confidence, "0.95")):
            if not 0 < value < 1:
                raise BadInput(f"--{name} is a share between 0 and 1, got {value:g}; e.g. --{name} {example}")
        if self.name not in USUAL:
            TASKS.get(self.name)
            raise BadInput(
                f"no bound for task {self.name!r}: its score is no mean of values in [0, 1]; choose one of {', '.join(USUAL)}"
            )
        if self.test not in ("auto", *TESTS):
            raise BadInput(f"unknown test {self.test!r}; choose one of auto, {', '.join(TESTS)}")
        if self.method == REFERENCE or not any(0 < budget < 1 for budget in self.budgets):
            raise BadInput("nothing to certify: the grid has no method at a budget below 1; e.g. --budgets 0.9,0.8,0.6")
        spelled(self.method)
        if self.data and self.name == SCENES:
            raise BadInput(
                f"scenes are drawn, got --data {self.data}; use --task {ASKED} for the files there, or leave --data away"
            )
        if not self.data and self.split not in SPLITS:
            raise BadInput(f"unknown split {self.split!r} of the scenes; choose one of {', '.join(SPLITS)}")
        if not 1 <= self.items <= APART:
            raise BadInput(f"--items is a number from 1 to {APART}, got {self.items}; e.g. --items 1000")

    @property
    def name(self) -> str:
        """Name of the task without its mode."""
        return self.task.partition(":")[0]

    @property
    def level(self) -> float:
        """Probability that the bound may be broken with."""
        return 1 - self.confidence

    @property
    def tested(self) -> str:
        """Name of the test."""
        return USUAL[self.name] if self.test == "auto" else self.test

    def settings(self, data: str) -> Settings:
        """Return what the harness is asked."""
        task = self.task.replace(SCENES, ASKED, 1) if self.name == SCENES else self.task
        grid = (1.0, *sorted({budget for budget in self.budgets if budget < 1}, reverse=True))
        return Settings(
            self.model,
            (task,),
            (self.method,),
            grid,
            data=data,
            split=self.split if self.data else "val",  # as drawn files are named, whatever the scenes' own split
            limit=self.items,
            seed=self.seed,
            batch=self.batch,
            dtype=self.dtype,
            device=self.device,
            singly=True,
        )


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        rows: one a setting of the grid, dear first: plain values, with the verdict's.
        accuracy: of the unpruned model, a share.
        items: that were asked.
        certificate: None = nothing could be certified.
        needed: then, about how many items the dearest setting would have taken; None = no number helps.
    """

    rows: list[dict[str, Any]]
    accuracy: float
    items: int
    certificate: Certificate | None
    needed: int | None = None


def certify(wanted: Wanted, folder: Path, step: Callable[[str, int, int, bool], None]) -> Outcome:
    """Ask, test, and make the certificate of the cheapest setting that passed.

    Args:
        wanted: what shall be certified.
        folder: of the records; the same call goes on after a kill, another one is refused.
        step: told after every setting of every batch, as `harness.execute.run` does.

    Raises:
        BadInput: no such model; whatever the harness refuses; scores outside [0, 1]; a truth that is withheld.
        UnreachableBudget: no budget of the grid can be reached.
    """
    check_model_type(resolve(wanted.model))  # before scenes are drawn
    check_kind(wanted.dtype, wanted.device)
    settings = wanted.settings(wanted.data or _scenes(wanted, folder))
    try:
        run(settings, 0, folder, step)
    except BadInput as error:  # the harness's folder has another option's name here
        raise BadInput(str(error).replace("another --out", "another --records")) from None
    gathered = gather([folder])
    (task,) = settings.tasks
    cells = [cell for cell in gathered.cells(task).values() if cell["method"] != REFERENCE]
    grid = [cell for cell in cells if "plan" in cell]
    if not grid:
        raise UnreachableBudget(f"no budget of the grid can be reached: {cells[0]['refused']}", cells[0]["lowest"] or 1.0)
    primary = TASKS.get(task.partition(":")[0]).primary
    before, names = _scored(gathered, task, REFERENCE, primary)
    after = [_scored(gathered, task, label(cell["method"], cell["budget"]), primary)[0] for cell in grid]
    drops = [before - one for one in after]
    test = TESTS[wanted.tested]
    verdicts = fixed_sequence(drops, wanted.max_drop, wanted.level, test)
    rows = [_row(gathered, task, *found) for found in zip(grid, verdicts, after, strict=True)]
    told = (rows, float(before.mean()), len(names))
    passed = [(cell, verdict) for cell, verdict in zip(grid, verdicts, strict=True) if verdict.passed]
    if not passed:
        return Outcome(*told, None, items_needed(drops[0], wanted.max_drop, wanted.level, test))
    return Outcome(*told, _certificate(wanted, gathered, rows, *passed[-1], len(names)))


def _scenes(wanted: Wanted, folder: Path) -> str:
    """Draw scenes into a folder of their own within `folder`, as many as there are items."""
    data = folder / f"scenes-{wanted.split}-{wanted.seed}-{wanted.items}"
    if not data.is_dir():
        made = folder / f"{data.name}.{os.getpid()}"
        first = FIRST + APART * wanted.seed
        write(made, range(first, first + wanted.items), wanted.split)
        try:
            made.rename(data)
        except OSError:  # another process was first
            shutil.rmtree(made)
    return str(data)


def _scored(gathered: Gathered, task: str, setting: str, metric: str) -> tuple[Floats, list[str]]:
    """Return the scores `[N]` of a setting, in the order of the unpruned model's items, and their names."""
    entries, names = gathered.of(task, CLEAN, setting), list(reference(gathered, task))
    if any(name not in entries or metric not in entries[name].scores for name in names):
        raise BadInput(
            f"{setting}: some of {len(names)} items have no {metric}; their true answers are withheld, use another split"
        )
    if len({entries[name].image for name in names}) < len(names):
        raise BadInput("several items of one image were asked, which are not independent; choose another --records folder")
    scores = np.array([entries[name].scores[metric] for name in names], dtype=np.float64)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise BadInput(f"{metric} of {task} lies outside [0, 1] ({scores.min():g} to {scores.max():g}), so no bound holds for it")
    return scores, names


def _row(gathered: Gathered, task: str, cell: dict[str, Any], verdict: Verdict, scores: Floats) -> dict[str, Any]:
    spent = cost(gathered.of(task, CLEAN, label(cell["method"], cell["budget"])))["flops_share"]
    return {"budget": cell["budget"], "flops_share": spent, "accuracy": float(scores.mean()), **vars(verdict)}


def _certificate(
    wanted: Wanted, gathered: Gathered, rows: list[dict[str, Any]], cell: dict[str, Any], verdict: Verdict, items: int
) -> Certificate:
    model, _ = load(wanted.model, dtype=wanted.dtype, device=wanted.device)
    details = {
        "model": wanted.model,
        "method": wanted.method,
        "test": wanted.tested,
        "theorem": THEOREM,
        "grid": rows,
        "split": wanted.split,
        "seed": wanted.seed,
        "asked": gathered.header["items"],
        "versions": header.versions(),
        "commit": header.commit(),
    }
    return Certificate(
        plan=Plan.from_dict(cell["plan"]),
        fingerprint=fingerprint(model.named_parameters()),
        budget=cell["budget"],
        max_drop=wanted.max_drop,
        confidence=wanted.confidence,
        observed_drop=verdict.drop,
        items=items,
        task=wanted.task,
        dtype=str(model.dtype).removeprefix("torch."),
        details=details,
    )
