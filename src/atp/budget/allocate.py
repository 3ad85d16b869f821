"""How many tokens each input keeps at a step: the plan's count, or the input's own by a threshold. Knows tensors only.

An adaptive step keeps the tokens whose score is at least `threshold` times the mean score of the input's tokens still alive (an
absolute one: whose value is at least `threshold`), within the step's floor and ceiling. The mean is the input's own, so the count
of a row never depends on its neighbours in the batch; sums run in double precision where the device has it, so padding cannot tip
a tie either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atp.budget.cost import whole
from atp.errors import AtpError, InvalidPlan
from atp.plan import Step

_TIE = 1e-6  # a score this little below the bar counts as on it: the bar of equal scores is their own rounded mean


def fixed_counts(step: Step, started: Sequence[int], alive: Sequence[int]) -> list[int]:
    """Return the count of each input at a fixed step, in plain numbers: no tensor, no device sync.

    Args:
        step: a step without threshold.
        started: tokens each input's stack started with.
        alive: tokens of each input still alive; the count is never more.

    Example:
        >>> fixed_counts(Step(Site("language", 2), 0.5), [196, 100], [196, 40])
        [98, 40]
    """
    return [min(whole(step.keep, n), int(now)) for n, now in zip(started, alive, strict=True)]


def allocate(scores: Tensor, alive: Tensor, step: Step, started: Tensor) -> Tensor:
    """Return how many tokens each input keeps at a step.

    Args:
        scores: `[B, M]`, any floating type, higher = keep; what stands at dead places is never read.
        alive: `[B, M]` bool, the tokens that may still be kept.
        step: fixed (no sync) or adaptive (one sync, to refuse scores that mean nothing).
        started: `[B]` whole numbers, tokens each input's stack started with.

    Returns:
        `[B]` int64, at least 1 where anything is alive, at most the alive tokens.

    Raises:
        AtpError: the shapes disagree; a live score is NaN or infinite.
        InvalidPlan: an adaptive step over negative scores, for which a share of the mean says nothing.
    """
    if step.adaptive:
        return allocate_adaptive(scores, alive, step, started)[0]
    _check_shapes(scores, alive, started)
    wanted = torch.round(step.keep * started.to(device=scores.device, dtype=_double(scores)))
    return torch.minimum(wanted.to(torch.int64).clamp(min=1), alive.sum(1))


def allocate_adaptive(
    scores: Tensor, alive: Tensor, step: Step, started: Tensor, own: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """Return the counts of an adaptive step on the device and on the host, with a single transfer between them.

    Args, Raises: as `allocate`; `own` `[B]` are the counts by a rule of the method, which floor and ceiling bound too.
    """
    assert step.threshold is not None, "a fixed step's counts are known without scores: fixed_counts"
    _check_shapes(scores, alive, started)
    double = _double(scores)
    total = started.to(device=scores.device, dtype=double)
    values = torch.where(alive, scores, 0).to(double)
    odd, negative = ~torch.isfinite(values), values < 0
    wanted = _above(values.nan_to_num(0.0, 0.0, 0.0), alive, step) if own is None else own.to(double)
    wanted = torch.clamp(wanted, torch.ceil(step.floor * total - _TIE), torch.floor(step.ceiling * total + _TIE))
    counts = torch.minimum(wanted.to(torch.int64).clamp(min=1), alive.sum(1))
    flags = torch.stack([odd.any(), negative.any()]).to(torch.int64)
    *host, bad, below = torch.cat([counts, flags]).tolist()  # the one sync of an adaptive step
    if bad or below:
        _refuse_scores(values, odd, step)
    return counts, host


def _double(scores: Tensor) -> torch.dtype:
    return torch.float32 if scores.device.type == "mps" else torch.float64


def _above(values: Tensor, alive: Tensor, step: Step) -> Tensor:
    """Count `[B]` of live scores that reach threshold x mean, or of values that reach the threshold."""
    assert step.threshold is not None
    mean = 1.0 if step.absolute else values.sum(1, keepdim=True) / alive.sum(1, keepdim=True).clamp(min=1)
    bar = step.threshold * mean * (1 - _TIE)
    return ((values >= bar) & alive).sum(1).to(values.dtype)


def _check_shapes(scores: Tensor, alive: Tensor, started: Tensor) -> None:
    rows = scores.shape[0] if scores.dim() == 2 else -1
    if scores.dim() != 2 or alive.shape != scores.shape or alive.dtype != torch.bool or tuple(started.shape) != (rows,):
        raise AtpError(
            f"allocate expects scores [B, M], alive bool [B, M] and started [B]; got {list(scores.shape)}, "
            f"{str(alive.dtype).removeprefix('torch.')} {list(alive.shape)} and {list(started.shape)}; "
            "a method's `score` returns one row an input, one column a token"
        )


def _refuse_scores(values: Tensor, odd: Tensor, step: Step) -> None:
    rows = odd.any(1).nonzero().flatten().tolist()
    if rows:
        raise AtpError(
            f"step at {step.site}: the scores of input {rows} are NaN or infinite, expected finite numbers; "
            "the model overflows here (load it with dtype=torch.bfloat16 or float32 instead of float16) "
            "or the method's `score` divides by zero"
        )
    raise InvalidPlan(
        f"step at {step.site}: an adaptive step compares scores with a share of their mean and needs scores >= 0, got "
        f"{float(values.min()):.4g}; return e.g. `scores.softmax(-1)` from the method, or set the step's threshold to None"
    )
