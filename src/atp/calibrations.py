"""Calibrations and certificates as commands name them: read, and compared with what else was asked, before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp.budget.amount import Budget
from atp.budget.calibration import fingerprint
from atp.budget.certificate import Certificate, load_table
from atp.engine.planning import BUDGET
from atp.engine.tables import FITTED, OWN, Table
from atp.errors import BadInput
from atp.loading import resolve


@dataclass(frozen=True)
class Given:
    """A calibration or a certificate.

    Attributes:
        path: of the file.
        word: as given, "adaptive" or the path.
        model: as given.
        table: its content.
    """

    path: Path
    word: str
    model: str
    table: Table

    @property
    def method(self) -> str:
        """Name of the method whose counts it sets."""
        return self.table.plan.method if isinstance(self.table, Certificate) else self.table.method

    @property
    def name(self) -> str:
        """Name of its rows in tables: `atp:adaptive`, or the method and the file's stem."""
        return f"{self.method}:{OWN if self.word == OWN else self.path.stem}"

    def budgets(self, asked: Sequence[float]) -> tuple[float, ...]:
        """Return the budgets of its rows: of those asked for all that prune; a certificate has its own.

        Raises:
            BadInput: none prunes, or the calibration does not reach one.
        """
        if isinstance(self.table, Certificate):
            return (self.table.budget,)
        found = tuple(budget for budget in asked if budget < 1)
        if not found:
            raise BadInput(f"--calibration {self.word} has no budget below 1 to stand at; add one, e.g. --budget {BUDGET:g}")
        for budget in found:
            self._reach(budget)
        return found

    def suits(self, method: str | None, budget: str | None) -> None:
        """Refuse another method, or a budget that it does not reach; only a model can tell for "64 tokens" and the like.

        Raises:
            BadInput: naming both.
        """
        if method is not None and method != self.method:
            raise BadInput(
                f"--calibration {self.word} is of method {self.method!r}, got --method {method}; leave --method away, or fit one "
                f"for it: atp fit-counts --model {self.model} --method {method} --out {method}.json"
            )
        asked = Budget.parse(BUDGET if budget is None else budget)
        if isinstance(self.table, Certificate):
            own = self.table.budget
            if budget is not None and (asked.unit != "share" or abs(asked.value - own) > 1e-9):
                raise BadInput(f"the certificate {self.word} is for budget {own:g}, got --budget {budget}; leave --budget away")
        elif asked.unit == "share" and asked.value < 1:
            self._reach(asked.value)

    def _reach(self, budget: float) -> None:
        assert not isinstance(self.table, Certificate)
        low, high = self.table.reach
        if not low - 1e-9 <= budget <= high + 1e-9:
            wider = ",".join(f"{share:g}" for share in sorted({low, high, budget}, reverse=True))
            method = "" if self.method == "atp" else f" --method {self.method}"
            raise BadInput(
                f"budget {budget:g} is outside --calibration {self.word}, which reaches from {low:g} to {high:g}; use e.g. "
                f"--budget {high if budget > high else low:g}, or fit more: atp fit-counts --model {self.model}{method} "
                f"--budgets {wider} --out wider.json"
            )

    def fits(self, model: Any) -> None:
        """Refuse a model with other weights than those it was made with.

        Raises:
            BadInput: naming the difference.
        """
        differs = self.table.fingerprint.difference(fingerprint(model.named_parameters()))
        if differs:
            bound = f"calibrate --max-drop {self.table.max_drop:g}" if isinstance(self.table, Certificate) else "fit-counts"
            raise BadInput(
                f"--calibration {self.word} was made with another model than {self.model}: {differs}; make one for it: "
                f"atp {bound} --model {self.model} --out mine.json, then --calibration mine.json"
            )


def read(word: str, model: str) -> Given:
    """Read a calibration or certificate.

    Args:
        word: path of the file, or "adaptive": the counts per input that lie beside the checkpoint's weights.
        model: shipped name, folder or hub id.

    Raises:
        BadInput: the file is absent or is neither; the model cannot be found.
    """
    path = Path(resolve(model)) / FITTED if word == OWN else Path(word)
    if not path.is_file():
        own = f"this checkpoint has no counts per input of its own ({str(path)!r} is not there)"
        told = own if word == OWN else f"no such calibration: {word!r}, expected a file, or {OWN} for the checkpoint's own"
        raise BadInput(
            f"{told}; fit one, no true answers are needed: atp fit-counts --model {model} --out mine.json, then "
            "--calibration mine.json"
        )
    return Given(path, word, model, load_table(path))


def read_all(words: Sequence[str], model: str, budgets: Sequence[float], methods: Sequence[str] = ()) -> tuple[Given, ...]:
    """Read several for one table, see `read`.

    Args:
        words: as given.
        model: that all are for.
        budgets: shares asked for.
        methods: names of the table's other rows.

    Raises:
        BadInput: as `read` and `Given.budgets`; or rows of one name.
    """
    found = tuple(read(word, model) for word in words)
    taken = list(methods)
    for one in found:
        one.budgets(budgets)
        if one.name in taken:
            raise BadInput(f"two rows would be called {one.name!r}; rename the file of --calibration {one.word}")
        taken.append(one.name)
    return found


def beside(methods: Sequence[str], given: Sequence[Given]) -> Iterator[tuple[str, Given | None]]:
    """Yield methods and calibrations by the name of their rows, each calibration behind the method it is of."""
    for method in methods:
        yield method, None
        yield from ((one.name, one) for one in given if one.method == method)
    yield from ((one.name, one) for one in given if one.method not in methods)
