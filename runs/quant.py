"""Accuracy of the shipped model with weights in int8 or int4, pruned, and both, on the same questions: `bash runs/quant.sh`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import typer

from atp.bench.quantise import quantised
from atp.engine import prune
from atp.evals.items import scene_items
from atp.evals.runner import Result, evaluate, prepared
from atp.evals.stats import paired_bootstrap
from atp.loading import load


def rows(model: Any, processor: Any, count: int, budget: float, batch: int = 32, quant: str = "int8") -> list[dict[str, Any]]:
    """Ask every question four times: with the model's own weights and quantised ones, unpruned and pruned."""
    items = list(scene_items(count))
    scenes = np.unique([item.key.rsplit(":", 1)[0] for item in items], return_inverse=True)[1]
    batches = prepared(processor, items, batch)
    small = quantised(model, quant)
    with prune(model, budget, processor=processor) as run:
        plan = run.plan  # the same for both, that of the model's own weights
    found: list[tuple[str, Result, Result | None]] = []
    for name, pruning in (("unpruned", None), (f"atp {budget:g}", {"plan": plan})):
        own = evaluate(name, model, processor, items, batches, pruning)
        found.append((name, own, None))
        word = quant if pruning is None else f"{quant} + {name}"
        found.append((word, evaluate(word, small, processor, items, batches, pruning), own))
    base = found[0][1]
    return [
        {
            "name": name,
            "accuracy": result.accuracy,
            "flops_ratio": (result.report or {}).get("flops_ratio", 1.0),
            "against_unpruned": dataclasses.asdict(paired_bootstrap(result.correct, base.correct, scenes)),
            "changed": None if twin is None else changed(result, twin),
        }
        for name, result, twin in found
    ]


def changed(one: Result, two: Result) -> float:
    """Share of answers that differ, in percent."""
    return float(100 * np.mean([a != b for a, b in zip(one.answers, two.answers, strict=True)]))


def main(
    out: Path = Path("docs/results/performance/quant-shipped/accuracy.json"),
    model: str = "atp-mini-llava",
    questions: int = 600,
    budget: float = 0.6,
    quant: str = "int8",
) -> None:
    """Measure and write."""
    loaded, processor = load(model)
    result = {
        "schema": 1,
        "model": model,
        "questions": questions,
        "rows": rows(loaded, processor, questions, budget, quant=quant),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for row in result["rows"]:
        print(f"{row['name']:<20}{row['accuracy']:>8.2f}{row['flops_ratio']:>8.3f}")


if __name__ == "__main__":
    typer.run(main)
