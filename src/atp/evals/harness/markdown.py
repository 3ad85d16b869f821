"""The tables of a report as rows of text, for Markdown and for the page. Knows the plain values of `report.build` only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atp.evals.harness.gather import PARTS, POOLED

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A table with its title; `note` stands below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(task: Mapping[str, Any]) -> list[Table]:
    """Return the tables of one task that have rows."""
    costs = [_accuracy(task), _per_input(task)]
    found = [*costs, _official(task), by_name(task), _robustness(task), _disturbed(task), _swapped(task)]
    return [table for table in found if table.rows]


def lead(told: Mapping[str, Any]) -> str:
    """Return one paragraph on what was measured, and with what."""
    settings = told["settings"]
    limit = f", {settings['limit']} items a task" if settings["limit"] else ""
    return (
        f"{told['model']} on {told['data']}{limit}; seed {settings['seed']}, batches of at most {settings['batch']}. "
        f"Intervals: 95 %, paired bootstrap over images against the unpruned model. Versions: {'; '.join(told['versions'])}."
    )


def markdown(told: Mapping[str, Any]) -> str:
    """Return the whole report as Markdown."""
    lines = ["# Evaluation", "", lead(told)]
    for task in told["tasks"]:
        lines += ["", f"## {task['name']}"]
        for table in tables(task):
            lines += ["", f"**{table.title}**", "", _line(table.columns), _line(["---"] * len(table.columns))]
            lines += [_line(row) for row in table.rows]
            lines += ["", table.note] if table.note else []
    return "\n".join(lines)


def _accuracy(task: Mapping[str, Any]) -> Table:
    columns = ("setting", "answered", task["metric"], "minus unpruned", "flips %", "FLOPs", "spent", "tokens", "ms")
    rows, notes = [], []
    for row in task["rows"]:
        if row.get("refused"):
            lowest = f"; lowest {row['lowest']:g}" if row["lowest"] is not None else ""
            notes.append(f"{row['name']}: {row['refused']}.")
            rows.append((row["name"], f"not possible{lowest}", *[NOTHING] * (len(columns) + len(PARTS) - 2)))
            continue
        parts = row["gflops"] or {}
        rows.append(
            (
                row["name"],
                f"{row['answered']} of {task['items']}",
                _number(row["score"]),
                interval(row["against_unpruned"]),
                _number(row["flips"], 1),
                _number(row["flops_share"], 3),
                _number(row["spent"], 3),
                _number(row["equivalent_tokens"], 1),
                _number(row["ms"], 1),
                *(_number(parts.get(part), 4) for part in PARTS),
            )
        )
        if row["nan"]:
            notes.append(f"{row['name']}: {row['nan']} answers had NaN logits and count as empty.")
        if row["empty"] > row["nan"]:
            notes.append(f"{row['name']}: {row['empty'] - row['nan']} more answers are empty.")
    if task["unknown"]:
        shown = ", ".join(task["unknown"][:3])
        notes.append(f"Left out: answers to {len(task['unknown'])} questions that the task does not have ({shown}).")
    if work := task["solved_for"]:
        notes.append(f"Plans are solved for prompts with {work['text']} text tokens and answers of {work['answer']}.")
    notes.append(
        "FLOPs: share of the unpruned model's for answers of that length. spent: share with the answers that each gave, which "
        "may be longer; then 10^9 an item by part. ms: median an item."
    )
    return Table("Accuracy and cost", (*columns, *(f"{part} GF" for part in PARTS)), tuple(rows), " ".join(notes))


def _per_input(task: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            name,
            f"{one['other']} {one['budget']:g}",
            interval(one["gap"]),
            str(one["items"]),
            *(_number(one[flops], 3) for flops in ("flops", "other_flops")),
        )
        for name, one in task.get("per_input", {}).items()
    )
    columns = ("setting", "fixed counts", f"{task['metric']}, minus fixed", "items", "FLOPs", "FLOPs, fixed")
    note = "Thresholds spend a budget on average over the inputs they were fitted to; these inputs may spend more or less."
    return Table("Counts per input against fixed counts at the same budget", columns, rows, note)


def _official(task: Mapping[str, Any]) -> Table:
    if task["splits"]:
        return _splits(task)
    names = list(dict.fromkeys(name for values in task["official"].values() for name in values))
    rows = tuple((label, *(_number(values.get(n)) for n in names)) for label, values in task["official"].items())
    if not rows and task["without_official"]:
        rows = ((f"left out: {task['without_official']}",),)
        return Table("The task's own metrics", ("",), rows)
    return Table("The task's own metrics, over all answers", ("setting", *names), rows)


def _splits(task: Mapping[str, Any]) -> Table:
    """Return a row for every setting and part of the task, the last of each from the counts of all parts together."""
    found = [(label, split, values) for label, parts in task["splits"].items() for split, values in parts.items()]
    names = list(dict.fromkeys(name for *_, values in found for name in values))
    rows = tuple((label, split, *(_number(values.get(n)) for n in names)) for label, split, values in found)
    means = ", ".join(f"{label} {_number(values.get('f1'))}" for label, values in task["official"].items())
    note = (
        "yes_ratio: yes said; true_yes: yes true; blind: right answers of a guess that knows the object's name only. "
        f"{POOLED}: from the counts of all splits together. Mean of the splits' F1, which papers report too: {means}."
    )
    return Table("The task's own metrics, by split", ("setting", "split", *names), rows, note)


def by_name(task: Mapping[str, Any]) -> Table:
    """Return a row for every object that is asked for: how balanced its true answers are, the blind bound, and scores."""
    found = task.get("names", {})
    labels = list(dict.fromkeys(label for told in found.values() for label in told["right"]))
    rows = tuple(
        (
            name,
            str(told["questions"]),
            *(_number(v, 1) for v in (told["true_yes"], told["blind"], *map(told["right"].get, labels))),
        )
        for name, told in found.items()
    )
    return Table(
        "Accuracy by object, beside what its name alone gives away", ("object", "questions", "true_yes", "blind", *labels), rows
    )


def _robustness(task: Mapping[str, Any]) -> Table:
    absolute = ("clean, minus unpruned", "disturbed, both", "disturbed, minus unpruned")
    kept = ("retained %, both", "retained, minus unpruned", "extra points lost")
    columns = ("setting", "verdict", "mCE", "relative mCE", *absolute, *kept)
    rows = []
    for label, found in task["robustness"].items():
        if "why" in found:
            rows.append((label, found["why"], *[NOTHING] * (len(columns) - 2)))
            continue
        intervals = [interval(found[n], False) for n in ("mce", "relative_mce")]
        clean, gap, share, drop = (interval(found[n]) for n in ("clean_gap", "disturbed_gap", "retained_gap", "extra_drop"))
        scores, shares = (" / ".join(_number(value, 1) for value in found[n]) for n in ("disturbed", "retained"))
        rows.append((label, found["verdict"], *intervals, clean, scores, gap, shares, share, drop))
    note = (
        f"On {task['robust_metric']}; both: pruned / unpruned. mCE: errors under disturbance in per cent of the unpruned "
        "model's (100 = as many); relative: errors beyond the clean ones. Retained: share of the clean score "
        "that is left. More stable: beyond every "
        "interval, right more often under disturbance, a larger share retained, fewer points lost, and more gained under "
        "disturbance than lost on clean items. Less stable: the first three the other way round. Less accurate: worse both "
        "clean and disturbed, so that there was less to lose."
    )
    return Table("Robustness, pruned against unpruned", columns, tuple(rows), note)


def _disturbed(task: Mapping[str, Any]) -> Table:
    return _by_disturbance(f"{task['robust_metric']} by disturbance", task["disturbed"], 2)


def _swapped(task: Mapping[str, Any]) -> Table:
    return _by_disturbance("Answers changed where words were replaced, %", task["swapped"], 1)


def _by_disturbance(title: str, found: Mapping[str, Mapping[str, float | None]], digits: int) -> Table:
    labels = list(next(iter(found.values()), {}))
    rows = tuple((name, *(_number(values.get(label), digits) for label in labels)) for name, values in found.items())
    return Table(title, ("disturbance", *labels), rows)


def interval(value: Mapping[str, float] | None, signed: bool = True) -> str:
    """Return a mean with its bounds."""
    if value is None:
        return NOTHING
    mean, low, high = (f"{value[name]:+.2f}" if signed else f"{value[name]:.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None or value != value else f"{value:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
