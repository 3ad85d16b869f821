"""Which plan is in force: given, solved for a budget, or read from a calibration; and whether the model can follow it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atp.adapters.base import Adapter, CrossView, StackView
from atp.budget.calibration import Calibration, fingerprint
from atp.budget.cost import Lengths, Workload, check_sites, rater_count, selection_flops
from atp.budget.solve import More, default_sites, solve, workable
from atp.engine.facts import carried_from, looks_back, rater_kinds
from atp.errors import InvalidPlan
from atp.methods import METHODS, Method
from atp.methods.base import Work
from atp.plan import Plan, Step
from atp.registry import did_you_mean

BUDGET = 0.6
METHOD = "atp"
CALIBRATION = "atp_calibration.json"


def decide(
    adapter: Adapter,
    budget: float | None,
    method: str | None,
    plan: Plan | str | Path | None,
    calibration: Calibration | str | Path | None,
    workload: Workload | None,
    options: Mapping[str, Any],
) -> tuple[Plan, Method]:
    """Return the plan in force and its method, built.

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
    name = method or METHOD
    built = make_method(name, options)
    _check_kinds(built)
    budget = BUDGET if budget is None else budget
    if calibration is None and name == METHOD and not options:
        calibration = own_calibration(adapter, budget)
    if calibration is not None:
        return from_calibration(adapter, calibration, budget, method, options)
    shape = adapter.shape
    workload = workload or Workload(images=adapter.tiles)
    sites = built.default_sites(shape)
    if sites is None:
        sites = tuple(site for site in default_sites(shape, name) if site.stack in built.stacks)
    sites = workable(shape, [site for site in sites if site.stack in (*adapter.stacks, "pixels")])
    for view in adapter.views:
        if any(site.stack == view.name for site in sites):
            _check_space(built, view)
    solved = solve(
        shape,
        budget,
        name,
        workload,
        sites,
        raters=rater_rows(adapter, built, workload),
        more=own_flops(adapter, built, workload),
        options=dict(options),
    )
    return solved, built


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


def from_calibration(
    adapter: Adapter, calibration: Calibration | str | Path, budget: float, method: str | None, options: Mapping[str, Any]
) -> tuple[Plan, Method]:
    """Return the calibrated plan of a budget.

    Raises:
        InvalidPlan: a calibration of another model or method, or one that does not reach the budget.
    """
    table = Calibration.load(calibration) if isinstance(calibration, (str, Path)) else calibration
    if not isinstance(table, Calibration):
        raise InvalidPlan(f"calibration is a Calibration or the path of one, got {type(calibration).__name__}")
    return with_options(table.plan_for(budget, fingerprint(adapter.model.named_parameters())), method, options)


def own_calibration(adapter: Adapter, budget: float) -> Calibration | None:
    """Return the calibration in the model's own folder, if there is one that fits these weights and this budget."""
    folder = str(getattr(getattr(adapter.model, "config", None), "_name_or_path", "") or "")
    path = Path(folder) / CALIBRATION
    if not folder or not path.is_file():
        return None
    table = Calibration.load(path)
    low, high = table.reach
    if not low <= budget <= high or table.method != METHOD:
        return None
    if not table.fingerprint.matches(fingerprint(adapter.model.named_parameters())):
        warnings.warn(
            f"{path} was made for other weights and is not used; calibrate this model, or remove the file", stacklevel=5
        )
        return None
    return table


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
            if step.site.stack != "pixels":
                total += method_flops(adapter, method, workload, step, lengths, rows)
        return total

    return count


def method_flops(
    adapter: Adapter, method: Method, workload: Workload, step: Step, lengths: Lengths, rows: Mapping[str, float]
) -> float:
    """FLOPs of a method's own arithmetic at a step, for all inputs of a prompt."""
    shape, (stack, layer) = adapter.shape, (step.site.stack, step.site.layer)
    tower, reads = stack == "vision", method.reads.get(stack, ())
    sizes, ran = (shape.vision, lengths.vision) if tower else (shape.language, lengths.language)
    group, others = (shape.group, shape.prefix) if tower else (1, workload.text)
    images = max(1, workload.images)
    started = shape.patches // group if tower else images * shape.visual
    before = started if layer == 0 else round((ran[layer - 1] - others) / group)
    after = round((ran[layer] - others) / group)
    work = Work(
        stack=stack,
        tokens=started,
        alive=before,
        kept=after,
        hidden=sizes.hidden * (group if method.fuses else 1),
        head_dim=sizes.head_dim,
        key_heads=sizes.kv_heads if "keys" in reads else 0,
        text=workload.text if "text" in reads else 0,
        raters=int(rows.get(stack, 0)),
    )
    return method.flops(work) * (images if tower else 1)


def rater_rows(adapter: Adapter, method: Method, workload: Workload) -> dict[str, float]:
    """Return how many rows the method computes at a site of each stack."""
    return {view.name: rater_count(rater_kinds(method, view), adapter.shape, workload, view.name) for view in adapter.views}


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
    _check_kinds(method)
    check_sites(adapter.shape, [step.site for step in plan.steps])
    views = {view.name: view for view in adapter.views}
    stacks = {step.site.stack for step in plan.steps}
    if "pixels" in stacks and len(plan.steps) > 1:
        raise InvalidPlan("the site pixels:0 (a smaller image) stands alone; remove the plan's other steps")
    for step in plan.steps:
        site = step.site
        if site.stack not in method.stacks:
            raise InvalidPlan(f"method {method.name!r} prunes {' and '.join(method.stacks)} only, the plan has a step at {site}")
        if step.kinds != ("visual",):
            raise InvalidPlan(
                f"step at {site}: only visual tokens can leave, got kinds={list(step.kinds)}; use kinds=('visual',)"
            )
        if site.stack == "pixels":
            if not adapter.resizable:
                kind = "/".join(adapter.model_types) or type(adapter).__name__
                raise InvalidPlan(f"a {kind} model does not take smaller images (a step at pixels:0); use method='uniform'")
            if step.adaptive:
                raise InvalidPlan("the step at pixels:0 has one size for all images; set its threshold to None")
            continue
        view = views[site.stack]
        _check_space(method, view)
        if view.before(site.layer) is None and looks_back(method, view):
            raise InvalidPlan(
                f"method {method.name!r} scores with attention or keys of the layer before a site, so {site} is too early; "
                f"use {site.stack}:{view.first} or later"
            )


def _check_kinds(method: Method) -> None:
    """Refuse a method that makes other tokens leave than visual ones.

    Raises:
        InvalidPlan: naming the method and what to use instead.
    """
    if "visual" not in method.kinds:
        raise InvalidPlan(
            f"method {method.name!r} makes {' and '.join(method.kinds)} tokens leave, but only visual tokens can here; "
            "use a method whose kinds have 'visual', e.g. method='atp'"
        )


def _check_space(method: Method, view: StackView) -> None:
    """Refuse a method that compares or merges visual tokens with text where they do not share a space.

    Raises:
        InvalidPlan: naming the method and what to use instead.
    """
    if isinstance(view, CrossView) and (method.fuses or {"text", "embeddings"} & set(method.reads.get(view.name, ()))):
        raise InvalidPlan(
            f"method {method.name!r} takes visual tokens for rows of the language model, but in this family they are keys of its "
            "cross-attention layers; prune the tower only, or use method='atp'"
        )
