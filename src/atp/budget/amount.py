"""What a budget is an amount of: FLOPs, visual tokens, milliseconds or bytes of cache. Knows words and numbers only."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from atp.errors import BadInput, InvalidPlan

FORMS = (
    "a share of the unpruned FLOPs in (0, 1] such as 0.6 or '60%', a mean number of visual tokens per language layer such as "
    "'64 tokens', milliseconds until the first token on this device such as '250 ms', or bytes of the prompt's keys and values "
    "such as '24 MB' or '24 MiB'"
)
_BYTES = {f"{prefix}{kind}": base**power for kind, base in (("b", 1000), ("ib", 1024)) for power, prefix in enumerate("kmg", 1)}
_UNITS = {
    "": ("share", 1.0),
    "%": ("share", 0.01),
    "token": ("tokens", 1.0),
    "tokens": ("tokens", 1.0),
    "ms": ("ms", 1.0),
    "s": ("ms", 1000.0),
    "b": ("bytes", 1.0),
    **{name: ("bytes", float(size)) for name, size in _BYTES.items()},
}
_FORM = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([a-z]*|%)\s*", re.IGNORECASE)
_STEP = {"share": 0.01, "tokens": 0.1, "ms": 0.1, "bytes": 1.0}


@dataclass(frozen=True)
class Budget:
    """An amount to spend at most.

    Attributes:
        value: in its unit.
        unit: `share` of the unpruned FLOPs; `tokens`, the mean over language layers of the prompt's visual tokens; `ms` from
            pixels to the first token, one prompt alone; `bytes` of keys and values that the prompt leaves in the cache.
    """

    value: float
    unit: str = "share"

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", plain(self.value))
        if self.unit not in _STEP:
            raise InvalidPlan(f"unknown unit {self.unit!r}; expected one of {', '.join(_STEP)}")
        if self.unit == "share":
            check_share("budget", self.value, positive=True)
        elif not 0 < self.value < math.inf:
            raise InvalidPlan(f"a budget in {self.unit} is a number > 0, got {self.value!r}; expected {FORMS}")

    @classmethod
    def parse(cls, given: Amount) -> Budget:
        """Read what a caller gave.

        Raises:
            InvalidPlan: it is none of the forms, which are named.

        Example:
            >>> Budget.parse("24 MiB")
            Budget(value=25165824.0, unit='bytes')
        """
        if isinstance(given, Budget):
            return given
        if not isinstance(given, str):
            return cls(given)
        found = _FORM.fullmatch(given)
        if found is None or found[2].lower() not in _UNITS:
            raise InvalidPlan(f"cannot read the budget {given!r}; expected {FORMS}")
        unit, size = _UNITS[found[2].lower()]
        return cls(float(found[1]) * size, unit)

    def up(self, value: float) -> Budget:
        """Return another amount in this unit, rounded up to few digits."""
        step = _STEP[self.unit]
        return Budget(round(math.ceil(value / step - 1e-4) * step, 2), self.unit)

    def __str__(self) -> str:
        if self.unit == "share":
            return f"{self.value:g}"
        return f"'{self.value:.10g} {'B' if self.unit == 'bytes' else self.unit}'"


Amount = float | str | Budget


def plain(value: Any) -> Any:
    """Return a number of numpy, torch or fractions as Python's own, single precision as it is written; others as they are."""
    if getattr(value, "ndim", None) == 0:
        found = value.item()
        value = float(f"{found:.7g}") if isinstance(found, float) and value.itemsize < 8 else found
    return float(value) if isinstance(value, Real) and not isinstance(value, bool | int) else value


def check_count(name: str, value: Any, example: int) -> None:
    """Refuse what is no whole number >= 1.

    Raises:
        BadInput: naming the value and an example.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{name} is a whole number >= 1, got {value!r}; e.g. {name}={example}")


def check_share(name: str, value: float, positive: bool = False) -> None:
    """Refuse what is not a share: in [0, 1], or in (0, 1] where `positive`; NaN is none.

    Raises:
        InvalidPlan: naming the value, the interval and an example.
    """
    number = plain(value)
    number = number if isinstance(number, int | float) and not isinstance(number, bool) else math.nan
    if not (0 < number <= 1 if positive else 0 <= number <= 1):
        interval, example = ("(0, 1]", "0.6") if positive else ("[0, 1]", "0.5")
        raise InvalidPlan(f"{name} is a share in {interval}, got {value!r}; e.g. {name}={example}")
