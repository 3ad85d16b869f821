"""Where ATP prunes on the shipped model: accuracy of sites, balance, alpha and coverage at one budget, on scenes kept for tuning.

`python zoo/tune.py [--budget 0.6] [--questions 400]` prints one line a setting, best last. The seeds are neither trained on nor
tested on; what the shipped calibration uses was chosen here.
"""

from __future__ import annotations

import argparse
import itertools

from atp.adapters import adapt
from atp.budget.cost import Workload
from atp.budget.solve import solve
from atp.evals.items import scene_items
from atp.evals.runner import evaluate, prepared
from atp.loading import load
from atp.plan import Site

FIRST = 800_000_000
SITES = (
    "vision:2 vision:4 language:2 language:4",
    "vision:1 vision:3 language:2 language:4",
    "vision:3 vision:5 language:2 language:4",
    "vision:3 language:2 language:4",
    "vision:4 language:2 language:3",
    "vision:2 vision:4 language:3 language:5",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--methods", default="atp")
    parser.add_argument("--balances", default="0.3,0.5,0.7")
    parser.add_argument("--alphas", default="0.5,1.0")
    parser.add_argument("--coverages", default="0.5")
    parser.add_argument("--per-scene", type=int, default=4)
    parser.add_argument("--sites", default=";".join(SITES))
    args = parser.parse_args()
    model, processor = load()
    items = list(scene_items(args.questions, "train", FIRST, per_scene=args.per_scene))
    batches = prepared(processor, items, 20)
    shape, work = adapt(model).shape, Workload(1, 11, 2)
    found = [(evaluate("none", model, processor, items, batches).accuracy, 1.0, "unpruned")]
    for method, sites, balance, alpha, coverage in itertools.product(
        args.methods.split(","),
        args.sites.split(";"),
        map(float, args.balances.split(",")),
        map(float, args.alphas.split(",")),
        map(float, args.coverages.split(",")),
    ):
        options = {"alpha": alpha, "coverage": coverage} if method == "atp" else {}
        places = tuple(map(Site.parse, sites.split()))
        plan = solve(shape, args.budget, method, work, places, balance=balance, options=options)
        result = evaluate(method, model, processor, items, batches, {"plan": plan})
        keeps = " ".join(f"{s.site}={s.keep:.2f}" for s in plan.steps)
        found.append((result.accuracy, (result.report or {})["flops_ratio"], f"{method} balance={balance} {options} {keeps}"))
        print(f"{found[-1][0]:6.2f} {found[-1][1]:.3f} {found[-1][2]}", flush=True)
    print("best:")
    for accuracy, ratio, what in sorted(found)[-8:]:
        print(f"{accuracy:6.2f} {ratio:.3f} {what}")


if __name__ == "__main__":
    main()
