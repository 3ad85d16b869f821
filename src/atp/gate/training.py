"""The training itself: steps by number, so that one that was killed goes on as if nothing had been; the model stays frozen."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from atp.adapters import adapt
from atp.budget.solve import solve
from atp.engine import prune
from atp.errors import BadInput, UnsupportedModel
from atp.fitting import own_sites
from atp.gate import saving
from atp.gate.hiding import Hiding, check, hidden
from atp.gate.parts import extended, follow, frozen, lasting
from atp.gate.questions import Asked, Questions, questions
from atp.gate.settings import SHARE, Settings
from atp.gate.trainees import Trainee, cooled, divergence, make_gate, make_lvpruning, parameters
from atp.loading import build_inputs, check_kind, load
from atp.methods import METHODS, lvpruning
from atp.methods import weights as files
from atp.plan import Site

Tell = Callable[[str, float], None]
"""Takes a few words and the share of the training that is done."""

WARM, AVERAGE, CLIP = 20, 0.98, 1.0  # steps of warm-up, decay of the averaged weights, largest norm of a gradient
SAVE_EVERY = 30.0  # seconds
CHECKS = 5  # of the weights, at equal shares of a training
HELD_OUT = 6  # batches of questions for each plan, before and after
SAME = 0.02  # divergence of the model from itself that rounding may cause: ours


@dataclass(frozen=True)
class Done:
    """What a training gave.

    Attributes:
        header: of the file.
        before, after: mean divergence from the unpruned answers on held-out questions, by plan; before any step, and now.
        steps: in all. seconds: spent in them. resumed: the step at which this process went on, 0 = it began.
    """

    header: files.Header
    before: dict[str, float]
    after: dict[str, float]
    steps: int
    seconds: float
    resumed: int = 0


@dataclass
class Progress:
    """What goes into the file of an unfinished training, besides weights.

    Attributes:
        before, after: divergences on held-out questions, untrained, and of the best weights so far.
        checked: how often the weights were measured. best: the step that the best are of, 0 = untrained.
    """

    step: int = 0
    seconds: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    checked: int = 0
    best: int = 0


def train(settings: Settings, tell: Tell = lambda words, done: None) -> Done:
    """Train the modules and write them to one file; an unfinished training of the same settings goes on.

    Raises:
        BadInput, InvalidPlan, UnsupportedModel: settings, a plan or a model for which that is not possible.
    """
    check_kind(settings.dtype, settings.device)
    saving.unfinished(settings)  # refused before the model is loaded
    asked = questions(settings)
    tell("loading the model", 0.0)
    model, processor = load(settings.model, settings.dtype, settings.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        trainee, plans = prepare(settings, model)
    with frozen(model):
        return Training(settings, model, processor, trainee, plans, asked, tell).go()


def prepare(settings: Settings, model: Any) -> tuple[Trainee, dict[str, dict[str, float]]]:
    """Build what is trained, and the shares it is trained for: name of the plan -> site -> share."""
    adapter = adapt(model)
    widths = {view.name: getattr(adapter.shape, view.name).hidden for view in adapter.views}
    if settings.kind == "lvpruning":
        sites = settings.sites or lvpruning.paper_sites(adapter.shape.language.layers)
        check(adapter, sites)
        if any(site.stack != "language" for site in sites):
            raise BadInput(f"lvpruning acts in the language model only, got --sites {','.join(map(str, sites))}")
        shares = {str(site): max(0.02, settings.ratio - 0.2 * number) for number, site in enumerate(sites)}
        return make_lvpruning(sites, widths["language"], settings.width), {f"ratio {settings.ratio:g}": shares}
    plans = {}
    for budget in settings.budgets:
        with prune(model, **_plan(model, budget, settings.sites)) as run:
            plan = run.plan
        if all(step.site.stack == "vision" for step in plan.steps) and not settings.sites:  # nothing there to steer
            plan = _plan(model, budget, own_sites(model, adapter, METHODS.get("atp")(), {}))["plan"]
        plans[f"budget {budget:g}"] = {str(step.site): step.keep for step in plan.steps}
    found = {Site.parse(site) for shares in plans.values() for site in shares}
    if not settings.sites:  # what the tower merges it merges by redundancy; the modules steer what the question decides
        found = {site for site in found if site.stack != "vision"}
    sites = tuple(sorted(found, key=lambda s: (s.stack != "vision", s)))
    if not sites:
        raise BadInput(
            f"ATP's plans at --budget {settings.budgets} act in the tower only; name sites: --sites language:2,language:4"
        )
    check(adapter, sites)
    most = int(SHARE * parameters(adapter.model))
    return make_gate(sites, widths, (settings.rank, settings.width), most, settings.noise), plans


def _plan(model: Any, budget: float, sites: Sequence[Site]) -> dict[str, Any]:
    """Return how `prune` is asked for ATP's plan of a budget, at the sites if there are any."""
    if not sites:
        return {"budget": budget}
    return {"plan": solve(adapt(model).shape, budget, "atp", sites=sites)}


class Training:
    """One training, from where it was left.

    Args:
        settings: what is asked for.
        model, processor: as `atp.load` gives them.
        trainee: what is trained.
        plans: name -> site -> share.
        asked: questions.
        tell: is told how far it is.
    """

    def __init__(
        self,
        settings: Settings,
        model: Any,
        processor: Any,
        trainee: Trainee,
        plans: dict[str, dict[str, float]],
        asked: Questions,
        tell: Tell,
    ) -> None:
        self.settings, self.model, self.processor, self.trainee = settings, model, processor, trainee
        self.plans, self.asked, self.tell = plans, asked, tell
        trainee.modules.to(model.device)
        self.average, self.best = copy.deepcopy(trainee.modules), copy.deepcopy(trainee.modules)
        self.optimizer = torch.optim.AdamW(trainee.modules.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.progress = Progress()
        self.end = model.generation_config.eos_token_id

    def go(self) -> Done:
        """Run to the end, and write the file."""
        began = saving.restore(self)
        saving.keep(self)
        saving.write(self)
        sites = [Site.parse(site) for site in self.trainee.modules]
        names = sorted({name for shares in self.plans.values() for name in shares} - set(self.trainee.modules))
        tower = [Site.parse(name) for name in names]
        block = hidden(self.model, self.processor, self.trainee.kind, str(self.settings.out), sites, self.trainee.hide, tower)
        with block as state:
            self.verify(state, self.inputs(self.asked.held_out(0, self.settings.batch)))
            if not self.progress.before:
                self.tell("measuring the untrained", 0.0)
                self.progress.before = self.progress.after = self.measured(state, self.trainee.modules)
            try:
                self.steps(state)
            except KeyboardInterrupt:
                saving.keep(self)
                raise
        after = self.progress.after
        header = saving.write(self, after)
        self.settings.resume.unlink(missing_ok=True)
        return Done(header, self.progress.before, after, self.progress.step, self.progress.seconds, began)

    def steps(self, state: Hiding) -> None:
        """Take steps until the training is done, and keep what an unfinished one needs."""
        saved = time.monotonic()
        while self.done < 1:
            begin = time.monotonic()
            loss = self.step(state)
            self.progress.seconds += time.monotonic() - begin
            self.progress.step += 1
            self.tell(f"step {self.progress.step}, loss {loss:.4f}", self.done)
            if self.done * CHECKS >= self.progress.checked + 1:
                self.check(state)
            if time.monotonic() - saved > SAVE_EVERY:
                saving.keep(self)
                saved = time.monotonic()

    def check(self, state: Hiding) -> None:
        """Measure the averaged weights on held-out questions; keep them where that is the least so far, untrained included."""
        progress = self.progress
        found, progress.checked = self.measured(state, self.average), int(self.done * CHECKS)
        if sum(found.values()) < sum(progress.after.values()):
            progress.after, progress.best = found, progress.step
            self.best.load_state_dict(self.average.state_dict())

    @property
    def done(self) -> float:
        """Share of the training that is done."""
        if self.settings.steps is not None:
            return self.progress.step / self.settings.steps
        return self.progress.seconds / (60 * self.settings.minutes)

    def step(self, state: Hiding) -> float:
        """Take one step and return its loss."""
        number, settings, trainee = self.progress.step, self.settings, self.trainee
        trainee.shares = list(self.plans.values())[number % len(self.plans)]
        trainee.heat = cooled(self.done)
        trainee.draws = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
        inputs = self.inputs(self.asked.batch(number + settings.seed * 100_000, settings.batch))
        said, taught, weight = self.answers(state, inputs)
        loss = trainee.loss(said, taught, weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(trainee.modules.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (number + 1) / WARM) * (1 + math.cos(math.pi * min(1.0, self.done))) / 2
        if norm.isfinite():
            self.optimizer.step()
            follow(self.average, trainee.modules, min(AVERAGE, (number + 1) / (number + 10)))
        return float(loss.detach())

    def inputs(self, asked: Asked) -> dict[str, Tensor]:
        """Build a batch on the model's device."""
        made = build_inputs(self.processor, [image for image, _ in asked], [question for _, question in asked])
        dtype = self.model.dtype
        return {name: value.to(self.model.device, dtype if value.is_floating_point() else None) for name, value in made.items()}

    def answers(self, state: Hiding, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of the answer `[B, A, V]` with hidden tokens and without, and the weight of each `[B, A]`."""
        prompt = inputs["input_ids"].shape[1]
        with torch.no_grad():
            told = self.model.generate(
                **inputs, max_new_tokens=self.settings.answer, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        taught, answer = torch.stack(told.logits, 1), told.sequences[:, prompt:]
        weight = lasting(answer, self.end).to(torch.float32)
        guesses = answer.shape[1] - 1
        given = {name: extended(name, value, answer[:, :-1], prompt) for name, value in inputs.items()}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            given["logits_to_keep"] = guesses + 1
        self.trainee.kept.clear()
        trained = self.trainee.modules
        state.tower = {Site.parse(name): share for name, share in self.trainee.shares.items() if name not in trained}
        with state.calls(guesses):
            said = self.model(**given, use_cache=False).logits[:, -guesses - 1 :]
        return said, taught, weight

    @torch.no_grad()
    def verify(self, state: Hiding, inputs: dict[str, Tensor]) -> None:
        """Compare the model with itself: where nothing is hidden, one call must say what generating said.

        Raises:
            UnsupportedModel: it does not.
        """
        self.trainee.shares, self.trainee.heat = {}, 0.0
        off = float(divergence(*self.answers(state, inputs)))
        if not off <= SAME:
            raise UnsupportedModel(
                f"asked for a whole answer in one call, this model says something else than it generates (divergence {off:.2g}, "
                f"allowed {SAME}): answer tokens see each other, or padding moves positions; use --answer 1, or --batch 1"
            )

    @torch.no_grad()
    def measured(self, state: Hiding, modules: nn.Module) -> dict[str, float]:
        """Return the mean divergence on held-out questions, by plan, as the modules would be used: without noise."""
        trainee, own, found = self.trainee, self.trainee.modules, {}
        assert isinstance(modules, nn.ModuleDict)
        trainee.modules, trainee.heat = modules, 0.0
        for name, trainee.shares in self.plans.items():
            parts = []
            for number in range(HELD_OUT):
                inputs = self.inputs(self.asked.held_out(number, self.settings.batch))
                parts.append(float(divergence(*self.answers(state, inputs))))
            found[name] = sum(parts) / len(parts)
        trainee.modules = own
        return found
