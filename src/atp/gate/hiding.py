"""A block in which tokens are hidden instead of removed, so that gradients say which of them were missed.

A hidden token stays in its row and sees itself; to all others its column of the attention has weight EPS instead of 1. The engine
runs with a plan that keeps everything: it reads the model, computes the rows of attention and calls the method that is being
trained at every site; hooks before and after its own put the column's weights into the masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from atp.adapters import adapt
from atp.adapters.base import Adapter, Args, CrossView, Kwargs, StackView
from atp.engine import Run, prune
from atp.engine.passes import StackPass
from atp.errors import UnsupportedModel
from atp.methods.base import Method
from atp.plan import Plan, Site, Step
from atp.tokens import Tokens

EPS = 1e-5
"""Weight of a hidden column; its logarithm must have a finite gradient."""

Hide = Callable[[Tokens], Tensor | None]
"""What decides at a site: `[B, N]`, 1 = stays, 0 = is hidden, with a gradient; 1 where a token is not alive. None = all stay."""


class Student:
    """Stands in for a method while it is trained: asked for scores, it decides what to hide; not where patches merge."""

    def __init__(self, method: Method, take: Callable[[Tokens], None]) -> None:
        self.method, self.take = method, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def score(self, tokens: Tokens) -> Tensor:
        """Decide; all scores are equal, for nothing is removed."""
        if self.method.merges(tokens.stack):
            return self.method.score(tokens)
        with torch.enable_grad():
            self.take(tokens)
        return torch.ones(tokens.alive.shape, device=tokens.alive.device)


@dataclass
class Hiding:
    """State of one call in which tokens are hidden.

    Attributes:
        adapter: of the model.
        hide: what decides.
        on: whether anything is hidden in the call that runs; else the model is as it was.
        guesses: last tokens of the call that are answer, not prompt; they must not decide.
        bias: of each stack so far, `[S, T]`, logarithms of the weights of columns.
        soft: of the tower's tokens, `[P, N]`.
        fresh: decided at the site of the layer that comes.
        tower: shares of the tower's sites where patches merge in the calls, as in use.
    """

    adapter: Adapter
    hide: Hide
    on: bool = False
    guesses: int = 0
    bias: dict[str, Tensor] = field(default_factory=dict)
    soft: Tensor | None = None
    fresh: dict[str, Tensor] = field(default_factory=dict)
    tower: Mapping[Site, float] = field(default_factory=dict)
    run: Run | None = None

    @contextmanager
    def calls(self, guesses: int) -> Iterator[None]:
        """Hide in the calls of the block."""
        assert self.run is not None, "the block of `hidden` is open"
        self.on, self.guesses, self.run.chooser.score_all = True, guesses, True
        try:
            yield
        finally:
            self.on, self.guesses, self.run.chooser.score_all, self.soft = False, 0, False, None
            self.bias.clear()
            self.fresh.clear()
            self.run.trace.clear()

    def take(self, tokens: Tokens) -> None:
        """Ask what to hide at a site."""
        found = self.hide(tokens)
        if found is not None:
            self.fresh[tokens.stack] = found

    def steps(self, stack: str, known: dict[int, Step]) -> dict[int, Step]:
        """What the engine does in a stack: in the tower merge as asked for, and nothing outside the calls."""
        merging = self.tower.items() if self.on else ()
        return {**known, **{site.layer: Step(site, share) for site, share in merging if site.stack == stack}}

    def passing(self, view: StackView) -> StackPass:
        """What the engine knows of the running stack."""
        assert self.run is not None
        running = self.run.running(view)
        assert isinstance(running, StackPass)
        return running

    def early(self, view: StackView, layer: int, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Before the engine sees a layer's call: what was hidden at sites before."""
        if not self.on:
            return None
        if view.name == "language" and layer == 0 and self.soft is not None:
            self.arrive(view)
        bias = self.bias.get(view.name)
        return None if bias is None else biased(view, args, kwargs, bias)

    def late(self, view: StackView, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """After the engine asked at a site: what is hidden from this layer on."""
        made = self.fresh.pop(view.name, None)
        if not self.on or made is None:
            return None
        if view.name == "vision":
            self.soft = made if self.soft is None else self.soft * made
        bias, subset = self.add(view, made), self.passing(view).subset
        return biased(view, args, kwargs, bias if subset is None else bias.gather(1, subset.rows))

    def add(self, view: StackView, made: Tensor) -> Tensor:
        """Add a decision `[B, N]` to the stack's columns, and return its own bias `[S, T]`."""
        census = self.passing(view).census
        assert census is not None
        census.alive = census.alive & (made.detach() > 0.5)
        logs = (EPS + (1 - EPS) * made).log().unsqueeze(2).expand_as(census.where).reshape(len(census.others), -1)
        bias = logs.new_zeros(census.others.shape).scatter_add(1, census.places, logs)
        before = self.bias.get(view.name)
        self.bias[view.name] = bias if before is None else before + bias
        return bias

    def depart(self, view: StackView) -> None:
        """After the tower's last layer: number its tokens, for the numbers arrive with the visual tokens made from them."""
        if not self.on or self.soft is None:
            return
        census = self.passing(view).census
        assert census is not None
        number = torch.arange(census.alive.numel(), device=census.alive.device, dtype=torch.float32)
        census.alive = torch.ones_like(census.alive)
        census.rated = number.view_as(census.alive), census.alive

    def arrive(self, view: StackView) -> None:
        """Before the language model's first layer: hide the visual tokens of hidden patches.

        Raises:
            UnsupportedModel: a visual token that mixes several patches.
        """
        census = self.passing(view).census
        if census is None or census.carried is None:
            return
        assert self.soft is not None
        known = census.carried.isfinite()
        number = census.carried.nan_to_num(0.0)
        if (number - number.round()).abs().max() > 1e-3:
            raise refused(self.adapter, "its visual tokens mix patches")
        made = torch.where(known & census.alive, self.soft.reshape(-1)[number.round().long()], 1.0)
        census.carried = None
        self.add(view, made)


def biased(view: StackView, args: Args, kwargs: Kwargs, bias: Tensor) -> tuple[Args, Kwargs]:
    """Return a layer's call with `bias` `[S, T]` added to its mask's columns, but to no row's own.

    Raises:
        UnsupportedModel: layers that take the borders of packed sequences instead of a mask.
    """
    call = view.read(args, kwargs)
    if call.segments is not None:
        raise UnsupportedModel(
            f"the layers of the {view.name} stack take borders of packed sequences instead of masks, so nothing can be hidden in "
            "them while training; train sites of the language model only: --sites language:2,language:4"
        )
    length, least = bias.shape[1], torch.finfo(call.hidden.dtype).min  # rows may be packed
    others = 1 - torch.eye(length, device=bias.device, dtype=bias.dtype)
    wide = (bias.unsqueeze(1) * others).unsqueeze(1).to(call.hidden.dtype)  # [S, 1, T, T]
    mask = call.mask
    if mask is None and view.causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=bias.device).tril()
    if mask is not None:
        shut = ~mask if mask.dtype == torch.bool else mask <= least / 2
        wide = (wide if mask.dtype == torch.bool else wide + mask).masked_fill(shut, least)
    return view.write(args, kwargs, replace(call, mask=wide))


def refused(adapter: Adapter, why: str) -> UnsupportedModel:
    """Say why the tower of this model cannot be trained for."""
    kind = "/".join(adapter.model_types) or type(adapter).__name__
    return UnsupportedModel(
        f"tokens cannot be hidden in the tower of a {kind} model while training: {why}; train sites of the language model only: "
        "--sites language:2,language:4"
    )


def check(adapter: Adapter, sites: Sequence[Site]) -> None:
    """Refuse models and sites where hiding is not what removing does.

    Raises:
        UnsupportedModel: naming the reason and what to do instead.
    """
    kind = "/".join(adapter.model_types) or type(adapter).__name__
    stacks = {site.stack for site in sites}
    if isinstance(adapter.language, CrossView) or adapter.reader is not None:
        what = "keys of its cross-attention layers" if adapter.reader is None else "rows of an encoder"
        raise UnsupportedModel(
            f"a gate cannot be trained for this {kind} model: its visual tokens are {what}; use a method without training: "
            "method='atp'"
        )
    if "vision" in stacks and adapter.connects == "keys":
        raise refused(adapter, "its connector looks at patches as keys")
    if "vision" in stacks and not adapter.vision.maskable:
        raise refused(adapter, "its layers take no mask")


@contextmanager
def hidden(
    model: nn.Module, processor: Any, method: str, weights: str, sites: Sequence[Site], hide: Hide, tower: Sequence[Site] = ()
) -> Iterator[Hiding]:
    """Open a block in which `Hiding.calls` hides tokens at the sites, and in which all other calls are the model's own.

    Args:
        model, processor: as `atp.load` gives them.
        method: that is trained.
        weights: file of it for this model, trained or not.
        sites: where.
        hide: decides.
        tower: where patches may merge, see `Hiding.tower`.
    """
    adapter = adapt(model)
    state = Hiding(adapter, hide)
    handles: list[Any] = []
    views = [view for view in adapter.views if any(site.stack == view.name for site in sites) or view.name == "language"]

    def before(view: StackView, index: int) -> Any:
        return lambda module, args, kwargs: state.early(view, index, args, kwargs)

    def after(view: StackView) -> Any:
        return lambda module, args, kwargs: state.late(view, args, kwargs)

    try:
        for view in views:
            for index, layer in enumerate(view.layers):
                handles.append(layer.register_forward_pre_hook(before(view, index), with_kwargs=True))
        plan = Plan(method, tuple(Step(site, 1.0) for site in (*tower, *sites)), {"weights": weights})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the plan .* removed no token")
            with prune(model, plan=plan, processor=processor) as run:
                state.run, known = run, run.steps
                run.steps = lambda stack: state.steps(stack, known(stack))  # type: ignore[method-assign]
                run.chooser.method = cast(Method, Student(run.method, state.take))
                run.adapter.candidates = lambda args, kwargs: state.guesses  # type: ignore[method-assign]
                for view in views:
                    for site in (one for one in sites if one.stack == view.name):
                        handles.append(view.layers[site.layer].register_forward_pre_hook(after(view), with_kwargs=True))
                if "vision" in {site.stack for site in sites}:
                    end = adapter.vision.layers[-1]
                    handles.append(end.register_forward_hook(lambda module, args, output: state.depart(adapter.vision)))
                yield state
    finally:
        for handle in handles:
            handle.remove()
