"""Which plan is in force: given, solved for a budget, or read from a calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from atp.adapters.base import Adapter
from atp.budget.amount import Amount, Budget
from atp.budget.certificate import Certificate
from atp.budget.cost import TAIL, Lengths, Workload, rater_count, selection_flops, text_only
from atp.budget.price import More, Prices
from atp.budget.sites import places
from atp.budget.solve import default_sites, solve, workable
from atp.engine import tables
from atp.engine.allowed import check_plan, check_space
from atp.engine.facts import carried_from, rater_kinds
from atp.engine.timing import clock
from atp.engine.words import text_raters
from atp.errors import InvalidPlan, UnreachableBudget
from atp.methods import METHODS, Method
from atp.methods.base import Work
from atp.plan import Plan, Site, Step
from atp.registry import did_you_mean

BUDGET = 0.6
METHOD = "atp"
TIMED = (0.7,)
"""Shares of the FLOPs at which times are measured, whole and by stack, beside everything and the least: ours."""


def decide(
    adapter: Adapter,
    budget: Amount | None,
    method: str | None,
    plan: Plan | str | Path | None,
    calibration: tables.Table | str | Path | None,
    workload: Workload | None,
    options: Mapping[str, Any],
    text: float | None = None,
    sites: Sequence[Site | str] | str | None = None,
) -> tuple[Plan, Method]:
    """Return the plan in force and its method, built; `text` is for methods that prune nothing else.

    Raises:
        InvalidPlan: two sources of a plan at once, options the method does not have, an unreachable budget, unknown sites.
        UnknownMethod: an unregistered name.
    """
    _check_sources(budget, plan, calibration, sites)
    asked_at = None if sites is None else places(sites)
    if plan is not None:
        given = Plan.load(plan) if isinstance(plan, (str, Path)) else plan
        if not isinstance(given, Plan):
            raise InvalidPlan(
                f"plan is an atp.Plan or the path of one, got {type(plan).__name__}; e.g. plan=Plan.load('plan.yaml')"
            )
        return with_options(given, method, options)
    table = None if calibration is None else tables.read(calibration, adapter)
    if isinstance(table, Certificate):
        asked = None if budget is None else Budget.parse(budget)
        return with_options(tables.certified(adapter, table, asked, options), method, {})
    name = method or METHOD
    built = make_method(name, options)
    if "visual" not in built.kinds:
        if text is None:
            raise InvalidPlan(
                f"method {name!r} makes text tokens leave only, not visual ones; say how much stays, e.g. text=0.5, or use "
                "method='atp'"
            )
        if budget is not None:
            raise InvalidPlan(
                f"method {name!r} makes text tokens leave only, and text={text:g} says how much; leave budget={budget!r} away, "
                "or use method='atp', whose visual tokens make up for it"
            )
        return Plan(name, (), dict(options)), built
    amount = Budget.parse(BUDGET if budget is None else budget)
    named, workload = workload is not None, workload or Workload(images=adapter.tiles)
    share = 1.0 if text is None else text
    prices = prices_of(adapter, built, workload, amount, options)
    if table is None and name == METHOD and not options and share == 1 and asked_at is None:
        table = tables.own_calibration(adapter, amount, prices, METHOD, named)
    if table is not None:
        return with_options(tables.calibrated(adapter, table, amount, prices, named), method, options)
    return _solved(adapter, built, amount, prices, options, share, asked_at), built


def _check_sources(budget: Any, plan: Any, calibration: Any, sites: Any) -> None:
    """Refuse two sources of a plan, or two of its sites."""
    given = {"plan": plan, "calibration": calibration, "budget": budget}
    named = [name for name, value in given.items() if value is not None]
    if plan is not None and len(named) > 1:
        raise InvalidPlan(f"both plan= and {named[-1]}= decide how many tokens stay; give one of them")
    if sites is not None and set(named) - {"budget"}:
        raise InvalidPlan(f"both sites= and {named[0]}= say where tokens leave; give one of them")


def prices_of(adapter: Adapter, built: Method, workload: Workload, amount: Budget, options: Mapping[str, Any]) -> Prices:
    """Return what plans cost this model, measuring its times where the budget is in milliseconds."""
    rows, more = rater_rows(adapter, built, workload), own_flops(adapter, built, workload)
    dtype: torch.dtype = adapter.model.dtype  # type: ignore[assignment]
    prices = Prices(adapter.shape, workload, rows, more, dtype.itemsize)
    if amount.unit != "ms":
        return prices
    here = Workload(images=adapter.tiles, answer=1)
    timed = Prices(adapter.shape, here, rater_rows(adapter, built, here), own_flops(adapter, built, here))
    plans = [Plan(built.name)]
    for share in (*TIMED, 0.01):
        try:
            plan = _solved(adapter, built, Budget(share), timed, options)
        except UnreachableBudget as error:
            plan = _solved(adapter, built, Budget(error.lowest), timed, options)
        for stack in ("vision", "language"):  # its halves tell the two stacks apart
            steps = tuple(step for step in plan.steps if step.site.stack == stack)
            plans += [dataclasses.replace(plan, steps=steps)] if steps else []
        plans.append(plan)
    plans = [plan for index, plan in enumerate(plans) if plan not in plans[:index]]
    return dataclasses.replace(prices, clock=clock(adapter, built.name, plans, timed.flops))


def _solved(
    adapter: Adapter,
    built: Method,
    amount: Budget,
    prices: Prices,
    options: Mapping[str, Any],
    text: float = 1.0,
    sites: tuple[Site, ...] | None = None,
) -> Plan:
    """Solve for a budget at these sites, or the method's."""
    shape = adapter.shape
    if sites is not None:
        check_plan(adapter, Plan(built.name, tuple(Step(site, 1.0) for site in sites)), built)
    else:
        sites = built.default_sites(shape)
    if sites is None:
        sites = tuple(site for site in default_sites(shape, built.name) if site.stack in built.stacks)
    sites = workable(shape, [site for site in sites if site.stack in (*adapter.stacks, "pixels")])
    for view in adapter.views:
        if any(site.stack == view.name for site in sites):
            check_space(built, view)
    return solve(
        shape,
        amount,
        built.name,
        prices.workload,
        sites,
        raters=prices.raters,
        more=prices.more,
        options=dict(options),
        value_bytes=prices.value_bytes,
        clock=prices.clock,
        text=text,
    )


def with_options(plan: Plan, method: str | None, options: Mapping[str, Any]) -> tuple[Plan, Method]:
    """Return the plan with the caller's options laid over its own, and its method.

    Raises:
        InvalidPlan: the plan is of another method.
    """
    if method is not None and method != plan.method:
        raise InvalidPlan(f"the plan is of method {plan.method!r}, got method={method!r}; leave method= away")
    if options:
        plan = dataclasses.replace(plan, options={**plan.options, **options})
    return plan, make_method(plan.method, plan.options)


def make_method(name: str, options: Mapping[str, Any]) -> Method:
    """Build a method from its name and options.

    Raises:
        UnknownMethod: an unregistered name.
        InvalidPlan: an option that it does not have.
    """
    cls = METHODS.get(name)
    Plan(name, options=options)  # refuses what is no mapping
    known = [entry.name for entry in dataclasses.fields(cls)]
    for option in options:
        if option not in known:
            raise InvalidPlan(
                f"method {name!r} has no option {option!r}.{did_you_mean(option, known)} Known: {', '.join(known) or 'none'}"
            )
    return cls(**options)


def own_flops(adapter: Adapter, method: Method, workload: Workload) -> More:
    """Return what counts the FLOPs of a method's own arithmetic under a plan, and of the tower's rows that it carries."""
    shape, end = adapter.shape, carried_from(adapter, method)
    rows = rater_rows(adapter, method, workload)

    def count(plan: Plan, lengths: Lengths) -> float:
        total = 0.0
        if end is not None and plan.steps:
            total += selection_flops(shape, workload, Plan(plan.method, (Step(end, 1.0),)), rows, lengths)
        for step in plan.steps:
            if step.site.stack != "pixels" and not text_only(step, workload, lengths):
                total += method_flops(adapter, method, workload, step, lengths, rows)
            layer, texts = step.site.layer, lengths.texts(workload)
            if step.text < 1 and layer and texts[layer] < texts[layer - 1]:
                few, across = dataclasses.replace(workload, text=min(TAIL, workload.stays)), shape.cross is not None
                raters = rater_count(text_raters(method, across), shape, few)
                alone = Plan(plan.method, (Step(step.site, 1.0),))
                ran = dataclasses.replace(lengths, language=texts) if across else lengths
                total += selection_flops(shape, workload, alone, {"language": raters}, ran)
        return total

    return count


def method_flops(
    adapter: Adapter, method: Method, workload: Workload, step: Step, lengths: Lengths, rows: Mapping[str, float]
) -> float:
    """FLOPs of a method's own arithmetic at a step, for all inputs of a prompt."""
    shape, (stack, layer) = adapter.shape, (step.site.stack, step.site.layer)
    tower, reads = stack == "vision", method.reading(stack)
    sizes, ran = (shape.vision, lengths.vision) if tower else (shape.language, lengths.language)
    group, others = (shape.group, (float(shape.prefix),) * sizes.layers) if tower else (1, lengths.texts(workload))
    images = max(1, workload.images)
    started = shape.patches // group if tower else images * shape.visual
    before = started if layer == 0 else round((ran[layer - 1] - others[layer - 1]) / group)
    after = round((ran[layer] - others[layer]) / group)
    work = Work(
        stack=stack,
        tokens=started,
        alive=before,
        kept=after,
        hidden=sizes.hidden * (group if method.merges(stack) else 1),
        head_dim=sizes.head_dim if layer else sizes.hidden,
        key_heads=(sizes.kv_heads if layer else 1) if "keys" in reads else 0,
        text=workload.text if "text" in reads else 0,
        raters=int(rows.get(stack, 0)),
    )
    return method.flops(work) * (images if tower else 1)


def rater_rows(adapter: Adapter, method: Method, workload: Workload) -> dict[str, float]:
    """Return how many rows the method computes at a site of each stack."""
    return {view.name: rater_count(rater_kinds(method, view), adapter.shape, workload, view.name) for view in adapter.views}
