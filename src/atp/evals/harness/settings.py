"""What one evaluation asks for, as the command line says it. Knows names and numbers, no model and no file's content."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp.errors import BadInput
from atp.evals.robustness.disturb import Disturbance, read_disturbances
from atp.evals.tasks.base import REGISTRY as TASKS
from atp.methods import spelled

REFERENCE = "none"
PROMPTS = ("auto", "task", "plain")


@dataclass(frozen=True)
class Settings:
    """What is asked, of whom, and how. Two runs with equal settings make equal records but for the seconds.

    Attributes:
        model: shipped name, folder or hub id.
        tasks: names for `open_task`, with a mode where it is not the default: `gqa:llava`.
        methods: beside the unpruned model, which is always asked.
        budgets: shares of the unpruned FLOPs; 1 is the unpruned model, whatever the method.
        plans: files of plans, asked as further methods.
        calibrations: files or "adaptive", asked as further methods at the same budgets; see `calibrations.read`.
        corruptions: disturbances, each as `name:severity`; the clean items are always asked.
        data: folder of official files, empty = `scenes` generated ones.
        split: of the files.
        limit: items of each task, drawn by their keys; None = all.
        seed: of `random` and of the disturbances.
        batch: most items of a batch.
        shards: parts that the batches are dealt out to.
        prompt: `task` = around each question what the task puts there, `plain` = nothing, `auto` = plain for shipped models.
        longest: most new tokens, None = as the task says.
        dtype, device: as `atp.load` takes them.
        strict: stop at any bad row, doubled id or absent image of the official files, which are else counted and left out.
        singly: ask one item an image only, drawn by its key: then items are independent.
    """

    model: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (1.0,)
    plans: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = ()
    data: str = ""
    scenes: int = 100
    split: str = "val"
    limit: int | None = None
    seed: int = 0
    batch: int = 20
    shards: int = 1
    prompt: str = "auto"
    longest: int | None = None
    dtype: str | None = None
    device: str | None = None
    singly: bool = False
    strict: bool = False
    calibrations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks:
            raise BadInput("no task given; expected e.g. --tasks vqav2,gqa")
        for task in self.tasks:
            TASKS.get(task.partition(":")[0])
        for method in self.methods:
            spelled(method)
        for budget in self.budgets:
            if not 0 < budget <= 1:
                raise BadInput(f"a budget is a share of the unpruned FLOPs in (0, 1], got {budget:g}; e.g. --budgets 1.0,0.6,0.4")
        for name in ("scenes", "batch", "shards", *(n for n in ("limit", "longest") if getattr(self, n) is not None)):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is at least 1, got {getattr(self, name)}")
        if self.prompt not in PROMPTS:
            raise BadInput(f"unknown prompt {self.prompt!r}; choose one of {', '.join(PROMPTS)}")
        stems = [Path(plan).stem for plan in self.plans]
        if len(set(stems)) < len(stems):
            raise BadInput(f"two plan files have one name ({', '.join(stems)}), and tables could not tell them apart; rename one")

    @property
    def disturbances(self) -> tuple[Disturbance, ...]:
        """The corruptions, seeded."""
        return read_disturbances(",".join(self.corruptions), self.seed) if self.corruptions else ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; records made before there were calibrations have none."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return plain if self.calibrations else {name: value for name, value in plain.items() if name != "calibrations"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Read what `to_dict` wrote."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)


def words(text: str) -> tuple[str, ...]:
    """Read a list separated by commas; doubles and empty entries are left out.

    Example:
        >>> words("vqav2, gqa,vqav2")
        ('vqav2', 'gqa')
    """
    return _once(part.strip() for part in text.split(","))


def budgets(text: str) -> tuple[float, ...]:
    """Read a list of shares, largest first.

    Raises:
        BadInput: an entry that is no number.
    """
    try:
        return tuple(sorted({float(part) for part in words(text)}, reverse=True))
    except ValueError:
        raise BadInput(f"cannot read the budgets {text!r}; expected shares such as 1.0,0.6,0.4") from None


def corruptions(text: str) -> tuple[str, ...]:
    """Read a list of disturbances into one `name:severity` each."""
    return tuple(str(found) for found in read_disturbances(text)) if text.strip() else ()


def shard(text: str) -> tuple[int, int]:
    """Read `i/n`, counted from 1; return (i - 1, n).

    Raises:
        BadInput: not of that form, or i is not in 1..n.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise BadInput(f"cannot read the shard {text!r}; expected i/n with i from 1 to n: 1/4, 2/4, 3/4, 4/4")
    return number - 1, count


def _once(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in parts if part))
