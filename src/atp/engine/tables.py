"""Plans that come from a file: a calibration's for a budget, or a certified one. Part of the engine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atp.adapters.base import Adapter
from atp.budget.amount import Budget
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.certificate import Certificate, load_table
from atp.budget.price import Prices
from atp.errors import InvalidPlan
from atp.plan import Plan

CALIBRATION = "atp_calibration.json"
Table = Calibration | Certificate


def read(given: Table | str | Path) -> Table:
    """Return a calibration or certificate, read if it is a path.

    Raises:
        InvalidPlan: it is neither.
    """
    table = load_table(given) if isinstance(given, (str, Path)) else given
    if not isinstance(table, (Calibration, Certificate)):
        raise InvalidPlan(f"calibration is a Calibration or the path of one, or a Certificate, got {type(given).__name__}")
    return table


def certified(adapter: Adapter, table: Certificate, budget: Budget | None, options: Mapping[str, Any]) -> Plan:
    """Return the certified plan.

    Raises:
        InvalidPlan: another model, another budget, or options that the certified plan did not have.
    """
    changed = {name: value for name, value in options.items() if table.plan.options.get(name) != value}
    if changed or (budget is not None and budget.unit != "share"):
        asked = f"{changed}" if changed else f"budget={budget}"
        raise InvalidPlan(f"the certificate is for its plan as it is, got {asked}; leave it away, or leave calibration= away")
    plan = table.plan_for(fingerprint(adapter.model.named_parameters()), None if budget is None else budget.value)
    dtype = str(adapter.model.dtype).removeprefix("torch.")
    if dtype != table.dtype:
        warnings.warn(
            f"certified in {table.dtype}, this model is {dtype}: the bound was not measured there; load it with "
            f"dtype={table.dtype!r}, or certify this one",
            stacklevel=6,
        )
    return plan


def calibrated(adapter: Adapter, table: Calibration, amount: Budget, prices: Prices) -> Plan:
    """Return the calibrated plan of a budget.

    Raises:
        InvalidPlan: a calibration of another model, or one that does not reach the budget.
    """
    mark = fingerprint(adapter.model.named_parameters())
    share = share_for(table, amount, prices)
    if share is None:
        table.check(mark)
        low, high = (amount.up(prices.of(table.plan_for(one), amount.unit)) for one in table.reach)
        raise InvalidPlan(
            f"budget {amount} is outside this calibration, which reaches from {low} to {high}; use a budget in that range, or "
            f"leave calibration= away: atp.prune(model, budget={amount})"
        )
    return table.plan_for(share, mark)


def own_calibration(adapter: Adapter, amount: Budget, prices: Prices, method: str) -> Calibration | None:
    """Return the calibration in the model's own folder, if there is one that fits these weights and this budget."""
    folder = str(getattr(getattr(adapter.model, "config", None), "_name_or_path", "") or "")
    path = Path(folder) / CALIBRATION
    if not folder or not path.is_file():
        return None
    table = Calibration.load(path)
    low, high = table.reach
    share = amount.value if amount.unit == "share" else share_for(table, amount, prices)
    if share is None or not low <= share <= high or table.method != method:
        return None
    if not table.fingerprint.matches(fingerprint(adapter.model.named_parameters())):
        warnings.warn(
            f"{path} was made for other weights and is not used; calibrate this model, or remove the file", stacklevel=5
        )
        return None
    return table


def share_for(table: Calibration, amount: Budget, prices: Prices) -> float | None:
    """Return the largest calibrated share whose plan stays within an amount; None = the table ends before or begins behind it."""
    if amount.unit == "share":
        return amount.value
    low, high = table.reach

    def fits(share: float) -> bool:
        return prices.of(table.plan_for(share), amount.unit) <= amount.value * (1 + 1e-9)

    if not fits(low) or (low < high and fits(high)):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
