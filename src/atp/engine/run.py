"""`Run`: what the hooks do, and the state of the forward that is running. Knows no family's names. Part of the engine."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from atp.adapters.base import Adapter, Args, Images, Kwargs, Prompt, StackView
from atp.budget.shape import ModelShape
from atp.engine.census import TowerPass, arrivals, image_rows, of_prompt, of_tower
from atp.engine.choice import Chooser
from atp.engine.passes import StackPass
from atp.engine.report import Ledger, Report, make_report
from atp.engine.smaller import SmallerImage
from atp.errors import InvalidPlan
from atp.methods import Method
from atp.plan import Plan, Step
from atp.subset import Subset, build, gather, scatter
from atp.tokens import Record, Trace


class Run:
    """What `prune` yields: the plan in force, the trace, and the report.

    It holds the state of the running forward, so a model that is being pruned serves one call at a time.
    """

    def __init__(self, adapter: Adapter, method: Method, plan: Plan) -> None:
        self.adapter, self.method = adapter, method
        self._plan = plan
        self.trace = Trace()
        self.ledger = Ledger()
        self.chooser = Chooser(method)
        self.forwards = 0
        self.dropped = 0
        self._warned: set[str] = set()
        self._candidates, self._fresh = 0, False
        self._prompt: Prompt | None = None
        self._before: tuple[Any, int] | None = None
        self._tower: TowerPass | None = None
        self._vision: StackPass | None = None
        self._language: StackPass | None = None
        self._resize: SmallerImage | None = None
        self._images: Images | None = None
        self._live: tuple[Tensor, list[int]] | None = None
        self._features: tuple[Subset, Tensor] | None = None

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model, what `atp.solve` wants."""
        return self.adapter.shape

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        """Replace counts and thresholds between two forwards.

        Raises:
            InvalidPlan: another method, or sites that the plan at entry did not have.
        """
        known = {step.site for step in self._plan.steps}
        extra = sorted(str(step.site) for step in plan.steps if step.site not in known)
        if plan.method != self._plan.method or extra:
            sites = ", ".join(sorted(map(str, known))) or "no site"
            raise InvalidPlan(
                f"a running plan changes counts and thresholds only; got method {plan.method!r} and new sites "
                f"{extra or 'none'}, the run has method {self._plan.method!r} at {sites}; "
                "leave the block and call atp.prune(model, plan=...) again"
            )
        self._plan = plan

    def report(self) -> Report:
        """Sum up what was kept, what was spent, and what would have been without pruning."""
        return make_report(self.adapter.shape, self._plan, self.method.name, self.ledger, self.chooser.spent)

    def steps(self, stack: str) -> dict[int, Step]:
        """Return the plan's steps of a stack, by layer."""
        return {step.site.layer: step for step in self._plan.steps if step.site.stack == stack}

    # --- the model as a whole -----------------------------------------------------------------------------------------

    def enter_top(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before the model with its head."""
        self._candidates = self.adapter.candidates(args, kwargs)

    def enter_base(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before the model that joins images and text."""
        guesses, self._candidates = self._candidates, 0
        self._language = self._tower = None
        self._prompt = self.adapter.prompt(args, kwargs, guesses)
        self._repeated(self._prompt)
        self._fresh = self._prompt is None and self.adapter.starts(kwargs)
        if self._fresh and self._plan.steps:
            self._warn("text", "the prompt has no image, so nothing is pruned in it")

    def _repeated(self, prompt: Prompt | None) -> None:
        """Notice `generate` without cache: the same features again, one token later."""
        before, self._before = self._before, None
        if prompt is None or prompt.features is None or prompt.cached:
            return
        self._before = (prompt.features, prompt.ids.shape[1])
        if before is not None and before[0] is prompt.features and before[1] + 1 == prompt.ids.shape[1]:
            self._warn("cache", "without cache every step runs the prompt again and chooses anew; use use_cache=True")

    def leave_base(self, module: nn.Module, args: Args, output: Any) -> None:
        """After it, also when it raised."""
        self._prompt = self._language = self._tower = self._vision = None
        self._features = self._live = self._images = None

    def _note(self, stack: str, records: list[Record]) -> None:
        self.trace.records.extend(records)
        self.ledger.sites(stack, records)

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, UserWarning, stacklevel=3)

    # --- vision tower -------------------------------------------------------------------------------------------------

    def enter_tower(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Before the tower: take the census, or make the image smaller."""
        step = self.steps("pixels").get(0)
        if step is not None:
            self._resize = SmallerImage(self.adapter, step)
            return self.adapter.resized(args, kwargs, self._resize.shrink)
        self._images = self.adapter.images(args, kwargs)
        census = of_tower(self._images)
        self._vision = StackPass(self.adapter, self.adapter.vision, census, self.steps("vision"), self.chooser, self.forwards)
        return None

    def leave_tower(self, module: nn.Module, args: Args, output: Any) -> Any:
        """After the tower: full length again, and what is left of each image goes along with it."""
        running, self._vision = self._vision, None
        resize, self._resize = self._resize, None
        if resize is not None:
            output = self.adapter.map_states(output, resize.widen)
            tower, self._live = resize.tower_pass(), resize.live()
            self._note("pixels", [resize.record(self.forwards)])
        else:
            assert running is not None and running.census is not None and self._images is not None
            output = self.adapter.map_states(output, running.widen)
            self._note("vision", running.records)
            census = running.census
            tower = TowerPass(
                alive=census.alive,
                started=census.started,
                counts=census.counts,
                scores=census.scores,
                lengths=census.lengths(self.adapter.shape.vision.layers),
                grids=list(self._images.grids),
                group=census.group,
            )
            self._live = None if census.packed else (census.live(), census.live_counts())
        self.dropped += sum(a - b for a, b in zip(tower.started, tower.counts, strict=True))
        self.adapter.tag(output, tower)
        self._tower = tower
        if self.adapter.connects != "rows":
            self.ledger.tower(tower)
        return output

    def enter_connector(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Before the connector: only live patches go in, where it can do without the others."""
        live, self._live, self._features = self._live, None, None
        if live is None or self.adapter.connects == "grid":
            return None
        where, counts = live
        if self.adapter.connects == "keys":
            return self.adapter.narrow(args, kwargs, build(where, counts)) if min(counts) < where.shape[1] else None
        assert self._tower is not None
        states = args[0]
        cut = where.shape[1] - states.shape[1]  # the model left out that many first places
        where = where[:, cut:]
        counts = [n - cut for n in counts] if cut <= self.adapter.shape.prefix else [int(n) for n in where.sum(1).tolist()]
        self._tower.connected = counts
        if min(counts) == states.shape[1]:
            return None
        subset = build(where, counts)
        self._features = (subset, states)
        return (gather(states, subset), *args[1:]), kwargs

    def leave_connector(self, module: nn.Module, args: Args, output: Any) -> Any:
        """After the connector: full length again; what stands at dead places never enters the language model."""
        taken, self._features = self._features, None
        if self._tower is not None and self.adapter.connects == "rows":
            self.ledger.tower(self._tower)
        if taken is None:
            return None
        subset, states = taken
        return scatter(output.new_zeros(*states.shape[:2], output.shape[-1]), output, subset)

    # --- language model -----------------------------------------------------------------------------------------------

    def enter_text(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before the language model: who arrived?"""
        census, prompt = None, self._prompt
        if prompt is not None:
            tower, made = self._tower, None
            if prompt.features is not None:
                tower, made = self.adapter.tagged(prompt.features)
            arrived = arrivals(self.adapter, prompt, tower, made, prompt.visual.device)
            given = len(arrived.lengths) if made is None else len(made)
            census = of_prompt(prompt, arrived, given)
            self.trace.image_rows = image_rows(arrived, census, given // len(arrived.lengths))
            self.trace.grids = arrived.grids
        steps = self.steps("language") if census is not None else {}
        self._language = StackPass(self.adapter, self.adapter.language, census, steps, self.chooser, self.forwards)

    def leave_text(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """After the language model: note what ran."""
        running, self._language = self._language, None
        if running is None or running.first is None:
            return None
        batch, length = running.first.shape[:2]
        if running.census is None:
            if self._fresh:
                self.ledger.text_only(batch, length, self.adapter.shape.language.layers)
            else:
                self.ledger.decoded += batch * length
            return None
        census = running.census
        self._note("language", running.records)
        self.ledger.prompts(census, self.adapter.shape.language.layers)
        self.dropped += sum(a - b for a, b in zip(census.started, census.counts, strict=True))
        self.forwards += 1
        return self.adapter.map_states(output, running.widen)

    # --- layers -------------------------------------------------------------------------------------------------------

    def running(self, view: StackView) -> StackPass | None:
        """The pass that is under way in a stack."""
        return self._vision if view.name == "vision" else self._language
