"""`Run`: what the hooks do, and the state of the forward that is running. Knows no family's names. Part of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from atp.adapters.base import Adapter, Args, CrossView, Images, Kwargs, Prompt, StackView
from atp.budget.shape import ModelShape
from atp.engine.allowed import check_change
from atp.engine.alone import Alone
from atp.engine.arrivals import all_arrivals, of_prompt, unknown_images
from atp.engine.book import Book
from atp.engine.census import Census, TowerPass, of_tower
from atp.engine.choice import Chooser
from atp.engine.cross import CrossPass
from atp.engine.encoded import Encoded
from atp.engine.facts import carried_from
from atp.engine.passes import StackPass
from atp.engine.recall import Memory
from atp.engine.report import Report, make_report
from atp.engine.smaller import SmallerImage
from atp.engine.turns import Turns
from atp.engine.words import Guard
from atp.methods import Method
from atp.plan import Plan, Step
from atp.subset import Subset, build, gather, scatter
from atp.trace import Trace
from atp.tracing import lazy


class Run(Alone):
    """What `prune` yields: the plan in force, the trace, and the report."""

    def __init__(self, adapter: Adapter, method: Method, plan: Plan, reselect: bool = False) -> None:
        super().__init__()
        self.adapter, self.method, self._plan = adapter, method, plan
        self.book = Book()
        self.chooser = Chooser(method)
        self.gathers = self.aside = False  # rows also where all are alive; nothing, while the model is compared with itself
        self._candidates, self._fresh = 0, False
        self._prompt: Prompt | None = None
        self._before: tuple[Any, int] | None = None
        self._tower: TowerPass | None = None
        self._towers: list[TowerPass] = []
        self._vision: StackPass | None = None
        self._language: StackPass | CrossPass | None = None
        self._resize: SmallerImage | None = None
        self._images: Images | None = None
        self._live: tuple[Tensor, list[int], Tensor | None] | None = None
        self._features: tuple[Subset, Tensor] | None = None
        self.guard: Callable[[], Guard] = Guard
        self.turns, self.encoded, self.memory = Turns(adapter, reselect, plan), Encoded(adapter, self.book.ledger), Memory()

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model, what `atp.solve` wants."""
        return self.adapter.shape

    @property
    def trace(self) -> Trace:
        """What every site did, forward by forward; nothing of calls that were traced into a graph."""
        return self.book.trace

    @property
    def forwards(self) -> int:
        """How many calls carried images."""
        return self.book.forwards

    @property
    def dropped(self) -> int:
        """Tokens that left in them."""
        return self.book.dropped

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
        check_change(self._plan, plan)
        self._plan = plan

    def report(self) -> Report:
        """Sum up what was kept, what was spent, and what would have been without pruning."""
        chooser = self.chooser
        done = (self.book.ledger, chooser.spent, chooser.levelled, self.memory.share, self._plan.spells and self.words.meant)
        return make_report(self.adapter.shape, self._plan, self.method.name, *done, tuple(sorted(chooser.packed)))

    @lazy
    def words(self) -> Guard:
        """Text that never leaves."""
        return self.guard()

    def steps(self, stack: str) -> dict[int, Step]:
        """Return the plan's steps of a stack, by layer; a method that carries scores has one where nothing leaves."""
        found = {step.site.layer: step for step in self._plan.steps if step.site.stack == stack}
        end = carried_from(self.adapter, self.method)
        if stack == "vision" and end is not None and self._plan.steps:
            found.setdefault(end.layer, Step(end, 1.0))
        return found

    # --- the model as a whole -----------------------------------------------------------------------------------------

    def enter_top(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before the model with its head."""
        self._candidates = self.adapter.candidates(args, kwargs)

    def enter_base(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before the model that joins images and text."""
        guesses, self._candidates = self._candidates, 0
        self.turns.hear(args, kwargs, guesses)
        self._language, self._tower, self._towers = None, None, []
        self._prompt = self.adapter.prompt(args, kwargs, guesses)
        if self._prompt is not None:
            self.book.graph(self._plan, self.adapter.graphs)
        self._repeated(self._prompt)
        self._fresh = self._prompt is None and self.adapter.starts(kwargs)
        if self._fresh and self._plan.steps:
            self.book.warn("text", "the prompt has no image, so nothing is pruned in it")

    def _repeated(self, prompt: Prompt | None) -> None:
        """Notice `generate` without cache: the same features again, one token later."""
        before, self._before = self._before, None
        if prompt is None or prompt.features is None or prompt.cached:
            return
        self._before = (prompt.features, prompt.ids.shape[1])
        if before is not None and before[0] is prompt.features and before[1] + 1 == prompt.ids.shape[1]:
            self.book.warn("cache", "without cache every step runs the prompt again and chooses anew; use use_cache=True")

    def leave_base(self, module: nn.Module, args: Args, output: Any) -> None:
        """After it, also when it raised; not where another thread was refused."""
        if not self.mine:
            return
        self.close()
        self._prompt = self._language = self._tower = self._vision = None
        self._towers, self._features, self._live, self._images = [], None, None, None

    def close(self) -> None:
        """Take away what passes that were broken off left hooked."""
        for running in (self._vision, self._language):
            if running is not None:
                running.close()

    # --- vision tower -------------------------------------------------------------------------------------------------

    def enter_tower(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Before the tower: take the census, or make the image smaller."""
        step = self.steps("pixels").get(0)
        if step is not None:
            self._resize = SmallerImage(self.adapter, step)
            return self.adapter.resized(args, kwargs, self._resize.shrink)
        self._images = self.adapter.images(args, kwargs)
        self.close()
        done = (of_tower(self._images), self.steps("vision"), self.chooser, self.book.number)
        self._vision = StackPass(self.adapter, self.adapter.vision, *done)
        return None

    def leave_tower(self, module: nn.Module, args: Args, output: Any) -> Any:
        """After the tower: full length again, and what is left of each image goes along with it."""
        running, resize, self._vision, self._resize = self._vision, self._resize, None, None
        if resize is not None:
            output = self.adapter.map_states(output, resize.widen)
            tower, self._live = resize.tower_pass(), (*resize.live(), None)
            self.book.sites("pixels", [resize.record(self.book.number)])
        else:
            assert running is not None and running.census is not None and self._images is not None
            output = self.adapter.map_states(output, running.widen)
            self.book.sites("vision", running.records)
            census = running.census
            tower = census.leave(self._images, self.adapter.shape.vision.layers, running.records)
            tokens = self.adapter.connects == "rows" and census.group > 1  # are what passes the connector
            grown = census.weights() if self.adapter.connects == "keys" and self.method.weighs("language") else None
            self._live = (census.alive, census.counts, None) if tokens else (census.live(), census.live_counts(), grown)
        self.book.left(tower.started, tower.counts)
        self.adapter.tag(output, tower)
        self._tower = tower
        if self._prompt is not None:
            self._towers.append(tower)
        if self.adapter.connects == "grid":
            self.book.tower(tower)
        return output

    def enter_connector(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Before the connector: only live patches go in, where it can do without the others."""
        live, self._live, self._features = self._live, None, None
        if live is None or self._tower is None or self.adapter.connects == "grid":
            return None
        where, counts, grown = live
        if self.adapter.connects == "keys":
            self._tower.asked = self.adapter.asked(args, kwargs)
            if self._tower.counts == self._tower.started:  # the mask of padding, if any, is the model's own
                return None
            subset = build(where, counts)
            return self.adapter.narrow(args, kwargs, subset, None if grown is None else grown.gather(1, subset.rows))
        states = args[0]
        cut = where.shape[1] - states.shape[1]  # the model left out that many first places
        where = where[:, cut:]
        counts = [n - cut for n in counts] if cut <= self.adapter.shape.prefix else [int(n) for n in where.sum(1).tolist()]
        self._tower.connected = counts if len(counts) == len(self._tower.counts) else self._tower.counts  # packed into one
        if min(counts) == states.shape[1]:
            return None
        subset = build(where, counts)
        self._features = (subset, states)
        return (gather(states, subset), *args[1:]), kwargs

    def leave_connector(self, module: nn.Module, args: Args, output: Any) -> Any:
        """After the connector: full length again; what stands at dead places never enters the language model."""
        taken, self._features = self._features, None
        if self._tower is not None:
            self.book.tower(self._tower)
        if taken is None:
            return None
        subset, states = taken
        return scatter(output.new_zeros(*states.shape[:2], output.shape[-1]), output, subset)

    def laid_out(self, name: str, method: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        """While the model lays the tower's features out as visual tokens: note how, and mend what dead patches are mixed into."""
        self.adapter.hear(name, args, kwargs)
        made = method(*args, **kwargs)
        return made if self._tower is None else self._tower.laid_out(self.adapter, name, args, kwargs, made)

    # --- language model -----------------------------------------------------------------------------------------------

    def enter_text(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Before the language model: who arrived? A second turn that chooses anew says the whole conversation."""
        census, prompt, view = None, self._prompt, self.adapter.language
        if isinstance(view, CrossView):
            guard, steps = self.words if self._plan.spells else None, self.steps("language")
            call = (self.adapter.cache(kwargs), self.adapter.extent(args, kwargs), self.memory, guard)
            tower = None if self.adapter.connects == "keys" else self._tower
            self._language = CrossPass(self.adapter, view, prompt, steps, self.chooser, self.book.number, *call, tower)
            return None
        changed = None
        if prompt is not None:
            census = self._arrive(prompt)
            self.turns.begin(census, kwargs)
        elif (again := self.turns.goes_on(kwargs)) is not None:
            changed, census = (args, again[0]), again[1]
        if census is not None and self._plan.spells:
            census.words = self.words.words(census)
        steps = self.steps("language") if census is not None else {}
        self._language = StackPass(self.adapter, view, census, steps, self.chooser, self.book.number)
        if self.gathers and census is not None:
            self._language.shrink()
        return changed

    def _arrive(self, prompt: Prompt) -> Census:
        """Take the census of the prompts, from all that the tower made for them."""
        if "vision" not in self.adapter.stacks:
            census, rows = of_prompt(prompt, [unknown_images(prompt.visual)])
            self.book.images(rows, self.trace.grids)
            return census
        found, made = all_arrivals(self.adapter, prompt, self._towers)
        census, rows = of_prompt(prompt, found)
        layout = None if made[0] is None else made[0].layout
        towers = [tower for tower in made if tower is not None] if len(made) > 1 else []
        self.book.images(rows, [grid for one in found for grid in one.grids], layout, towers)
        return census

    def leave_text(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """After the language model: note what ran."""
        running, self._language = self._language, None
        if running is None or running.extent is None:
            return None
        batch, length = running.extent
        if self.adapter.reader is not None and isinstance(running, StackPass):
            self.encoded.note(running.subset, self.adapter.keys_of(output))
        if running.census is None:
            if self._fresh:
                self.book.text_only(batch, length, self.adapter.shape.language.layers)
            else:
                self.book.decoded(batch * length)
            return None
        census = running.census
        if isinstance(running, CrossPass):
            running.finish(self.adapter.cache(kwargs, output), self.trace)
        new = self.turns.end(self.adapter.cache(kwargs, output))
        self.book.prompts(census, self.adapter.shape.language.layers, running.records, running.texts, new)
        return self.adapter.map_states(output, lambda state: running.widen(state)[:, -new:])  # -0: all

    # --- layers -------------------------------------------------------------------------------------------------------

    def decoding(self) -> bool:
        """Whether the forward that is running follows a prompt."""
        return isinstance(self._language, CrossPass) and self._language.prompt is None

    def running(self, view: StackView) -> StackPass | CrossPass | None:
        """The pass that is under way in a stack."""
        if view is self.adapter.own:
            return self._language.lines if isinstance(self._language, CrossPass) else None
        return self._vision if view.name == "vision" else self._language
