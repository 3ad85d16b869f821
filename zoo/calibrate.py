"""Write a shipped model's `atp_calibration.json` beside its weights: `python zoo/calibrate.py [--model atp-mini-blip2]`.

The sites are those that `zoo/tune.py` chose; counts are solved for the budgets. `adaptive_calibration.json` has thresholds at
the same sites that spend the same on average over scenes never trained on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from atp.adapters import adapt
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.solve import solve
from atp.engine.planning import own_flops, rater_rows
from atp.evals.items import scene_items
from atp.evals.runner import workload_of
from atp.fitting import fit_counts
from atp.loading import DEFAULT, load, resolve
from atp.methods import METHODS
from atp.plan import Site

FIRST, QUESTIONS = 900_000_000, 240


@dataclass(frozen=True)
class Chosen:
    """How a model type is calibrated.

    Attributes:
        sites: where tokens leave.
        budgets: of the plans.
        balance, options: as `atp.solve` takes them.
        batch: 1 where the tower takes no mask: a batch there shares the largest count.
        other: other sites at some budgets.
    """

    sites: str
    budgets: tuple[float, ...]
    balance: float = 0.5
    batch: int = 20
    options: dict[str, float] = field(default_factory=dict)
    other: dict[float, str] = field(default_factory=dict)


BETWEEN = (0.56,)
"""Thresholds of other sites have no mean: one more budget just below those with few."""
FEW = dict.fromkeys((0.57, 0.6, 0.8), "vision:0 vision:3")
"""Where much stays, two sites answer as well as four to six and cost less time: each takes as long whatever it saves."""

CHOSEN = {
    "llava": Chosen("vision:0 vision:1 vision:2 vision:3 language:2 language:4", (0.25, 0.4, 0.5, 0.57, 0.6, 0.8), other=FEW),
    "blip-2": Chosen(
        "vision:0 vision:1 vision:2 vision:3 language:2 language:4",
        (0.2, 0.25, 0.3, 0.4, 0.5, 0.57, 0.6, 0.8),
        balance=0.3,
        batch=1,
        other={0.2: "vision:0 language:2", 0.25: "vision:0 language:2", **FEW},
    ),
    "idefics": Chosen(
        "vision:0 vision:1 vision:2 vision:3",
        (0.25, 0.3, 0.4, 0.5, 0.57, 0.6, 0.8),
        batch=1,
        other={0.25: "vision:0 vision:1", **FEW},
    ),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT, help="shipped name or a folder of zoo/export.py")
    parser.add_argument("--sites", help="instead of those chosen, e.g. 'vision:2 language:2'")
    parser.add_argument("--balance", type=float, help="instead of the one chosen")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--fixed-only", action="store_true", help="no thresholds: they take minutes")
    args = parser.parse_args(arguments)
    model, processor = load(args.model)
    chosen = CHOSEN[model.config.model_type]
    sites = tuple(map(Site.parse, (args.sites or chosen.sites).split()))
    balance = chosen.balance if args.balance is None else args.balance
    folder, adapter = Path(resolve(args.model)), adapt(model)
    shape = adapter.shape
    items = list(scene_items(args.questions, "train", FIRST, per_scene=1))  # thresholds of the tower want many images
    told = f"questions about generated scenes, split train, seeds from {FIRST}"
    workload = workload_of(model, processor, items)
    built = METHODS.get("atp")(**chosen.options)
    asked = {"raters": rater_rows(adapter, built, workload), "more": own_flops(adapter, built, workload), "balance": balance}
    other = {} if args.sites else {b: tuple(map(Site.parse, where.split())) for b, where in chosen.other.items()}
    plans = [solve(shape, b, "atp", workload, other.get(b, sites), options=chosen.options, **asked) for b in chosen.budgets]
    mark = fingerprint(model.named_parameters())
    fixed = Calibration(tuple(plans), mark, workload, len(items), f"solved for the length of {len(items)} {told}")
    fixed.save(folder / "atp_calibration.json")
    show(fixed)
    if args.fixed_only:
        return
    found = fit_counts(
        model,
        processor,
        [item.image for item in items],
        [item.question for item in items],
        sorted({*chosen.budgets, *BETWEEN}),
        options=chosen.options,
        sites=sites if args.sites else None,  # where the file just written has them
        balance=balance,
        batch=chosen.batch,
        note=f"{len(items)} {told}",
    )
    found.save(folder / "adaptive_calibration.json")
    show(found)


def show(table: Calibration) -> None:
    """Print what each budget keeps, and from which threshold on."""
    for plan in table.plans:
        print(plan.budget, [(str(s.site), round(s.keep, 3), round(s.threshold or 0, 3)) for s in plan.steps], flush=True)


if __name__ == "__main__":
    main()
