"""Write a shipped model's `atp_calibration.json` beside its weights: `python zoo/calibrate.py [--model atp-mini-blip2]`.

Three budgets, from scenes never trained on. `adaptive_calibration.json` has thresholds, the default mean counts.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

from atp.adapters import adapt
from atp.evals.calibrating import calibrate_model
from atp.evals.items import scene_items
from atp.loading import DEFAULT, load, resolve
from atp.plan import Site

FIRST, QUESTIONS = 900_000_000, 240


@dataclass(frozen=True)
class Chosen:
    """How a model type is calibrated; `batch` is 1 where the tower takes no mask: a batch there shares the largest count."""

    sites: str
    budgets: tuple[float, ...]
    balance: float = 0.5
    batch: int = 20
    options: dict[str, float] = field(default_factory=dict)


CHOSEN = {
    "llava": Chosen("vision:1 vision:2 vision:3 vision:4 language:2 language:4", (0.25, 0.4, 0.6, 0.8)),  # by zoo/tune.py
    "blip-2": Chosen("vision:1 vision:2 vision:3", (0.5, 0.6, 0.8), batch=1),  # as the next, not tuned
    "idefics": Chosen("vision:1 vision:2 vision:3", (0.4, 0.6, 0.8), batch=1),  # by zoo/tune.py at 0.5
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT, help="shipped name or a folder of zoo/export.py")
    parser.add_argument("--sites", help="instead of those chosen, e.g. 'vision:2 language:2'")
    parser.add_argument("--balance", type=float, help="instead of the one chosen")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    args = parser.parse_args(arguments)
    model, processor = load(args.model)
    chosen = CHOSEN[model.config.model_type]
    items = list(scene_items(args.questions, "train", FIRST, per_scene=1))  # thresholds of the tower want many images
    found = calibrate_model(
        model,
        processor,
        items,
        adapt(model).shape,
        chosen.budgets,
        sites=tuple(map(Site.parse, (args.sites or chosen.sites).split())),
        balance=chosen.balance if args.balance is None else args.balance,
        options=chosen.options,
        batch=chosen.batch,
        note=f"{args.questions} questions about generated scenes, split train, seeds from {FIRST}",
    )
    folder = Path(resolve(args.model))
    found.save(folder / "adaptive_calibration.json")
    # what is used by default: the same mean counts for every input, which measured better (dev/LOG.md)
    fixed = tuple(replace(p, steps=tuple(replace(s, threshold=None) for s in p.steps)) for p in found.plans)
    replace(found, plans=fixed, note=f"{found.note}; mean counts, the same for every input").save(folder / "atp_calibration.json")
    for plan in found.plans:
        print(plan.budget, [(str(s.site), round(s.keep, 3), round(s.threshold or 0, 3)) for s in plan.steps])


if __name__ == "__main__":
    main()
