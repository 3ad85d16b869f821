"""Which plan is in force: given, solved for a budget, or read from a calibration; and whether the model can follow it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from atp.adapters.base import Adapter, CrossView, StackView
from atp.budget.amount import Amount, Budget
from atp.budget.calibration import fingerprint
from atp.budget.certificate import Certificate
from atp.budget.cost import TAIL, Lengths, Workload, check_sites, rater_count, selection_flops, text_only
from atp.budget.price import More, Prices
from atp.budget.solve import default_sites, solve, workable
from atp.engine import tables
from atp.engine.facts import carried_from, looks_back, rater_kinds
from atp.engine.timing import clock
from atp.engine.words import check_kinds, text_raters
from atp.errors import InvalidPlan, UnreachableBudget
from atp.methods import METHODS, Method
from atp.methods.base import Work
from atp.plan import Plan, Step
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
) -> tuple[Plan, Method]:
    """Return the plan in force and its method, built; `text` is for methods that prune nothing else.

    Raises:
        InvalidPlan: two sources of a plan at once, options the method does not have, an unreachable budget.
        UnknownMethod: an unregistered name.
    """
    if plan is not None:
        if budget is not None or calibration is not None:
            other = "budget" if budget is not None else "calibration"
            raise InvalidPlan(f"both plan= and {other}= decide how many tokens stay; give one of them")
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
    if table is None and name == METHOD and not options and share == 1:
        table = tables.own_calibration(adapter, amount, prices, METHOD, named)
    if table is not None:
        return with_options(tables.calibrated(adapter, table, amount, prices, named), method, options)
    return _solved(adapter, built, amount, prices, options, share), built


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
    adapter: Adapter, built: Method, amount: Budget, prices: Prices, options: Mapping[str, Any], text: float = 1.0
) -> Plan:
    """Solve for a budget at the method's sites."""
    shape, sites = adapter.shape, built.default_sites(adapter.shape)
    if sites is None:
        sites = tuple(site for site in default_sites(shape, built.name) if site.stack in built.stacks)
    sites = workable(shape, [site for site in sites if site.stack in (*adapter.stacks, "pixels")])
    for view in adapter.views:
        if any(site.stack == view.name for site in sites):
            _check_space(built, view)
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


def check_change(before: Plan, after: Plan) -> None:
    """Refuse to go on with another plan inside a block.

    Raises:
        InvalidPlan: another method, or sites that the plan at entry did not have.
    """
    known = {step.site for step in before.steps}
    extra = sorted(str(step.site) for step in after.steps if step.site not in known)
    if after.method != before.method or extra:
        sites = ", ".join(sorted(map(str, known))) or "no site"
        raise InvalidPlan(
            f"a running plan changes counts and thresholds only; got method {after.method!r} and new sites {extra or 'none'}, "
            f"the run has method {before.method!r} at {sites}; leave the block and call atp.prune(model, plan=...) again"
        )


def check_plan(adapter: Adapter, plan: Plan, method: Method) -> None:
    """Refuse steps that this model or method cannot follow.

    Raises:
        InvalidPlan: naming the step and what to use instead.
    """
    for step in plan.steps:
        if step.site.stack not in (*adapter.stacks, "pixels"):
            raise InvalidPlan(
                f"the {type(adapter).__name__} adapter prunes {' and '.join(adapter.stacks)} only, the plan has a step at "
                f"{step.site}; remove it"
            )
    if method.trained:
        method.fits(fingerprint(adapter.model.named_parameters()))
    check_sites(adapter.shape, [step.site for step in plan.steps])
    views = {view.name: view for view in adapter.views}
    stacks = {step.site.stack for step in plan.steps}
    if "pixels" in stacks and len(plan.steps) > 1:
        raise InvalidPlan("the site pixels:0 (a smaller image) stands alone; remove the plan's other steps")
    for step in plan.steps:
        site = step.site
        if site.stack not in method.stacks:
            raise InvalidPlan(f"method {method.name!r} prunes {' and '.join(method.stacks)} only, the plan has a step at {site}")
        check_kinds(method, step, adapter.own)
        if site.stack == "pixels":
            if not adapter.resizable:
                kind = "/".join(adapter.model_types) or type(adapter).__name__
                raise InvalidPlan(f"a {kind} model does not take smaller images (a step at pixels:0); use method='uniform'")
            if step.adaptive:
                raise InvalidPlan("the step at pixels:0 has one size for all images; set its threshold to None")
            continue
        view = views[site.stack]
        _check_space(method, view)
        embedded = site.layer == 0 and method.embedded(view.name)
        if view.before(site.layer) is None and looks_back(method, view) and not embedded:
            raise InvalidPlan(
                f"method {method.name!r} scores with attention or keys of the layer before a site, so {site} is too early; "
                f"use {site.stack}:{view.first} or later"
            )


def _check_space(method: Method, view: StackView) -> None:
    """Refuse a method that compares or merges visual tokens with text where they do not share a space.

    Raises:
        InvalidPlan: naming the method and what to use instead.
    """
    mixes = method.merges(view.name) or {"text", "embeddings"} & set(method.reading(view.name))
    if isinstance(view, CrossView) and mixes:
        raise InvalidPlan(
            f"method {method.name!r} takes visual tokens for rows of the language model, but in this family they are keys of its "
            "cross-attention layers; prune the tower only, or use method='atp'"
        )
