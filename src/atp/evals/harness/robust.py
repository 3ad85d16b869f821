"""Robustness of every setting of a task, from its records: errors under disturbance against the unpruned model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from atp.errors import BadInput
from atp.evals.harness import gather
from atp.evals.harness.execute import CLEAN
from atp.evals.harness.gather import Gathered
from atp.evals.harness.settings import REFERENCE
from atp.evals.robustness.disturb import Disturbance
from atp.evals.robustness.metrics import Outcomes, compare

SHARES = {"coco": ("tuple_F1", "object_F1", "ROUGE_L"), "chair": ("recall",)}
"""Where a task's own metric is no share of 1, or is better when lower: those to take instead, the first that the records have."""


def robustness(found: Gathered, task: str, primary: str) -> dict[str, Any]:
    """Return what disturbances did to a task.

    Args:
        found: the records.
        task: its name.
        primary: its metric.

    Returns:
        `robustness` by setting; `disturbed`, scores by disturbance and setting; `swapped`, answers changed where words were
        replaced, so that the true answer may be another; `robust_metric`, that was compared.
    """
    made = [_parsed(name) for name in found.disturbances(task)]
    kept = [str(one) for one in made if one.keeps_answer]
    labels = [label for label in found.cells(task) if found.of(task, CLEAN, label)]
    metric = _metric(found, task, primary)
    return {
        "robust_metric": metric,
        "robustness": {label: _compared(found, task, label, kept, metric) for label in labels if label != REFERENCE}
        if kept
        else {},
        "disturbed": {name: {label: _mean(found, task, name, label, metric) for label in labels} for name in kept},
        "swapped": {
            str(one): {label: gather.flips(found.of(task, str(one), label), found.of(task, CLEAN, label)) for label in labels}
            for one in made
            if not one.keeps_answer
        },
    }


def _parsed(text: str) -> Disturbance:
    name, _, severity = text.partition(":")
    return Disturbance(name, int(severity))


def _metric(found: Gathered, task: str, primary: str) -> str:
    known = {name for entry in gather.reference(found, task).values() for name in entry.scores}
    return next((name for name in SHARES.get(task.partition(":")[0], ()) if name in known), primary)


def _mean(found: Gathered, task: str, disturbance: str, label: str, metric: str) -> float | None:
    entries = found.of(task, disturbance, label)
    own = [item for item, entry in entries.items() if metric in entry.scores]
    return float(100 * gather.scores(entries, own, metric).mean()) if own else None


def _compared(found: Gathered, task: str, label: str, kept: Sequence[str], metric: str) -> dict[str, Any]:
    """Compare a setting with the unpruned model over the items that both answered everywhere, or say why not."""
    runs = [found.of(task, name, which) for name in (CLEAN, *kept) for which in (label, REFERENCE)]
    items = [item for item in runs[0] if all(item in run and metric in run[item].scores for run in runs)]
    if not items:
        return {"why": "no item has been answered under every disturbance by both"}
    try:
        pruned, unpruned = (_outcomes(found, task, which, kept, items, metric) for which in (label, REFERENCE))
        told = compare(pruned, unpruned)
    except BadInput as error:
        return {"why": str(error)}
    values = asdict(told)
    return {
        **values,
        "retained": list(told.retained),
        "disturbed": list(told.disturbed),
        "left_out": list(told.left_out),
        "verdict": told.verdict,
        "items": len(items),
    }


def _outcomes(found: Gathered, task: str, label: str, kept: Sequence[str], items: Sequence[str], metric: str) -> Outcomes:
    clean = found.of(task, CLEAN, label)
    made = [(_parsed(name), found.of(task, name, label)) for name in kept]
    disturbed = {(one.name, one.severity): gather.scores(entries, items, metric) for one, entries in made}
    return Outcomes(gather.scores(clean, items, metric), disturbed, gather.images(clean, items))
