"""`atp report`: from records to tables, pictures and a page. Knows numbers and names, no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from atp.errors import AtpError, BadInput
from atp.evals.harness import asking, gather
from atp.evals.harness.execute import CLEAN
from atp.evals.harness.gather import POOLED, Gathered
from atp.evals.harness.markdown import markdown
from atp.evals.harness.page import page
from atp.evals.harness.pareto import pareto
from atp.evals.harness.robust import robustness
from atp.evals.harness.settings import REFERENCE, Settings
from atp.evals.harness.versus import against_fixed
from atp.evals.stats import paired_bootstrap
from atp.evals.tasks import Task
from atp.evals.tasks.base import REGISTRY as TASKS

SPLIT = ("pope",)
"""Tasks that ask for objects by name in splits, and whose metrics over all are means of those of the splits."""


def write(folders: Sequence[Path], out: Path) -> tuple[str, Path]:
    """Write `report.json`, `report.md`, `pareto-<task>.svg` and `index.html`; return the tables as text, and the page's path.

    Args:
        folders: of one run.
        out: made if absent.

    Raises:
        BadInput: see `gather`; or `out` cannot be written.
    """
    found = gather.gather(folders)
    told = build(found, opened(found, folders))
    pictures = {task["name"]: pareto(task) for task in told["tasks"]}
    text = markdown(told)
    files = {"report.json": json.dumps(told, indent=1, allow_nan=False) + "\n", "report.md": text + "\n"}
    files |= {f"pareto-{name.replace(':', '-')}.svg": svg for name, svg in pictures.items() if svg}
    files["index.html"] = page(told, pictures)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write the report to {str(out)!r}: {error.strerror}; choose another folder with --out") from None
    return text, out / "index.html"


def opened(found: Gathered, folders: Sequence[Path]) -> dict[str, Task | str]:
    """Open the tasks again for the metrics over all answers; the reason where the files are gone or changed."""
    settings = Settings.from_dict(found.header["settings"])
    places = [asking.data_place(settings, folder) for folder in folders]
    place = next((one for one in places if one.is_dir()), places[0])
    out: dict[str, Task | str] = {}
    for name, items in found.header["items"].items():
        try:
            one = Settings.from_dict(settings.to_dict() | {"tasks": [name], "strict": False})  # eval has looked at the files
            task = asking.open_all(one, place, asking.plain(settings))[name]
        except AtpError as error:
            out[name] = str(error)
            continue
        out[name] = (
            task if asking.digest(task) == items["digest"] else f"the files in {str(place)!r} are not those that were asked"
        )
    return out


def build(found: Gathered, tasks: dict[str, Task | str]) -> dict[str, Any]:
    """Return everything that tables, plots and page show, as plain values.

    Args:
        found: the records; answers to items that a task lacks are taken out.
        tasks: from `opened`; without them the metrics over all answers are left out.

    Raises:
        BadInput: there are such answers, and the run was strict.
    """
    settings = found.header["settings"]
    known = {name: {example.key for example in task.examples} for name, task in tasks.items() if not isinstance(task, str)}
    unknown = {name: dropped for name, keys in known.items() if (dropped := found.drop(name, keys))}
    if unknown and settings.get("strict"):
        raise BadInput(f"the records answer questions that the tasks do not have: {unknown}; take these lines out of the files")
    return {
        "model": settings["model"],
        "settings": settings,
        "data": settings["data"] or f"{settings['scenes']} generated scenes",
        "versions": found.versions,
        "files": [str(path) for path in found.files],
        "tasks": [_task(found, name, tasks.get(name, "not opened")) | {"unknown": unknown.get(name, [])} for name in found.tasks],
    }


def _task(found: Gathered, name: str, task: Task | str) -> dict[str, Any]:
    primary = TASKS.get(name.partition(":")[0]).primary
    cells = found.cells(name)
    official = {} if isinstance(task, str) else {label: metrics(task, found.of(name, CLEAN, label)) for label in cells}
    official = {label: values for label, values in official.items() if values}
    splits = {label: by_split(task, found.of(name, CLEAN, label)) for label in official if not isinstance(task, str)}
    return {
        "name": name,
        "metric": primary,
        "items": found.header["items"][name]["count"],
        "solved_for": found.header.get("solved_for", {}).get(name),
        "rows": [row(found, name, label, primary) for label in cells],
        "per_input": {label: asdict(one) for label, one in against_fixed(found, name).items()},
        "official": official,
        "splits": {label: parts for label, parts in splits.items() if parts},
        "names": {} if isinstance(task, str) else by_name(task, {label: found.of(name, CLEAN, label) for label in official}),
        "without_official": task if isinstance(task, str) else "",
        **robustness(found, name, primary),
    }


def row(found: Gathered, task: str, label: str, metric: str) -> dict[str, Any]:
    """Sum up one setting on the clean items of a task."""
    cell = found.cells(task)[label]
    entries, base = found.of(task, CLEAN, label), gather.reference(found, task)
    told: dict[str, Any] = {"name": label, "plan": cell["plan_id"], "answered": len(entries), **gather.cost(entries)}
    if "refused" in cell:
        told |= {"plan": None, "refused": cell["refused"], "lowest": cell["lowest"]}
    own = [item for item, entry in entries.items() if metric in entry.scores]
    told["score"] = float(100 * gather.scores(entries, own, metric).mean()) if own else None
    both = gather.shared(entries, base, metric)
    told["against_unpruned"] = told["flips"] = told["spent"] = None
    if label != REFERENCE and both:
        pair = (gather.scores(entries, both, metric), gather.scores(base, both, metric))
        told["against_unpruned"] = asdict(paired_bootstrap(*pair, gather.images(base, both)))
    if label != REFERENCE and entries.keys() & base.keys():
        told["flips"] = gather.flips(entries, base)
        told["spent"] = gather.spent(entries, base)
    return told


def metrics(task: Task, entries: dict[str, gather.Entry]) -> dict[str, float]:
    """Score the answers that are there by the task's own rules, over all of them; empty where there is no answer or no truth."""
    asked = [example for example in task.examples if example.key in entries]
    if not asked:
        return {}
    try:
        rated = asking.part(task, asked).score({key: entry.answer for key, entry in entries.items()})
    except BadInput:  # the answers of this split are not public
        return {}
    return {name: float(value) for name, value in rated.metrics.items() if not np.isnan(value)}


def by_split(task: Task, entries: dict[str, gather.Entry]) -> dict[str, dict[str, float]]:
    """Score the answers of each split apart, then all of them as one split; empty where the task has no splits."""
    if task.name not in SPLIT:
        return {}
    kinds = dict.fromkeys(example.kind for example in task.examples)
    parts = {kind: asking.part(task, [e for e in task.examples if e.kind == kind]) for kind in kinds}
    parts[POOLED] = asking.part(task, [replace(example, kind=POOLED) for example in task.examples])
    return {name: found for name, part in parts.items() if (found := metrics(part, entries))}


def by_name(task: Task, settings: Mapping[str, Mapping[str, gather.Entry]]) -> dict[str, dict[str, Any]]:
    """Return for each object that is asked for how many questions, true yes and blind bound in points, and accuracy by setting.

    Empty where the task does not ask for objects by name.
    """
    if task.name not in SPLIT:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for label, entries in settings.items():
        asked = asking.part(task, [example for example in task.examples if example.key in entries])
        tables = asked.score({key: entry.answer for key, entry in entries.items()}).tables
        for name, share in tables["yes_share"].items():
            told = {"questions": int(tables["questions"][name]), "true_yes": share, "blind": max(share, 100 - share), "right": {}}
            found.setdefault(name, told)["right"][label] = tables["right"][name]
    return dict(sorted(found.items()))
