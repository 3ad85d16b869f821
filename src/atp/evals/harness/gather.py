"""Records of one run, from any number of shards, as numbers by task, disturbance and setting. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp.errors import BadInput
from atp.evals.harness import header, records
from atp.evals.harness.cells import label
from atp.evals.harness.execute import CLEAN
from atp.evals.harness.settings import REFERENCE

POOLED = "pooled"
PARTS = ("vision", "connector", "prefill", "decode", "selection")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """What a report needs of one record; FLOPs and seconds are the item's share of its batch.

    `equal` are the pruned and the unpruned FLOPs at the length of answer that the plan was solved for: a model that rambles
    when pruned must not look cheaper or dearer for it. Decoding is taken in proportion to its steps.
    """

    answer: str
    scores: Mapping[str, float]
    nan: int
    image: str
    flops: tuple[float, ...]
    unpruned: float
    tokens: float
    seconds: float
    equal: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Entry:
        """Read a record."""
        batch = record["batch"]
        size, steps = batch["size"], batch.get("steps", 1) - 1
        longer = (record["solved_for"]["answer"] - 1) / steps - 1 if steps > 0 else 0.0
        pruned, whole = batch["flops"], batch["flops_unpruned"]
        equal = sum(pruned[part] for part in PARTS) + longer * pruned["decode"]
        return cls(
            record["answer"],
            record["scores"],
            record["nan"],
            record["image"],
            tuple(batch["flops"][part] / size for part in PARTS),
            batch["flops_unpruned"]["total"] / size,
            batch["equivalent_tokens"],
            batch["seconds"] / size,
            (equal / size, (whole["total"] + longer * whole.get("decode", 0.0)) / size),
        )


@dataclass
class Gathered:
    """All records of a run.

    Attributes:
        header: of `run.json`.
        entries: (task, disturbance) -> setting -> item -> entry, in the order of the header's cells.
        versions: distinct (versions, commit) of the records, as text.
        files: that were read.
    """

    header: dict[str, Any]
    entries: dict[tuple[str, str], dict[str, dict[str, Entry]]] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that were asked."""
        return list(self.header["items"])

    def cells(self, task: str) -> dict[str, dict[str, Any]]:
        """Return settings of a task by label, refused ones too."""
        return dict(self.header["cells"][task])

    def disturbances(self, task: str) -> list[str]:
        """Return names of the disturbances of a task that have records, clean left out."""
        return [name for found, name in self.entries if found == task and name != CLEAN]

    def drop(self, task: str, known: Container[str]) -> list[str]:
        """Take out the answers to items that are not known; return these items, each once."""
        dropped: list[str] = []
        for (name, _), settings in self.entries.items():
            for entries in settings.values() if name == task else ():
                for item in [item for item in entries if item not in known]:
                    del entries[item]
                    dropped.append(item)
        return list(dict.fromkeys(dropped))

    def of(self, task: str, disturbance: str, setting: str) -> dict[str, Entry]:
        """Return entries by item, empty where there is none."""
        return self.entries.get((task, disturbance), {}).get(setting, {})


def gather(folders: Sequence[Path]) -> Gathered:
    """Read the records of folders that hold shards of one run.

    Raises:
        BadInput: folders of different runs (with the differences), a record that stands twice, nothing there.
    """
    heads = [header.load(folder) for folder in folders]
    for folder, head in zip(folders[1:], heads[1:], strict=True):
        found = list(header.differences(header.compared(heads[0]), header.compared(head)))
        if found:
            raise BadInput(
                f"{str(folder)!r} is another run than {str(folders[0])!r} and cannot be merged with it; report them one by one. "
                f"Different: {header.listed(found)}"
            )
    files = [path for folder in folders for path in records.files(folder)]
    gathered = Gathered(heads[0], files=files)
    for record in records.once(files):
        at = gathered.entries.setdefault((record["task"], record["disturbance"]), {})
        at.setdefault(label(record["method"], record["budget"]), {})[record["item"]] = Entry.of(record)
        made = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        made += f", commit {record['commit'] or 'unknown'}"
        if made not in gathered.versions:
            gathered.versions.append(made)
    if not gathered.entries:
        raise BadInput(f"no records in {', '.join(map(str, folders))}; run atp eval --out {folders[0]} first")
    return gathered


def shared(first: Mapping[str, Entry], second: Mapping[str, Entry], metric: str) -> list[str]:
    """Return the items that both have and that the metric values in both."""
    return [item for item in first if item in second and metric in first[item].scores and metric in second[item].scores]


def scores(entries: Mapping[str, Entry], items: Sequence[str], metric: str) -> Floats:
    """Return a metric of some items, `[N]`."""
    return np.array([entries[item].scores[metric] for item in items], dtype=np.float64)


def images(entries: Mapping[str, Entry], items: Sequence[str]) -> NDArray[np.int64]:
    """Return the image number of some items, `[N]`."""
    _, index = np.unique([entries[item].image for item in items], return_inverse=True)
    return np.asarray(index, dtype=np.int64)


def flips(entries: Mapping[str, Entry], reference: Mapping[str, Entry]) -> float:
    """Return the share of items that both have whose answer differs, in points; case does not count."""
    both = [item for item in entries if item in reference]
    changed = [entries[item].answer.lower() != reference[item].answer.lower() for item in both]
    return float(100 * np.mean(changed)) if both else math.nan


def spent(entries: Mapping[str, Entry], reference: Mapping[str, Entry]) -> float:
    """Return the FLOPs of the items that both have, answers as long as each came out, as a share of the reference's."""
    both = [item for item in entries if item in reference]
    return sum(sum(entries[item].flops) for item in both) / sum(sum(reference[item].flops) for item in both)


def cost(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Sum up what a setting spent.

    Returns:
        `flops_share` of the unpruned ones, both at the length of answer that plans were solved for; `gflops` by part and item, as
        they were spent; `equivalent_tokens`; `ms`, the median
        over items of their batch's milliseconds an item; `nan`, answers with a NaN logit; `empty`, answers without a word.
    """
    if not entries:
        return {"flops_share": None, "gflops": None, "equivalent_tokens": None, "ms": None, "nan": 0, "empty": 0}
    flops = np.array([entry.flops for entry in entries.values()])
    spent, whole = (sum(entry.equal[n] for entry in entries.values()) for n in (0, 1))
    return {
        "flops_share": float(spent / whole) if whole else None,
        "gflops": {part: float(value) / 1e9 for part, value in zip(PARTS, flops.mean(0), strict=True)},
        "equivalent_tokens": float(np.mean([entry.tokens for entry in entries.values()])),
        "ms": float(1000 * np.median([entry.seconds for entry in entries.values()])),
        "nan": sum(entry.nan > 0 for entry in entries.values()),
        "empty": sum(not entry.answer.strip() for entry in entries.values()),
    }


def reference(gathered: Gathered, task: str, disturbance: str = CLEAN) -> dict[str, Entry]:
    """Return what the unpruned model answered."""
    return gathered.of(task, disturbance, REFERENCE)
