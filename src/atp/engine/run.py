"""`Run`: what the hooks do, and the state of the forward that is running. Knows no family's names. Part of the engine."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from atp.adapters.base import Adapter, Args, Kwargs, Prompt, StackView
from atp.budget.shape import ModelShape
from atp.engine.census import TowerPass, feature_alive, feature_patches, image_index, of_prompt, of_tower
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
        self._candidates, self._fresh, self._visual = 0, False, 0
        self._prompt: Prompt | None = None
        self._before: tuple[Any, int] | None = None
        self._tower: TowerPass | None = None
        self._vision: StackPass | None = None
        self._language: StackPass | None = None
        self._resize: SmallerImage | None = None
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
        self._features = None

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
        pixels = self.adapter.pixels(args, kwargs)
        step = self.steps("pixels").get(0)
        if step is not None:
            self._resize = SmallerImage(self.adapter, step)
            return self.adapter.resized(args, kwargs, self._resize.shrink)
        census = of_tower(self.adapter, pixels.shape[0], pixels.device)
        self._vision = StackPass(self.adapter, self.adapter.vision, census, self.steps("vision"), self.chooser, self.forwards)
        return None

    def leave_tower(self, module: nn.Module, args: Args, output: Any) -> Any:
        """After the tower: full length again, and what is left of each image goes along with it."""
        running, self._vision = self._vision, None
        resize, self._resize = self._resize, None
        if resize is not None:
            output = self.adapter.map_states(output, resize.widen)
            tower = resize.tower_pass()
            self._note("pixels", [resize.record(self.forwards)])
        else:
            assert running is not None and running.census is not None
            output = self.adapter.map_states(output, running.widen)
            self._note("vision", running.records)
            census = running.census
            lengths = census.lengths(self.adapter.shape.vision.layers)
            tower = TowerPass(census.alive, census.counts, census.scores, lengths)
        self.dropped += sum(self.adapter.shape.patches - n for n in tower.counts)
        self.adapter.tag(output, tower)
        self._tower = tower
        return output

    def enter_connector(self, module: nn.Module, args: Args) -> Args | None:
        """Before the connector: only patches that are alive pass it."""
        tower, self._features = self._tower, None
        if tower is None or tower.features is not None:
            return None
        states = args[0]
        patch = feature_patches(self.adapter, states.shape[1], states.device)
        alive, counts = feature_alive(patch, tower)
        tower.connected = counts
        if min(counts) == states.shape[1]:
            return None
        subset = build(alive, counts)
        self._features = (subset, states)
        return (gather(states, subset), *args[1:])

    def leave_connector(self, module: nn.Module, args: Args, output: Tensor) -> Tensor:
        """After the connector: full length again; what stands at dead places never enters the language model."""
        taken, self._features = self._features, None
        if taken is not None:
            subset, states = taken
            output = scatter(output.new_zeros(*states.shape[:2], output.shape[-1]), output, subset)
        if self._tower is not None and self._tower.features is None:
            self._tower.features = output.detach()
            self.ledger.tower(self._tower)
        return output

    # --- language model -----------------------------------------------------------------------------------------------

    def enter_text(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before the language model: who arrived?"""
        census, tower, images = None, None, []
        prompt = self._prompt
        if prompt is not None:
            if prompt.features is None:
                tower = self._tower
                assert tower is not None and tower.features is not None
                features, images = tower.features.shape[1], list(range(tower.images))
            else:
                tower, made = self.adapter.tagged(prompt.features)
                features = made[0].shape[0]
                images = list(range(len(made))) if tower is None else image_index(tower, made)
            census = of_prompt(self.adapter, prompt, features, images, tower)
            rows = [row for row, n in enumerate(census.started) for _ in range(n // features)]
            first = dict(reversed(list(zip(images, rows, strict=False))))  # beams repeat images
            self.trace.image_rows = [first[image] for image in sorted(first)]
            self.trace.grids = [self.adapter.grid] * len(first)
            self._visual = features
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
        self.ledger.prompts(census, self.adapter.shape.language.layers, self._visual)
        self.dropped += sum(a - b for a, b in zip(census.started, census.counts, strict=True))
        self.forwards += 1
        return self.adapter.map_states(output, running.widen)

    # --- layers -------------------------------------------------------------------------------------------------------

    def running(self, view: StackView) -> StackPass | None:
        """The pass that is under way in a stack."""
        return self._vision if view.name == "vision" else self._language
