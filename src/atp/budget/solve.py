"""The plan that spends a share of a model's FLOPs, or so many tokens, milliseconds or bytes. Knows shapes and counts only.

A schedule has one dial, its strength s. Both stacks decay geometrically, from site to site, in proportion of the depth that
the defaults give the sites: with n sites in a stack of N tokens the i-th keeps `r**i` of what entered the stack, and r goes
from 1 (s = 0: nothing leaves) to 1 / N (s at its end: one token stays). `balance` says how fast each stack moves: at 0.5 both
together, at 1 only the tower, at 0 only the language model; in between the slower stack goes on when the other has given
everything, so the lowest reachable budget is the same. The language model starts from the tower's survivors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atp.budget.amount import Amount, Budget
from atp.budget.amount import check_share as check_share
from atp.budget.cost import Workload, check_sites, rater_count, visual_after, whole
from atp.budget.price import Clock, Prices
from atp.budget.price import More as More
from atp.budget.shape import ModelShape
from atp.budget.sites import DEPTHS as DEPTHS
from atp.budget.sites import default_sites as default_sites
from atp.budget.sites import ordered, spelled, text_site
from atp.budget.sites import workable as workable
from atp.errors import InvalidPlan, UnreachableBudget
from atp.plan import Plan, Site, Step

BALANCE = 0.5
"""Default share of the saving that is asked of the tower."""

RATERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "atp": {"vision": ("class",), "language": ("question", "visual")},
    "fastv": {"language": ("last",)},
    "random": {},
    "uniform": {},
    "resize": {},
}
"""Raters of the methods that come with the package; any other method is counted like `atp` unless `raters` is given."""

_SLACK = 1e-9


def solve(
    shape: ModelShape,
    budget: Amount,
    method: str = "atp",
    workload: Workload | None = None,
    sites: Sequence[Site] | None = None,
    *,
    balance: float = BALANCE,
    raters: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    more: More | None = None,
    value_bytes: int = 2,
    clock: Clock | None = None,
    text: float = 1.0,
) -> Plan:
    """Find the fixed plan whose cost comes nearest to `budget` from below: FLOPs, selection included, or another amount.

    Args:
        shape: sizes of the model.
        budget: share of the unpruned FLOPs in (0, 1]; or '64 tokens', '250 ms', '24 MB', see `Budget`.
        method: name of the method that will choose the tokens.
        workload: images, text and answer tokens to count with; None = `Workload()`.
        sites: where tokens may leave; None = `default_sites`. The site pixels:0 gives a smaller image and stands alone.
        balance: share of the saving asked of the tower, in [0, 1].
        raters: rows computed per site of each stack, e.g. `{"vision": 1, "language": 20}`; None = those of the method.
        options: fields of the method, copied into the plan.
        more: FLOPs of choosing under a plan and its lengths besides those rows; None = none.
        value_bytes: of one number in the cache, for a budget in bytes.
        clock: of the device, for a budget in milliseconds.
        text: share of the workload's text tokens that stay from the first site of the language model on. What they save is
            spent on visual tokens; a budget that leaves room for all of these is not used up.

    Returns:
        A plan of whole tokens, `plan.budget` its share of the FLOPs. At budget 1, or any amount that everything fits into, it
        has no steps but that of the text.

    Raises:
        UnreachableBudget: a budget lower than these sites can reach; it carries the lowest.
        InvalidPlan: a budget that cannot be read, a site that the model does not have.

    Example:
        >>> plan = solve(shape, 0.6, sites=(Site("vision", 4), Site("language", 2)))
    """
    amount = Budget.parse(budget)
    check_share("balance", balance)
    check_share("text", text)
    workload = workload or Workload()
    sites = default_sites(shape, method) if sites is None else ordered(sites)
    check_sites(shape, sites)
    if raters is None:
        raters = {stack: rater_count(names, shape, workload, stack) for stack, names in RATERS.get(method, RATERS["atp"]).items()}
    prices = Prices(shape, workload, raters, more, value_bytes, clock)
    empty = Plan(method, (), dict(options or {}), amount.value if amount.unit == "share" else 1.0)
    if text < 1:
        empty = replace(empty, steps=spelled((), text_site(shape, method, sites), text))
    if prices.of(empty, amount.unit) <= amount.value:
        return empty
    if amount.unit in ("tokens", "bytes") and shape.connects == "keys":  # what leaves the tower does not spare any of them
        sites = tuple(site for site in sites if site.stack == "language")
    family = _Family(prices, amount, sites, balance, empty)
    pixels = any(site.stack == "pixels" for site in sites)
    plan = family.smaller_image() if pixels else family.pruned()
    return plan if amount.unit == "share" else replace(plan, budget=min(1.0, round(prices.of(plan, "share"), 6)))


def plan_cost(shape: ModelShape, workload: Workload, plan: Plan, raters: Mapping[str, float], more: More | None = None) -> float:
    """Share of the unpruned FLOPs that a plan is expected to spend, selection included."""
    return Prices(shape, workload, raters, more).of(plan, "share")


@dataclass(frozen=True)
class _Family:
    """All plans over the same sites, ordered by strength."""

    prices: Prices
    amount: Budget
    sites: tuple[Site, ...]
    balance: float
    empty: Plan

    @property
    def shape(self) -> ModelShape:
        return self.prices.shape

    def affordable(self, plan: Plan) -> bool:
        return self.cost(plan) <= self.amount.value * (1 + _SLACK)

    def cost(self, plan: Plan) -> float:
        return self.prices.of(plan, self.amount.unit)

    def started(self, site: Site) -> int:
        """Tokens of one image that the site's stack starts with."""
        return self.shape.visual if site.stack == "language" else self.shape.patches // self.shape.group

    def pruned(self) -> Plan:
        counts = self.counts
        least = self.plan(counts(self.limit))
        if not self.affordable(least):
            raise self.unreachable(least)
        found = counts(_bisect(lambda s: self.affordable(self.plan(counts(s))), self.limit))
        return self.plan(self.filled(found))

    def smaller_image(self) -> Plan:
        if len(self.sites) > 1:
            raise InvalidPlan(
                f"the site pixels:0 stands alone (a smaller image), got it with {', '.join(map(str, self.sites[1:]))}; "
                "use sites=(Site('pixels', 0),)"
            )
        side = math.isqrt(self.shape.patches)
        if side * side != self.shape.patches:
            raise InvalidPlan(
                f"method 'resize' needs a square grid of patches, this tower has {self.shape.patches}; use method='uniform'"
            )
        for smaller in range(side - 1, 0, -1):
            plan = self.plan([smaller * smaller])
            if self.affordable(plan):
                return plan
        raise self.unreachable(self.plan([1]) if side > 1 else self.empty)

    @property
    def weights(self) -> tuple[float, float]:
        """Speed of the tower and of the language model; the faster has 1, a stack without sites does not slow the other."""
        stacks = {site.stack for site in self.sites}
        if len(stacks) < 2:
            return 1.0, 1.0
        most = max(self.balance, 1 - self.balance)
        return self.balance / most, (1 - self.balance) / most

    @property
    def limit(self) -> float:
        """Strength at which every stack that moves has given everything."""
        return 1.0 / min((weight for weight in self.weights if weight > 0), default=1.0)

    def counts(self, strength: float) -> list[int]:
        """Tokens of one image that stay at each site."""
        found: list[int] = []
        for stack, weight in zip(("vision", "language"), self.weights, strict=True):
            sites = [site for site in self.sites if site.stack == stack]
            if not sites:
                continue
            started = self.started(sites[0])
            enters = visual_after(self.shape, found[-1] * self.shape.group) if stack == "language" and found else float(started)
            ratio = started ** -min(1.0, strength * weight)
            for index in range(1, len(sites) + 1):
                found.append(min(whole(ratio**index, enters), int(enters)))
        return found

    def filled(self, counts: list[int]) -> list[int]:
        """Give back single tokens, last sites first, as far as the budget permits; none that cost nothing in its unit."""
        counts, grown = list(counts), True
        while grown:
            grown, spent = False, self.cost(self.plan(counts))
            for index in reversed(range(len(counts))):
                more = [n + (i == index) for i, n in enumerate(counts)]
                plan = self.plan(more)
                if self.nested(more) and self.affordable(plan) and self.cost(plan) > spent:
                    counts, grown, spent = more, True, self.cost(plan)
        return counts

    def nested(self, counts: Sequence[int]) -> bool:
        """Whether no site keeps more than is alive there."""
        alive, stack = float("inf"), ""
        for site, kept in zip(self.sites, counts, strict=True):
            if site.stack != stack:
                crossed = stack == "vision" and site.stack == "language"
                alive = visual_after(self.shape, alive) if crossed else self.started(site)
                stack = site.stack
            if kept > alive:
                return False
            alive = kept
        return True

    def plan(self, counts: Sequence[int]) -> Plan:
        """Write counts as steps, leaving out those that remove nothing."""
        steps: list[Step] = []
        alive, stack = 0.0, ""
        for site, kept in zip(self.sites, counts, strict=True):
            if site.stack != stack:
                crossed = stack == "vision" and site.stack == "language"
                alive = visual_after(self.shape, alive) if crossed else float(self.started(site))
                stack = site.stack
            if kept < alive:
                steps.append(Step(site, kept / self.started(site)))
            alive = kept
        for step in self.empty.steps:  # the text's
            steps = list(spelled(steps, step.site, step.text))
        return replace(self.empty, steps=tuple(steps))

    def unreachable(self, least: Plan) -> UnreachableBudget:
        stacks = {site.stack for site in self.sites}
        idle = {0.0: "tower", 1.0: "language model"}.get(float(self.balance)) if len(stacks) > 1 else None
        fix = f"or a balance that prunes the {idle} too, e.g. balance={BALANCE}" if idle else "or earlier sites"
        cost, work = self.cost(least), self.prices.workload
        lowest = self.amount.up(min(1.0, cost) if self.amount.unit == "share" else cost)  # choosing may take more than it saves
        shown = f"{lowest.value:.2f}" if lowest.unit == "share" else str(lowest)
        where = ", ".join(map(str, self.sites)) or "none"
        told = f"images={work.images}, text={work.text}, answer={work.answer}"
        for step in self.empty.steps:
            told += f"; text={step.text:g} keeps {work.text_after(step, work.text):g} of {work.text} text tokens"
            less = replace(self, empty=replace(self.empty, steps=(replace(step, text=work.stays / max(1, work.text)),)))
            if less.affordable(less.plan(less.counts(less.limit))):
                fix += f", or let more text leave, down to text={math.ceil(100 * work.stays / work.text) / 100:g}"
        return UnreachableBudget(
            f"budget {self.amount} cannot be reached by method {self.empty.method!r} at the sites {where} ({told}): "
            f"the lowest reachable is {shown}; use budget={shown} {fix}",
            lowest.value,
        )


def _bisect(good: Callable[[float], bool], high: float) -> float:
    """Smallest strength found in (0, high] that is good; `high` is known to be."""
    low = 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high
