"""Write the pages of docs/results from records: `python runs/pages.py accuracy|robustness|hallucination|grounding FOLDERS`.

The scripts beside this one make the records and call it. No number is computed here that the package does not compute.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from atp.evals.grounding.markdown import markdown as grounded
from atp.evals.harness import gather, report
from atp.evals.harness.execute import CLEAN
from atp.evals.harness.gather import Gathered
from atp.evals.harness.markdown import NOTHING, Table, by_name, interval, lead, tables
from atp.evals.harness.pareto import points
from atp.evals.harness.settings import REFERENCE
from atp.evals.harness.versus import VERDICTS, Versus, tally, versus
from atp.evals.stats import paired_bootstrap

Rows = Iterable[Sequence[str]]
POPE = ("accuracy", "precision", "recall", "f1", "yes_ratio", "true_yes", "blind")
BLIND = (
    "yes_ratio: yes said, true_yes: yes true, in per cent. blind: right answers of a guess that knows the object's name only "
    "and says for each name what is true more often in that split; a model without eyes cannot do better."
)
NOT_MEASURED = "not measured"


def table(head: Sequence[str], rows: Rows) -> list[str]:
    """Lines of a Markdown table, an empty one before and behind."""
    found = ["| " + " | ".join(row) + " |" for row in rows]
    return ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *found, ""]


def number(value: float | None, digits: int = 2) -> str:
    """A number, or what stands for none."""
    return NOTHING if value is None or value != value else f"{value:.{digits}f}"


def opened(folder: Path) -> tuple[Gathered, dict[str, Any]]:
    """Records and report of a folder."""
    found = gather.gather([folder])
    return found, json.loads((folder / "report.json").read_text(encoding="utf-8"))


# --- accuracy ---------------------------------------------------------------------------------------------------------


def accuracy(folders: Sequence[Path], docs: Path, first: str) -> str:
    """Accuracy, cost and flips of every setting, and the first method against each other one."""
    runs = [opened(folder) for folder in folders]
    duels = {told["model"]: list(versus(found, first)) for found, told in runs}
    every = [one for some in duels.values() for one in some]
    lines = ["# Accuracy at equal counted FLOPs", "", "`bash runs/accuracy.sh` writes this page and what it rests on.", ""]
    lines += [f"- {lead(told)}" for _, told in runs]
    lines += ["", f"![score against counted FLOPs]({figure(runs, docs)})", "", f"## {first} against the others", ""]
    lines += [
        f"Over models, tasks and methods, at each budget. A win or a loss of {first} is a difference whose 95 % interval leaves "
        "0 out; all else is a tie. † marks settings whose counted FLOPs differ by more than 1 %: some methods have coarse steps."
    ]
    refused = [row for _, told in runs for task in told["tasks"] for row in task["rows"] if row.get("refused")]
    lines += [
        "",
        f"{len(refused)} settings are not possible; their rows say the lowest share of the FLOPs that the method reaches.",
    ]
    lines += table(("budget", *VERDICTS), counted(every, lambda one: f"{one.budget:g}"))
    lines += table((f"{first} against", *VERDICTS), counted(every, lambda one: one.other))
    lost = [(model, one) for model, some in duels.items() for one in some if one.verdict == "loss"]
    lines += [f"Losses: {len(lost)} of {len(every)}."]
    rows = [(m, o.task, f"{o.budget:g}", o.other + "†" * (not o.equal), interval(asdict(o.gap))) for m, o in lost]
    lines += table(("model", "task", "budget", "to", f"{first} minus it"), rows) if lost else [""]
    lines += ["## Score kept, in per cent of the unpruned model's, mean over models and tasks", ""]
    lines += kept(runs)
    for _, told in runs:
        lines += ["", f"## {told['model']}"]
        for task in told["tasks"]:
            lines += ["", f"**{task['name']}: {task['metric']}**", *settings(task, duels[told["model"]], first)]
    return "\n".join(lines)


def counted(duels: Sequence[Versus], key: Callable[[Versus], str]) -> Iterator[list[str]]:
    """Rows of verdicts by a key, in order of appearance, and all together."""
    for name in dict.fromkeys(map(key, duels)):
        yield [name, *(str(count) for count in tally(one for one in duels if key(one) == name).values())]
    yield ["all", *(str(count) for count in tally(duels).values())]


def kept(runs: Sequence[tuple[Gathered, dict[str, Any]]]) -> list[str]:
    """Table of methods x budgets; a mean only where every model and task has the setting."""
    shares: dict[tuple[str, float], list[float]] = {}
    tasks = [(found, task) for found, told in runs for task in told["tasks"]]
    for found, task in tasks:
        scores = {row["name"]: row["score"] for row in task["rows"]}
        for label, cell in found.cells(task["name"]).items():
            if label != REFERENCE and scores[REFERENCE] and scores[label] is not None and cell["budget"]:
                shares.setdefault((cell["method"], cell["budget"]), []).append(100 * scores[label] / scores[REFERENCE])
    budgets = sorted({budget for _, budget in shares}, reverse=True)
    rows = []
    for method in dict.fromkeys(method for method, _ in shares):
        found = [shares.get((method, budget), []) for budget in budgets]
        rows.append([method, *(number(float(np.mean(f)), 1) if len(f) == len(tasks) else NOTHING for f in found)])
    return table(("method", *(f"{budget:g}" for budget in budgets)), rows)


def settings(task: dict[str, Any], duels: Sequence[Versus], first: str) -> list[str]:
    """Table of the settings of a task."""
    against = {f"{one.other} {one.budget:g}": one for one in duels if one.task == task["name"]}
    rows = []
    for row in task["rows"]:
        if row.get("refused"):
            lowest = f"lowest {row['lowest']:.2f}" if row["lowest"] is not None else "not possible"
            rows.append([row["name"], lowest, *[NOTHING] * 5])
            continue
        one = against.get(row["name"])
        gap, verdict = (interval(asdict(one.gap)), one.verdict) if one else (NOTHING, "")
        flops = number(row["flops_share"], 3) + "†" * (one is not None and not one.equal)
        rows.append(
            [row["name"], number(row["score"]), interval(row["against_unpruned"]), flops, number(row["flips"], 1), gap, verdict]
        )
    return table(("setting", task["metric"], "minus unpruned", "FLOPs", "flips %", f"{first} minus this", first), rows)


def figure(runs: Sequence[tuple[Gathered, dict[str, Any]]], docs: Path) -> str:
    """Draw score against counted FLOPs, a row a model and a column a task; return the file's name."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = max(len(told["tasks"]) for _, told in runs)
    with matplotlib.rc_context({"svg.hashsalt": "atp", "svg.fonttype": "none", "font.size": 8}):
        drawing = Figure(figsize=(4.2 * columns, 3.2 * len(runs)), layout="constrained")
        places = drawing.subplots(len(runs), columns, squeeze=False)
        for line, (_, told) in zip(places, runs, strict=True):
            for place, task in zip(line, told["tasks"], strict=False):
                for name, found in points(task, "flops_share").items():
                    x, y, low, high = (np.array(values) for values in zip(*found, strict=True))
                    style = (
                        {"fmt": "k*", "markersize": 8} if name == REFERENCE else {"fmt": "o-", "markersize": 3, "linewidth": 1}
                    )
                    place.errorbar(x, y, yerr=(y - low, high - y), capsize=2, elinewidth=0.7, label=name, **style)
                place.set_title(f"{told['model']}: {task['name']}")
                place.set_xlabel("counted FLOPs, share of unpruned")
                place.set_ylabel(task["metric"])
                place.grid(alpha=0.25)
        places[0][0].legend(frameon=False, fontsize=7)
        drawing.savefig(docs / "accuracy.svg", metadata={"Date": None})
    return "accuracy.svg"


# --- robustness -------------------------------------------------------------------------------------------------------


def robustness(folders: Sequence[Path], docs: Path, first: str) -> str:
    """Errors under disturbance against the unpruned model's, by setting and disturbance; and contrast questions."""
    lines = ["# Robustness, pruned against unpruned", "", "`bash runs/robustness.sh` writes this page and what it rests on.", ""]
    runs = [(folder, opened(folder)[1]) for folder in folders]
    lines += [f"- {lead(told)}" for _, told in runs]
    found = [
        (told["model"], task, name, one) for _, told in runs for task in told["tasks"] for name, one in task["robustness"].items()
    ]
    lines += ["", "Does pruning make models more stable?"]
    lines += table(
        ("model", "task", "setting", "verdict"),
        [(m, t["name"], n, one.get("verdict", one.get("why", ""))) for m, t, n, one in found],
    )
    for folder, told in runs:
        lines += ["", f"## {told['model']}"]
        for task in told["tasks"]:
            lines += ["", f"### {task['name']}"]
            for one in tables(task):
                lines += written(one)
        lines += contrasted(folder)
    return "\n".join(lines)


def written(one: Table) -> list[str]:
    """A table of the report, with title and note."""
    return ["", f"**{one.title}**", *table(one.columns, one.rows), one.note]


def contrasted(folder: Path) -> list[str]:
    """Table of contrast questions, where they were asked."""
    path = folder / "contrast.json"
    if not path.is_file():
        return ["", f"Contrast questions: {NOT_MEASURED}."]
    told = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [label, *(number(scores[n], 1) for n in ("original", "changed", "both", "unmoved"))]
        for label, scores in told["scores"].items()
    ]
    head = ("setting", "right as they were", "right when changed", "both", "same answer to both")
    title = f"**Contrast questions: {told['pairs']} pairs, one small change, another true answer; %**"
    return ["", title, *table(head, rows)]


# --- hallucination ----------------------------------------------------------------------------------------------------


def hallucination(folders: Sequence[Path], docs: Path, first: str) -> str:
    """POPE by variant, CHAIR, and what is seen where its usual companion is."""
    lines = ["# Objects that are not there", "", "`bash runs/hallucination.sh` writes this page and what it rests on.", ""]
    sections = []
    for folder in folders:
        found, told = opened(folder)
        lines.append(f"- {lead(told)}")
        sections += ["", f"## {told['model']}"]
        tasks = report.opened(found, [folder])
        for task in told["tasks"]:
            pope = task["name"].partition(":")[0] == "pope"
            sections += polled(found, task, tasks[task["name"]]) if pope else official(task)
    return "\n".join([*lines, *sections])


def polled(found: Gathered, told: dict[str, Any], task: Any) -> list[str]:
    """POPE by setting and split, and recall against the unpruned model's."""
    rows = [
        [label, split, *(number(values.get(name), 1) for name in POPE)]
        for label, splits in told["splits"].items()
        for split, values in splits.items()
    ]
    lines = ["", f"**{told['name']}**", *table(("setting", "split", *POPE), rows), BLIND]
    lines += written(by_name(told))
    if isinstance(task, str):
        return [*lines, f"Recall against the unpruned model's left out: {task}"]
    there = {example.key for example in task.examples if example.answer == "yes"}
    base, recalls = gather.reference(found, told["name"]), []
    for label in found.cells(told["name"]):
        entries = found.of(told["name"], CLEAN, label)
        both = [key for key in gather.shared(entries, base, "accuracy") if key in there]
        if label != REFERENCE and both:
            pair = gather.scores(entries, both, "accuracy"), gather.scores(base, both, "accuracy")
            recalls.append([label, str(len(both)), interval(asdict(paired_bootstrap(*pair, gather.images(base, both))))])
    return [
        *lines,
        "**Recall minus the unpruned model's, points**",
        *table(("setting", "present objects", "difference"), recalls),
    ]


def official(task: dict[str, Any]) -> list[str]:
    """A task's own metrics, and its accuracy or share against the unpruned model's."""
    names = list(dict.fromkeys(name for values in task["official"].values() for name in values))
    gaps = {row["name"]: row for row in task["rows"]}
    rows = []
    for label, values in task["official"].items():
        gap = interval(gaps[label]["against_unpruned"])
        rows.append([label, *(number(values.get(n), 1) for n in names), gap, number(gaps[label]["flops_share"], 3)])
    return ["", f"**{task['name']}**", *table(("setting", *names, f"{task['metric']} minus unpruned", "FLOPs"), rows)]


# --- grounding --------------------------------------------------------------------------------------------------------


def grounding(folders: Sequence[Path], docs: Path, first: str) -> str:
    """The tables of `atp.evals.grounding`, one after the other."""
    lines = ["# Grounding: where methods look, and whether answers rest on it", ""]
    lines += ["`bash runs/grounding.sh` writes this page and what it rests on."]
    for folder in folders:
        told = json.loads((folder / "grounding.json").read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {value}" for name, value in told["versions"].items())
        lines += ["", grounded(told, 2), "", f"Seed {told['seed']}; {versions}; commit {told['commit'] or 'unknown'}."]
    return "\n".join(lines)


PAGES = {page.__name__: page for page in (accuracy, robustness, hallucination, grounding)}


def main(
    page: Annotated[str, typer.Argument(help=", ".join(PAGES))],
    folders: Annotated[list[Path], typer.Argument(help="of the records, one a model")],
    docs: Annotated[Path, typer.Option(help="folder of the pages")] = Path("docs/results"),
    first: Annotated[str, typer.Option(help="method that is compared with the others")] = "atp",
) -> None:
    """Write one page."""
    if page not in PAGES:
        raise typer.BadParameter(f"unknown page {page!r}; expected one of {', '.join(PAGES)}")
    docs.mkdir(parents=True, exist_ok=True)
    text = PAGES[page](folders, docs, first)
    (docs / f"{page}.md").write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n", encoding="utf-8")
    typer.echo(f"wrote {docs / page}.md")


if __name__ == "__main__":
    typer.run(main)
