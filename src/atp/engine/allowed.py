"""Whether a model and a method can follow a plan, and a running plan another; refused by name. Part of the engine."""

from __future__ import annotations

from atp.adapters.base import Adapter, CrossView, StackView
from atp.budget.calibration import fingerprint
from atp.budget.sites import check_sites
from atp.engine.facts import looks_back
from atp.engine.words import check_kinds
from atp.errors import InvalidPlan
from atp.methods import Method
from atp.plan import Plan


def check_change(before: Plan, after: Plan) -> None:
    """Refuse to go on with another plan inside a block.

    Raises:
        InvalidPlan: another method, or sites that the plan at entry did not have.
    """
    if not isinstance(after, Plan):
        raise InvalidPlan(f"a running plan is a Plan, got {after!r}; e.g. run.plan = Plan.load('plan.yaml')")
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
        check_space(method, view)
        embedded = site.layer == 0 and method.embedded(view.name)
        if view.before(site.layer) is None and looks_back(method, view) and not embedded:
            raise InvalidPlan(
                f"method {method.name!r} scores with attention or keys of the layer before a site, so {site} is too early; "
                f"use {site.stack}:{view.first} or later"
            )


def check_space(method: Method, view: StackView) -> None:
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
