"""Result files in the form that each data set's own evaluation takes: read answers made elsewhere, write answers to upload."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atp.errors import BadInput
from atp.evals.tasks.base import Task
from atp.evals.tasks.files import read_lines


def read_results(task: Task, path: str | Path) -> dict[str, object]:
    """Read a result file, a JSON list or JSON lines, as `Task.score` takes it; None and NaN stay what they are.

    Args:
        task: says which fields hold key and answer.
        path: of the file.

    Raises:
        BadInput: absent or broken file, a row without the fields, two answers to one question.

    Example:
        >>> task.score(read_results(task, "results.json")).metrics  # doctest: +SKIP
    """
    key, answer = task.result_fields
    out: dict[str, object] = {}
    for number, row in enumerate(read_lines(Path(path))):
        if not isinstance(row, dict) or key not in row or answer not in row:
            given = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise BadInput(f"{path}, row {number}: expected fields {key!r} and {answer!r}, got {given}")
        if str(row[key]) in out:
            raise BadInput(f"{path}, row {number}: a second answer to {key} {row[key]!r}; keep one of them")
        out[str(row[key])] = row[answer]
    return out


def write_results(task: Task, predictions: Mapping[str, object], path: str | Path) -> None:
    """Write answers to all examples of a task, in their order, for the data set's own evaluation.

    Raises:
        BadInput: an example has no answer; those evaluations refuse such a file.
    """
    missing = [example.key for example in task.examples if example.key not in predictions]
    if missing:
        raise BadInput(f"{len(missing)} examples have no answer ({', '.join(missing[:3])}); the evaluation wants one for each")
    key, answer = task.result_fields
    rows: list[dict[str, Any]] = []
    for example in task.examples:
        said = predictions[example.key]
        empty = said is None or (isinstance(said, float) and math.isnan(said))
        number = task.integer_keys and example.key.isdigit()
        rows.append({key: int(example.key) if number else example.key, answer: "" if empty else str(said)})
    Path(path).write_text(json.dumps(rows), encoding="utf-8")
