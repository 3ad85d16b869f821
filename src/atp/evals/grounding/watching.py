"""Run a model under a plan and note what every site kept. Uses the run's trace; chooses nothing but in the deletion test."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atp.engine import Run, prune
from atp.errors import BadInput
from atp.evals.grounding.measures import Bools, Floats
from atp.evals.grounding.subjects import Subject
from atp.evals.harness.answering import Asker
from atp.evals.harness.asking import batches, lengths
from atp.loading import build_inputs
from atp.methods import Method
from atp.plan import Plan, Site, Step
from atp.tokens import Tokens
from atp.trace import Record

LONGEST = 4  # tokens of an answer
OWN = {"vision": "fastervlm", "language": "fastv"}
"""Methods whose scores are the model's own attention: of the class token, and of the last token of the prompt."""

Batch = tuple[list[int], dict[str, Tensor]]


@dataclass(frozen=True)
class Seen:
    """What one site did with one image; N tokens, numbered as patches where `grid` is given.

    Attributes:
        kept, alive: `[N]`, after and before.
        scores: `[N]`, NaN where not alive; None = not scored.
        grid: (height, width) of the image in patches; None where the tokens are no patches (queries, latents).
    """

    kept: Bools
    alive: Bools
    scores: Floats | None
    grid: tuple[int, int] | None


@dataclass
class Watched:
    """What one plan answered and kept, in the order of the subjects.

    Attributes:
        answers: lower case.
        sites: what each site did, by image.
        flops_share: counted FLOPs, of the unpruned ones.
        fuses: whether what left was merged into what stayed.
    """

    answers: list[str]
    sites: dict[str, dict[int, Seen]] = field(default_factory=dict)
    flops_share: float = 1.0
    fuses: bool = False


def prepared(processor: Any, subjects: Sequence[Subject], texts: Sequence[str], batch: int) -> list[Batch]:
    """Return batches of prompts of equal length: numbers of the subjects, and inputs."""
    found = batches(lengths(processor, texts), batch)
    return [(ns, build_inputs(processor, [subjects[n].image for n in ns], [texts[n] for n in ns])) for ns in found]


def watch(
    asker: Asker,
    prompts: Sequence[Batch],
    plan: Plan,
    *,
    all_scores: bool = False,
    alone: bool = False,
    inverse: bool = False,
    longest: int = LONGEST,
) -> Watched:
    """Ask all prompts under a plan.

    Args:
        asker: model and processor.
        prompts: from `prepared`.
        plan: in force.
        all_scores: score where nothing leaves, too.
        alone: merge nothing of what leaves into what stays.
        inverse: keep what the method would drop, see `invert`; merges nothing.
        longest: most new tokens.

    Raises:
        BadInput: the model cuts an image into several, so that it has no one grid.
    """
    made = Watched([""] * sum(len(numbers) for numbers, _ in prompts))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the plan .* removed no token", UserWarning)
        with prune(asker.model, plan=plan, processor=asker.processor, record_all_scores=all_scores) as run:
            if alone or inverse:
                unmerged(run)
            if inverse:
                invert(run)
            for numbers, inputs in prompts:
                said = asker.generate(asker.placed(inputs), longest)[0]
                texts = asker.processor.batch_decode(said, skip_special_tokens=True)
                for number, text in zip(numbers, texts, strict=True):
                    made.answers[number] = text.strip().lower()
                _note(run, numbers, made)
                run.trace.clear()
            made.flops_share = run.report().ratio
            made.fuses = any(run.chooser.method.merges(step.site.stack) for step in plan.steps)
    return made


def _note(run: Run, numbers: Sequence[int], made: Watched) -> None:
    """Take the records of a batch over."""
    grids = run.trace.grids
    if len(grids) != len(numbers):
        raise BadInput(
            f"this model made {len(grids)} images of {len(numbers)}, and grounding is measured on one grid an image; "
            "use pictures that it does not cut into tiles, or another model"
        )
    for stack in ("vision", "language"):
        for record in run.trace.last(stack):
            for row, number in enumerate(numbers):
                seen = _seen(record, row, None if stack == "language" and run.adapter.connects == "keys" else grids[row])
                made.sites.setdefault(f"{stack}:{record.layer}", {})[number] = seen


def _seen(record: Record, row: int, grid: tuple[int, int] | None) -> Seen:
    size = record.started[row]
    grid = grid if grid is not None and grid[0] * grid[1] == size else None
    kept, alive = (mask[row, :size].cpu().numpy() for mask in (record.keep, record.alive))
    if record.raw_scores is None:
        return Seen(kept, alive, None, grid)
    scores = record.raw_scores[row, :size].double().cpu().numpy()
    return Seen(kept, alive, np.where(alive, scores, np.nan), grid)


def unmerged(run: Run) -> None:
    """Make a run choose as before, and merge nothing."""
    other: Method = copy.copy(run.method)
    object.__setattr__(other, "merges", lambda stack: False)  # methods are frozen, and this one lives as long as the block
    run.chooser.method = other


def invert(run: Run) -> None:
    """Make a run keep, in every site and at the same counts, what its method would drop there.

    What the method drops stays, lowest score first; where it drops fewer than it keeps, the lowest-scored of the rest fill up.
    """
    method = run.chooser.method
    other: Method = copy.copy(method)

    def select(scores: Tensor, tokens: Tokens, counts: Tensor) -> Tensor:
        return dropped(scores, tokens.alive, method.select(scores, tokens, counts), counts)

    object.__setattr__(other, "select", select)
    run.chooser.method = other


def dropped(scores: Tensor, alive: Tensor, kept: Tensor, counts: Tensor) -> Tensor:
    """Mark `counts` `[B]` live tokens of each row of `[B, N]`: those not in `kept` before the others, the lowest scores first."""
    size = alive.shape[1]
    low = scores.masked_fill(~alive, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    order = (low + size * kept.long() + 2 * size * (~alive).long()).argsort(dim=1).argsort(dim=1)
    return (order < counts.unsqueeze(1)) & alive


def fixed(plan: Plan) -> Plan:
    """Return the plan with the same shares for every input, so that another method can be given the same counts."""
    return dataclasses.replace(
        plan, steps=tuple(dataclasses.replace(step, threshold=None, absolute=False) for step in plan.steps)
    )


def chance(plan: Plan, seed: int) -> Plan:
    """Return the plan with random choice at the same sites and counts."""
    return Plan("random", fixed(plan).steps, {"seed": seed})


def own_plans(sites: Sequence[Site]) -> list[Plan]:
    """Return plans that drop nothing and score by the model's own attention, one a stack; layer 0 has none before it to read."""
    found = {stack: [site for site in sites if site.stack == stack and site.layer > 0] for stack in OWN}
    return [Plan(OWN[stack], tuple(Step(site, 1.0) for site in chosen)) for stack, chosen in found.items() if chosen]
