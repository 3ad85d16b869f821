"""The table of methods at equal counted FLOPs on held-out questions: `python -m atp.evals.table` (what `make table` runs).

Every method answers the same questions on the shipped model, at the same share of the unpruned FLOPs or at the lowest share
that it can reach. Writes `table.json` and `table.md`; prints the latter.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from atp.adapters import adapt
from atp.engine import Run, prune
from atp.errors import InvalidPlan, UnreachableBudget
from atp.evals.items import Item, scene_items
from atp.evals.runner import Result, evaluate, prepared, workload_of
from atp.evals.stats import paired_bootstrap
from atp.loading import DEFAULT, load
from atp.methods import METHODS, list_methods, spelled
from atp.plan import Plan
from atp.scenes.questions import KINDS

RANDOM_SEEDS = (0, 1, 2)
ADAPTIVE = "adaptive_calibration.json"  # beside the weights, if the model has thresholds
PARTS = ("vision", "connector", "prefill", "decode", "selection")


CONTROLS = ("fastv", "uniform", "resize", "random")


def settings(
    model: Any, budget: float, workload: Any, methods: Sequence[str] = CONTROLS, weights: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, Any], str]]:
    """Return (name, arguments of prune, remark) of every row; a method that this model or plan cannot have is left out aloud."""
    rows: list[tuple[str, dict[str, Any], str]] = [("atp", {"budget": budget, "workload": workload}, "")]
    thresholds = Path(str(getattr(model.config, "_name_or_path", "") or ".")) / ADAPTIVE
    if thresholds.is_file():
        rows.append(("atp-adaptive", {"budget": budget, "calibration": thresholds}, "counts per input"))
    own = weights or {}
    names = [(name, *spelled(name)) for name in methods if name != "random"]
    names += [(f"random/{s}", "random", {"seed": s}) for s in RANDOM_SEEDS if "random" in methods]
    for name, method, options in names:
        options |= {"weights": own[name]} if name in own else {}
        asked, remark = budget, ""
        try:
            with prune(model, budget=budget, method=method, workload=workload, **options) as run:
                pass
            same = at_counts_of_atp(model, budget, run, workload) if name in own else None
        except UnreachableBudget as error:
            same = None
            asked, remark = error.lowest, f"cannot reach {budget:g}"
        except InvalidPlan as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        if same is not None:
            rows.append((name, {"plan": same}, "at the counts of atp"))
            continue
        rows.append((name, {"budget": asked, "method": method, "workload": workload, **options}, remark))
    return rows


def at_counts_of_atp(model: Any, budget: float, run: Run, workload: Any = None) -> Plan | None:
    """Return ATP's plan of a budget for a trained method's run; None where it has no module for one of the sites."""
    known = run.method.default_sites(run.shape) or ()
    with prune(model, budget=budget, workload=workload) as plain:
        plan = plain.plan
    if not {step.site for step in plan.steps} <= set(known):
        return None
    return dataclasses.replace(plan, method=run.method.name, options=dict(run.plan.options))


def untrained() -> list[str]:
    """All methods but the unpruned one and those that need weights of their own."""
    return [name for name in list_methods() if name not in ("none", "atp") and not METHODS.get(name).trained]


def merged(name: str, results: Sequence[Result]) -> Result:
    """Average several seeds of one method into one result."""
    correct = np.mean([r.correct for r in results], axis=0)
    report = dict(results[0].report or {})
    report["flops_ratio"] = float(np.mean([(r.report or {})["flops_ratio"] for r in results]))
    return Result(name, (), correct, report, float(np.mean([r.seconds for r in results])))


def majority(items: Sequence[Item], count: int) -> NDArray[np.float64]:
    """Score the best blind guess: the most frequent answer to the kind and first two words of a question in training scenes."""
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def form(item: Item) -> tuple[str, str]:
        return item.kind, " ".join(item.question.split()[:2])

    for item in scene_items(count, "train", size=32):
        seen[form(item)][item.answer] += 1
    guess = {key: answers.most_common(1)[0][0] for key, answers in seen.items()}
    return np.array([float(guess.get(form(item)) == item.answer) for item in items])


def row(
    result: Result, base: Result, reference: Result | None, groups: NDArray[np.int64], items: Sequence[Item]
) -> dict[str, Any]:
    """Sum up one setting."""
    kinds = np.array([item.kind for item in items])
    report = result.report or {}
    flops = report.get("flops", {})
    full = report.get("flops_unpruned", {})
    out: dict[str, Any] = {
        "name": result.name,
        "accuracy": result.accuracy,
        "by_kind": {kind: float(100 * result.correct[kinds == kind].mean()) for kind in KINDS if (kinds == kind).any()},
        "flops_ratio": report.get("flops_ratio", 1.0),
        "selection_share": flops.get("selection", 0.0) / full["total"] if full else 0.0,
        "equivalent_tokens": report.get("equivalent_tokens"),
        "flops": flops or None,
        "seconds": result.seconds,
        "against_unpruned": dataclasses.asdict(paired_bootstrap(result.correct, base.correct, groups)),
        "plan": report.get("plan"),
    }
    if reference is not None and reference.name != result.name:
        out["atp_minus_this"] = dataclasses.asdict(paired_bootstrap(reference.correct, result.correct, groups))
    if result.answers and base.answers:
        out["answers_changed"] = float(100 * np.mean([a != b for a, b in zip(result.answers, base.answers, strict=True)]))
    return out


def markdown(table: dict[str, Any]) -> str:
    """Format the table."""

    def interval(value: dict[str, float] | None) -> str:
        return "" if value is None else f"{value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"

    lines = [
        f"{table['questions']} held-out questions about {table['images']} scenes, `{table['model']}`, budget "
        f"{table['budget']:g} of the unpruned FLOPs; 95 % intervals from a paired bootstrap over scenes.",
        "",
        "| method | FLOPs | accuracy | minus unpruned | ATP minus this "
        f"| {table['visual']} per LM layer | kept at | selection | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in table["rows"]:
        tokens = entry["equivalent_tokens"]
        kept = ", ".join(f"{step['site']} {step['keep']:.0%}" for step in (entry["plan"] or {}).get("steps", ()))
        lines.append(
            f"| {entry['name']} | {entry['flops_ratio']:.3f} | {entry['accuracy']:.2f} | {interval(entry['against_unpruned'])} "
            f"| {interval(entry.get('atp_minus_this'))} | {'' if tokens is None else f'{tokens:.1f}'} "
            f"| {kept} | {entry['selection_share']:.2%} | {entry.get('remark', '')} |"
        )
    kinds = list(table["rows"][0]["by_kind"])
    lines += ["", "| accuracy by kind | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    lines += [f"| {e['name']} | " + " | ".join(f"{e['by_kind'][k]:.1f}" for k in kinds) + " |" for e in table["rows"]]
    blind = table["blind"]
    lines.append("| grey image | " + " | ".join(f"{blind['grey_by_kind'][k]:.1f}" for k in kinds) + " |")
    lines.append("| majority answer | " + " | ".join(f"{blind['majority_by_kind'][k]:.1f}" for k in kinds) + " |")
    lines += [
        "",
        f"Blind: grey image {blind['grey']:.2f}, majority answer to the question's first two words {blind['majority']:.2f}.",
    ]
    return "\n".join(lines)


def measure(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    budget: float,
    batch: int,
    name: str,
    methods: Sequence[str] = CONTROLS,
    weights: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure all rows and return the table."""
    groups = np.array([int(item.key.split(":")[1]) for item in items])
    batches = prepared(processor, items, batch)
    workload = workload_of(model, processor, items)
    base = evaluate("none", model, processor, items, batches)
    grey = evaluate("grey image", model, processor, items, prepared(processor, items, batch, blank=True))
    guess = majority(items, 4000)
    kinds = np.array([item.kind for item in items])
    results: list[tuple[Result, str]] = []
    seeds: list[Result] = []
    for label, pruning, remark in settings(model, budget, workload, methods, weights):
        result = evaluate(label, model, processor, items, batches, pruning)
        if label.startswith("random/"):
            seeds.append(result)
        else:
            results.append((result, remark))
    if seeds:
        results.append((merged("random", seeds), f"mean of {len(seeds)} seeds"))
    rows = [row(base, base, None, groups, items)]
    for result, remark in results:
        rows.append({**row(result, base, results[0][0], groups, items), "remark": remark})
    return {
        "model": name,
        "questions": len(items),
        "images": len(set(groups.tolist())),
        "budget": budget,
        "visual": "queries" if adapt(model).shape.connects == "keys" else "visual tokens",
        "workload": dataclasses.asdict(workload),
        "dtype": str(model.dtype),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}},
        "blind": {
            "grey": grey.accuracy,
            "majority": float(100 * guess.mean()),
            "grey_by_kind": {k: float(100 * grey.correct[kinds == k].mean()) for k in KINDS if (kinds == k).any()},
            "majority_by_kind": {k: float(100 * guess[kinds == k].mean()) for k in KINDS if (kinds == k).any()},
        },
        "rows": rows,
    }


def main(
    out: Annotated[Path, typer.Option(help="folder for table.json and table.md")] = Path("out"),
    questions: Annotated[int, typer.Option(min=20, help="how many held-out questions")] = 2000,
    budget: Annotated[float, typer.Option(help="share of the unpruned FLOPs")] = 0.6,
    methods: Annotated[str, typer.Option(help="beside atp, comma-separated, or `all`")] = ",".join(CONTROLS),
    model: Annotated[str, typer.Option(help="hub id, folder or shipped name")] = DEFAULT,
    split: Annotated[str, typer.Option(help="split of the scenes")] = "val",
    batch: Annotated[int, typer.Option(min=1)] = 20,
    weights: Annotated[str, typer.Option(help="of trained methods, comma-separated: gate=gate.safetensors")] = "",
) -> None:
    """Measure the table of methods."""
    loaded, processor = load(model)
    chosen = untrained() if methods == "all" else methods.split(",")
    own = dict(part.split("=", 1) for part in weights.split(",") if "=" in part)
    chosen += [name for name in own if name not in chosen]
    items = list(scene_items(questions, split))
    table = measure(loaded, processor, items, budget, batch, model, chosen, own) | {"split": split}
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    text = markdown(table)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
