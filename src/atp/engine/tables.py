"""Plans that come from a file: a calibration's for a budget, or a certified one. Part of the engine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atp.adapters.base import Adapter
from atp.budget.amount import Budget
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.certificate import Certificate, load_table
from atp.budget.cost import lengths_of
from atp.budget.price import Prices
from atp.errors import InvalidPlan
from atp.plan import Plan

CALIBRATION, FITTED = "atp_calibration.json", "adaptive_calibration.json"
OWN = "adaptive"
"""Word for the counts per input that were fitted to a checkpoint and lie beside its weights, in `FITTED`."""
DRIFT = 0.01
"""A calibration serves prompts and answers of other lengths as it is where its plan misses the budget by no larger part."""
Table = Calibration | Certificate


def read(given: Table | str | Path, adapter: Adapter) -> Table:
    """Return a calibration or certificate, read if it is a path; "adaptive" is the one of the checkpoint's own folder.

    Raises:
        InvalidPlan: it is neither, or the checkpoint has none.
    """
    if given == OWN:
        folder = _folder(adapter)
        given = Path(folder) / FITTED
        if not folder or not given.is_file():
            raise InvalidPlan(
                f"this checkpoint has no counts per input: {str(given)!r} is not there; fit them, no true answers are needed: "
                f"atp fit-counts --model {folder or 'YOUR/MODEL'} --data FOLDER --task vqav2 --out {FITTED}, then "
                f"atp.prune(model, calibration={FITTED!r})"
            )
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


def calibrated(adapter: Adapter, table: Calibration, amount: Budget, prices: Prices, named: bool = False) -> Plan:
    """Return the calibrated plan of a budget; `named` where the prices are those of a workload that the caller named.

    Raises:
        InvalidPlan: a calibration of another model, or one that does not reach the budget.
    """
    mark = fingerprint(adapter.model.named_parameters())
    table.check(mark)
    share = share_for(table, amount, prices, named)
    if share is None:
        low, high = (amount.up(prices.of(table.plan_for(one), amount.unit)) for one in table.reach)
        told = f" for prompts with {prices.workload.text} text tokens and answers of {prices.workload.answer}" if named else ""
        raise InvalidPlan(
            f"budget {amount} is outside this calibration, which reaches from {low} to {high}{told}; use a budget in that range, "
            f"or leave calibration= away: atp.prune(model, budget={amount})"
        )
    plan = _busy(table.plan_for(share), prices)
    if plan.budget is not None and plan.budget < share - 1e-9:
        higher = next(each.budget for each in table.plans if (each.budget or 0) > share)
        warnings.warn(
            f"no counts per input between {plan.budget:g} and {higher:g}, which were fitted at other sites: those of "
            f"{plan.budget:g} are used; to spend {share:g}, fit {share:g} too",
            stacklevel=7,
        )
        return plan
    return replace(plan, budget=amount.value) if amount.unit == "share" else plan


def _busy(plan: Plan, prices: Prices) -> Plan:
    """The plan without sites at which none leaves: those of one neighbour only, where a plan lies between two."""
    for step in plan.steps:
        without = replace(plan, steps=tuple(each for each in plan.steps if each is not step))
        fixed = not step.adaptive and step.text == 1
        if fixed and lengths_of(prices.shape, prices.workload, without) == lengths_of(prices.shape, prices.workload, plan):
            plan = without
    return plan


def own_calibration(adapter: Adapter, amount: Budget, prices: Prices, method: str, named: bool = False) -> Calibration | None:
    """Return the calibration in the model's own folder, if there is one that fits these weights, this budget and length."""
    folder = _folder(adapter)
    path = Path(folder) / CALIBRATION
    if not folder or not path.is_file():
        return None
    table = Calibration.load(path)
    if table.method != method:
        return None
    if not table.fingerprint.matches(fingerprint(adapter.model.named_parameters())):
        warnings.warn(
            f"{path} was made for other weights and is not used; calibrate this model, or remove the file", stacklevel=5
        )
        return None
    low, high = table.reach
    share = share_for(table, amount, prices, named)
    return None if share is None or not low <= share <= high else table


def _folder(adapter: Adapter) -> str:
    return str(getattr(getattr(adapter.model, "config", None), "_name_or_path", "") or "")


def _changes(table: Calibration, share: float) -> bool:
    """Whether the plans on both sides of a share have other sites, and a plan between."""
    one, other = table.beside(share)
    return not one.adaptive and [step.site for step in one.steps] != [step.site for step in other.steps]


def share_for(table: Calibration, amount: Budget, prices: Prices, named: bool = False) -> float | None:
    """Return the largest calibrated share whose plan stays within an amount; None = the table ends before or begins behind it.

    A share is that of the calibration's own prompts and answers, unless the caller `named` others, which the prices are for.
    Between plans with other sites it is searched for too: a mean of theirs spends another share than the mean.
    """
    low, high = table.reach
    if amount.unit == "share":
        inside = low <= amount.value <= high
        if not named and inside and _changes(table, amount.value):
            prices = replace(prices, workload=table.workload)
        elif not named or amount.value == 1:
            return amount.value
        if inside:
            drift = prices.of(table.plan_for(amount.value), "share") / amount.value - 1
            if abs(drift) <= DRIFT:
                return amount.value

    def fits(share: float) -> bool:
        return prices.of(table.plan_for(share), amount.unit) <= amount.value * (1 + 1e-9)

    if not fits(low) or (fits(high) and (low < high or amount.unit == "share")):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
