"""Where ATP prunes on a shipped model: accuracy of sites, balance, alpha and coverage at one budget, on scenes kept for tuning.

`python zoo/tune.py [--model atp-mini-blip2] [--budget 0.6] [--questions 400]` prints one line a setting, best last. The seeds are
neither trained on nor tested on; what the shipped calibrations use is chosen here. Settings out of the budget's reach are named.
"""

from __future__ import annotations

import argparse
import itertools

from atp.adapters import adapt
from atp.budget.solve import solve
from atp.engine.planning import own_flops, rater_rows
from atp.errors import UnreachableBudget
from atp.evals.items import scene_items
from atp.evals.runner import evaluate, prepared, workload_of
from atp.loading import DEFAULT, load
from atp.methods import METHODS
from atp.plan import Site

FIRST = 800_000_000
LLAVA = (
    "vision:0 vision:1 vision:2 vision:3 vision:4 language:2 language:4",
    "vision:0 vision:1 vision:2 vision:3 language:2 language:4",
    "vision:0 vision:1 vision:2 language:2 language:4",
    "vision:1 vision:2 vision:3 vision:4 language:2 language:4",
    "vision:1 vision:2 vision:3 language:2 language:4",
    "vision:2 vision:4 language:2 language:4",
    "vision:1 vision:3 language:2 language:4",
    "vision:3 vision:5 language:2 language:4",
    "vision:3 language:2 language:4",
    "vision:4 language:2 language:3",
    "vision:2 vision:4 language:3 language:5",
)
SITES = {
    "llava": LLAVA,
    # queries read the tower's survivors, so most of what can be saved lies in the tower
    "blip-2": (
        "vision:0 vision:1 vision:2 vision:3",
        "vision:0 vision:1 vision:2",
        "vision:1 vision:2 vision:3 vision:4",
        "vision:1 vision:2 vision:3",
        "vision:2 vision:4",
        "vision:1 vision:3",
        "vision:2 vision:5",
        "vision:2 vision:4 language:2",
        "vision:2 vision:4 language:2 language:4",
        "vision:2 language:3",
    ),
    # cross-attention stands before language layers 0, 2 and 4, so sites at 2 and 4 are all that differ
    "idefics": (
        "vision:0 vision:1 vision:2 vision:3",
        "vision:0 vision:1 vision:2",
        "vision:1 vision:2 vision:3 vision:4",
        "vision:1 vision:2 vision:3",
        "vision:2 vision:4",
        "vision:1 vision:3",
        "vision:2 vision:5",
        "vision:2 vision:4 language:2",
        "vision:2 vision:4 language:4",
        "vision:2 vision:4 language:2 language:4",
    ),
}
"""Candidates by model type."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--methods", default="atp")
    parser.add_argument("--balances", default="0.3,0.5,0.7")
    parser.add_argument("--alphas", default="0.5,1.0")
    parser.add_argument("--coverages", default="0.5")
    parser.add_argument("--per-scene", type=int, default=4)
    parser.add_argument("--sites", help="candidates with ';' between; default: those of the model type")
    parser.add_argument("--model", default=DEFAULT, help="shipped name or a folder of zoo/export.py")
    args = parser.parse_args(arguments)
    model, processor = load(args.model)
    candidates = args.sites.split(";") if args.sites else SITES[model.config.model_type]
    items = list(scene_items(args.questions, "train", FIRST, per_scene=args.per_scene))
    batches = prepared(processor, items, 20)
    adapter, work = adapt(model), workload_of(model, processor, items)
    found = [(evaluate("none", model, processor, items, batches).accuracy, 1.0, "unpruned")]
    for method, sites, balance, alpha, coverage in itertools.product(
        args.methods.split(","),
        candidates,
        map(float, args.balances.split(",")),
        map(float, args.alphas.split(",")),
        map(float, args.coverages.split(",")),
    ):
        options = {"alpha": alpha, "coverage": coverage} if method == "atp" else {}
        places = tuple(map(Site.parse, sites.split()))
        try:
            built = METHODS.get(method)(**options)
            asked = {"raters": rater_rows(adapter, built, work), "more": own_flops(adapter, built, work), "balance": balance}
            plan = solve(adapter.shape, args.budget, method, work, places, options=options, **asked)
        except UnreachableBudget as error:
            print(f"{sites} balance={balance}: left out, {error}")
            continue
        result = evaluate(method, model, processor, items, batches, {"plan": plan})
        keeps = " ".join(f"{s.site}={s.keep:.2f}" for s in plan.steps)
        found.append((result.accuracy, (result.report or {})["flops_ratio"], f"{method} balance={balance} {options} {keeps}"))
        print(f"{found[-1][0]:6.2f} {found[-1][1]:.3f} {found[-1][2]}", flush=True)
    print("best:")
    for accuracy, ratio, what in sorted(found)[-8:]:
        print(f"{accuracy:6.2f} {ratio:.3f} {what}")


if __name__ == "__main__":
    main()
