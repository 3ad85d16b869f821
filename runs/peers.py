"""Write docs/results/peers.md and a picture a model from records: `python runs/peers.py FOLDERS`, called by peers.sh.

One matrix a budget. No number is computed here that the package does not compute, but means and ranks over cells.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pages import counted, number, opened, table
from scipy.stats import rankdata

from atp.evals.harness.cells import label
from atp.evals.harness.gather import Gathered
from atp.evals.harness.markdown import NOTHING, interval, lead
from atp.evals.harness.pareto import points
from atp.evals.harness.settings import REFERENCE
from atp.evals.harness.versus import SAME, VERDICTS, Versus, versus

Place = tuple[str, str]
"""Model and task."""
Opened = Sequence[tuple[Gathered, dict[str, Any]]]
STARS = {"win": "\\*", "loss": " **!**", "tie": ""}


@dataclass(frozen=True)
class Peers:
    """All rows and comparisons of some runs.

    Attributes:
        first: method that is compared with the others.
        places: models and tasks.
        rows: by place and setting, as `report.build` makes them.
        duels: by place and setting.
        methods, budgets: in order of appearance; from large to small.
    """

    first: str
    places: tuple[Place, ...]
    rows: dict[tuple[Place, str], dict[str, Any]]
    duels: dict[tuple[Place, str], Versus]
    methods: tuple[str, ...]
    budgets: tuple[float, ...]

    @classmethod
    def of(cls, runs: Opened, first: str) -> Peers:
        """Collect them."""
        rows, duels, methods, budgets = {}, {}, {}, set()
        for found, told in runs:
            name = Path(told["model"]).name
            for task in told["tasks"]:
                rows |= {((name, task["name"]), row["name"]): row for row in task["rows"]}
                cells = [cell for cell in found.cells(task["name"]).values() if cell["method"] != REFERENCE]
                methods |= dict.fromkeys(cell["method"] for cell in cells)
                budgets |= {cell["budget"] for cell in cells}
            duels |= {((name, one.task), label(one.other, one.budget)): one for one in versus(found, first)}
        places = tuple(dict.fromkeys(place for place, _ in rows))
        places = tuple(p for model in dict.fromkeys(model for model, _ in places) for p in places if p[0] == model)
        return cls(first, places, rows, duels, tuple(methods), tuple(sorted(budgets, reverse=True)))

    def score(self, place: Place, setting: str) -> float | None:
        """Score of a setting, None where it is not possible."""
        row = self.rows.get((place, setting))
        return None if row is None else row["score"]

    def kept(self, method: str, budget: float, places: Sequence[Place]) -> float | None:
        """Mean share of the unpruned score over some places, in per cent."""
        pairs = [(self.score(place, label(method, budget)), self.score(place, REFERENCE)) for place in places]
        shares = [100 * score / base for score, base in pairs if score is not None and base]
        return float(np.mean(shares)) if shares and len(shares) == len(pairs) else None

    def where(self, method: str, budget: float) -> list[Place]:
        """Places where a method has answers at a budget."""
        return [place for place in self.places if self.score(place, label(method, budget)) is not None]

    def ranks(self, budget: float) -> dict[str, float]:
        """Mean rank of each method over its places, 1 = best, among those that are there; equal scores share a rank."""
        found = defaultdict(list)
        for place in self.places:
            there = [method for method in self.methods if self.score(place, label(method, budget)) is not None]
            for method, rank in zip(there, rankdata([-self.rows[place, label(m, budget)]["score"] for m in there]), strict=True):
                found[method].append(float(rank))
        return {method: float(np.mean(ranks)) for method, ranks in found.items()}


def matrix(peers: Peers, budget: float) -> list[str]:
    """Methods x places at a budget: score, and the first method minus it."""
    ranks = peers.ranks(budget)
    rows = [[REFERENCE, *(number(peers.score(place, REFERENCE), 1) for place in peers.places), "", "", ""]]
    for method in sorted(ranks, key=ranks.__getitem__):
        setting, places = label(method, budget), peers.where(method, budget)
        cells = []
        for place in peers.places:
            one, score = peers.duels.get((place, setting)), peers.score(place, setting)
            gap = f" ({one.gap.mean:+.1f}{STARS[one.verdict]})" + "†" * (not one.equal) if one else ""
            cells.append(NOTHING if score is None else f"{score:.1f}{gap}")
        same = [number(peers.kept(name, budget, places), 1) for name in (method, peers.first)]
        shown = [f"**{cell}**" if method == peers.first else cell for cell in (method, *cells)]
        rows.append([*shown, f"{ranks[method]:.1f}", f"{same[0]} of {len(places)}", same[1]])
    models = {model for model, _ in peers.places}
    names = [f"{model.removeprefix('atp-mini-')} {task}" if len(models) > 1 else task for model, task in peers.places]
    return table(("method", *names, "mean rank", "kept %, cells", f"{peers.first} there %"), rows)


def best(peers: Peers) -> list[str]:
    """The first method against the best other one at each budget, over the cells that both have."""
    rows = []
    for budget in peers.budgets:
        mine, others = set(peers.where(peers.first, budget)), []
        for method in peers.methods:
            both = [place for place in peers.where(method, budget) if place in mine]
            if method != peers.first and both:
                own, other = (peers.kept(name, budget, both) or 0.0 for name in (peers.first, method))
                others.append((len(both), other - own, method, own, other))
        if not others:
            continue
        cells = max(count for count, *_ in others)
        _, _, method, own, other = max(one for one in others if one[0] == cells)
        rows.append([f"{budget:g}", str(cells), f"{own:.1f}", f"{method} {other:.1f}", f"{own - other:+.1f}"])
    return table(("budget", "cells", f"{peers.first}: kept %", "best of the others on as many cells", "difference"), rows)


def missing(peers: Peers) -> list[str]:
    """What is not possible: methods by model and budgets, with the reason in the engine's words."""
    reasons: dict[tuple[str, str, str], list[tuple[float, str, float | None]]] = defaultdict(list)
    for ((model, task), setting), row in peers.rows.items():
        if row.get("refused"):
            method, _, budget = setting.rpartition(" ")
            why = re.sub(r"budget [\d.]+ (cannot be reached) .*? (at the sites [^(]*) \(.*", r"\1 \2", row["refused"], flags=re.S)
            reasons[method, why, model].append((float(budget), task, row["lowest"]))
    merged: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (method, why, model), found in sorted(reasons.items()):
        tasks: dict[float, list[str]] = defaultdict(list)
        for budget, task, _ in found:
            tasks[budget].append(task)
        every = sum(place[0] == model for place in dict.fromkeys(place for place, _ in peers.rows))
        some = [f"{b:g}" + f" ({', '.join(tasks[b])})" * (len(tasks[b]) < every) for b in sorted(tasks, reverse=True)]
        whole = set(peers.budgets) == set(tasks) and not any("(" in one for one in some)
        ends = dict.fromkeys(f"{end([low for *_, low in found]):.2f}" for end in (min, max) if found[0][2] is not None)
        told = f"{why}; the lowest is {' to '.join(ends)}" if ends else why
        merged[method, "all" if whole else ", ".join(some), told].append(model.removeprefix("atp-mini-"))
    rows = [(method, ", ".join(models), some, told) for (method, some, told), models in merged.items()]
    return table(("method", "models", "budgets", "why not"), rows)


def unequal(peers: Peers) -> Iterator[tuple[str, ...]]:
    """Rows of the settings whose counted share misses the budget by more than 1 %."""
    for method in peers.methods:
        for budget in peers.budgets:
            for place in peers.where(method, budget):
                share = peers.rows[place, label(method, budget)]["flops_share"]
                if abs(share - budget) > SAME * budget:
                    yield method, " ".join(place), f"{budget:g}", f"{share:.3f}"


def picture(peers: Peers, model: str, runs: Opened, docs: Path) -> str:
    """Draw score against counted FLOPs for a model, a task beside the other; return the file's name."""
    import matplotlib
    from matplotlib.figure import Figure

    tasks = [task for _, told in runs if Path(told["model"]).name == model for task in told["tasks"]]
    with matplotlib.rc_context({"svg.hashsalt": "atp", "svg.fonttype": "none", "font.size": 8}):
        drawing = Figure(figsize=(3.6 * len(tasks) + 1.6, 3.6), layout="constrained")
        places = drawing.subplots(1, len(tasks), squeeze=False)[0]
        for place, task in zip(places, tasks, strict=True):
            for name, found in points(task, "flops_share").items():
                x, y, low, high = (np.array(values) for values in zip(*found, strict=True))
                if name in (REFERENCE, peers.first):
                    style = {"fmt": "k*", "markersize": 8} if name == REFERENCE else {"fmt": "o-", "color": "#c0185a"}
                    place.errorbar(x, y, yerr=(y - low, high - y), capsize=2, linewidth=2, zorder=3, label=name, **style)
                    continue
                color = matplotlib.colormaps["tab20"](peers.methods.index(name) % 20)
                place.plot(x, y, "o-", color=color, markersize=2.5, linewidth=0.9, label=name)
            place.set(title=task["name"], xlabel="counted FLOPs, share of unpruned", ylabel=task["metric"])
            place.grid(alpha=0.25)
        handles = {text: line for place in places for line, text in zip(*place.get_legend_handles_labels(), strict=True)}
        drawing.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=7)
        drawing.savefig(docs / f"peers-{model}.svg", metadata={"Date": None})
    return f"peers-{model}.svg"


def page(peers: Peers, runs: Opened, docs: Path) -> str:
    """Return the page."""
    first, duels = peers.first, list(peers.duels.values())
    lines = ["# Every method at equal counted FLOPs", "", "`bash runs/peers.sh` writes this page and what it rests on.", ""]
    lines += [f"- {', '.join(task['name'] for task in told['tasks'])}: {lead(told)}" for _, told in runs]
    lines += [
        "",
        f"A cell: the score, and in brackets {first} minus it, in points of the task's metric. \\* {first} is better, **!** it "
        "is worse, beyond the 95 % interval of the difference. † counted FLOPs of the two differ by more than 1 %. Methods stand "
        "by mean rank over the cells that they have; *kept* is their mean share of the unpruned score over these, beside that of "
        f"{first} over the same. Plans are solved for each task's prompts and answers; FLOPs are counted for that length.",
    ]
    for model in dict.fromkeys(model for model, _ in peers.places):
        lines += ["", f"![{model}: score against counted FLOPs]({picture(peers, model, runs, docs)})"]
    lines += ["", f"## {first} against the others"]
    lines += table(("budget", *VERDICTS), counted(duels, lambda one: f"{one.budget:g}"))
    lines += best(peers)
    lines += table((f"{first} against", *VERDICTS), counted(sorted(duels, key=lambda one: one.other), lambda one: one.other))
    lost = [(place, one) for (place, _), one in peers.duels.items() if one.verdict == "loss"]
    lines += [f"Losses: {len(lost)} of {len(duels)}."]
    rows = [(" ".join(place), f"{o.budget:g}", o.other + "†" * (not o.equal), interval(asdict(o.gap))) for place, o in lost]
    lines += table(("where", "budget", "to", f"{first} minus it"), rows) if lost else []
    for budget in peers.budgets:
        lines += ["", f"## Budget {budget:g}", *matrix(peers, budget)]
    lines += ["", "## Not possible", *missing(peers)]
    off = list(unequal(peers))
    lines += ["", "## Not within 1 % of the budget", ""]
    lines += table(("method", "where", "budget", "counted"), off) if off else ["None."]
    return "\n".join(lines)


def main(
    folders: Annotated[list[Path], typer.Argument(help="of the records; several of one model are joined")],
    docs: Annotated[Path, typer.Option(help="folder of the pages")] = Path("docs/results"),
    first: Annotated[str, typer.Option(help="method that is compared with the others")] = "atp",
) -> None:
    """Write the page and its pictures."""
    docs.mkdir(parents=True, exist_ok=True)
    runs = [opened(folder) for folder in folders]
    text = page(Peers.of(runs, first), runs, docs)
    (docs / "peers.md").write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n", encoding="utf-8")
    typer.echo(f"wrote {docs / 'peers.md'}")


if __name__ == "__main__":
    typer.run(main)
