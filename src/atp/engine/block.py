"""`prune`: hooks in, hooks out. Knows no family's names. Part of the engine."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from atp.adapters import adapt
from atp.adapters.base import Adapter, Args, Kwargs, StackView
from atp.adapters.tiled import Windowed
from atp.asking import check_processor, listed
from atp.budget.amount import Amount, plain
from atp.budget.cost import TAIL, Workload
from atp.engine.allowed import check_plan
from atp.engine.checking import FirstCall
from atp.engine.entering import block
from atp.engine.facts import looks_back
from atp.engine.parts import with_tiles
from atp.engine.recall import Recall
from atp.engine.run import Run
from atp.engine.standing import Standing
from atp.engine.tables import Table
from atp.engine.tiles import TiledRun
from atp.engine.windows import WindowedRun
from atp.engine.words import expected, guard_of, with_text
from atp.errors import AlreadyPruned, NothingPruned
from atp.methods.base import checked, spelled
from atp.plan import Plan, Site

ENTRY = threading.Lock()  # two blocks that open at once look one after the other whether the model is free


@block
def prune(
    model: nn.Module,
    budget: Amount | None = None,
    method: str | None = None,
    plan: Plan | str | Path | None = None,
    calibration: Table | str | Path | None = None,
    processor: Any = None,
    strict: bool = False,
    *,
    text: float | None = None,
    text_tail: int = TAIL,
    tiles: float | str | None = None,
    second_turn: str = "keep",
    record_all_scores: bool = False,
    template_ids: Iterable[int] | None = None,
    workload: Workload | None = None,
    sites: Sequence[Site | str] | str | None = None,
    adapter: str | None = None,
    **method_options: Any,
) -> Iterator[Run]:
    """Prune the visual tokens, and if asked the text, of everything the model does inside the block.

    Args:
        model: a supported model with its language head, e.g. LLaVA. It is not changed: hooks come and go.
        budget: share of the unpruned FLOPs to spend, in (0, 1], 0.6 if nothing else decides; or "64 tokens" (mean visual tokens
            per language layer), "250 ms" (to the first token, measured on this device), "24 MB" (keys and values of the prompt).
        method: registered name, `"atp"` if nothing else decides; or one with options, `"atp:merge=false+alpha=0.7"`.
        plan: a `Plan`, or a file written by `Plan.save`; excludes `budget` and `calibration`.
        calibration: a `Calibration` or its file gives the plan of that budget, a `Certificate` (of `atp calibrate`) its own;
            "adaptive": counts per input, fitted to this checkpoint (`atp fit-counts`).
        processor: the model's processor; from it come the ids of the chat template, which ask no question, and those of
            numbers and negations, which never leave.
        strict: raise instead of warning where nothing was pruned.
        text: share of each prompt's text tokens that stay from the first site of the language model on; None = what the plan
            says, or all. The first token, special ones, numbers, negations and the last `text_tail` tokens stay in any case.
            What leaves has logits that mean nothing: for answers, not for losses over the prompt.
        text_tail: how many last text tokens stay; they are the question, which rates the others.
        tiles: of pictures in tiles (SmolVLM, Idefics3, InternVL, LLaVA-NeXT, LLaVA-OneVision), what stays before the tower runs,
            beside the thumbnail: a share of each picture's tiles (0.5), or those that differ from the thumbnail by more than so
            much in normalised pixels (">0.02"). Of Qwen's images, which have no thumbnail: windows of 4 x 4 visual tokens, by
            their difference from one colour and, in videos, from the frame before; one token of each that leaves stays. Alone
            it is all that happens; a budget is met by what stays; a threshold's saving comes on top (that of windows counts
            towards what the plan's steps take). None = what the plan says, or all.
        second_turn: what a turn does that goes on with the cache: "keep" what the first question chose, or "reselect": read the
            conversation again and choose by the new one; the same where no question chooses (tokens leave the tower only).
        record_all_scores: score also at sites where nothing leaves (for calibration).
        template_ids: more such ids.
        workload: `Workload` to solve the plan for. A budget with `text` needs it: `atp.workload_of(model, processor, inputs)`.
        sites: where tokens leave, `"vision:0/vision:3"`, for a budget; None = where the checkpoint's calibration says, or the
            method. Fewer sites take less time, which tells in small models; more lose less at small budgets.
        adapter: "generic" to try a model type that has no adapter; it compares itself with the unhooked model first.
        method_options: fields of the method, e.g. `alpha=0.7`.

    Yields:
        The run: `run.plan`, `run.trace`, `run.report()`.

    Raises:
        UnsupportedModel, UnknownMethod, InvalidPlan: as they say.
        BadInput: `processor` is none; and in the block, an empty batch.
        AlreadyPruned: the model is inside another such block.
        NothingPruned: `strict` and no token left.
        AtpError: in the block, two threads that are inside the model at once; its copy.

    Example:
        >>> with atp.prune(model, budget=0.6) as run:
        ...     out = model.generate(**inputs)
        >>> print(run.report())
    """
    adapted = adapt(model, adapter)
    check_processor(processor, needed=False)
    text, tiles = plain(text), plain(tiles)
    work = expected(adapted, workload, plan is not None or calibration is not None, text, text_tail, budget is not None)
    run = _prepare(adapted, budget, method, plan, calibration, work, method_options, text, second_turn, tiles, sites)
    run.guard = lambda: guard_of(adapted, processor, text_tail)
    run.chooser.score_all = record_all_scores
    run.chooser.template = run.adapter.template_ids(processor) | frozenset(listed(template_ids or ()))
    with _hooked(run, inner=False):
        yield run
    _check_pruned(run, strict)


@contextmanager
def _hooked(run: Run, inner: bool = True) -> Iterator[None]:
    """Hook a run, one that compares inside of another or the one of a block."""
    handles: list[Any] = []
    try:
        with ENTRY:
            if not inner:
                _check_free(run.adapter)
                if run.adapter.checks:
                    first = FirstCall(run, _hooked)
                    handles.append(run.adapter.base.register_forward_pre_hook(first, with_kwargs=True))
            _install(run, handles)
        yield
    finally:
        run.close()
        for handle in handles:
            handle.remove()


class _Waking:
    """A hook that does nothing while its run is set aside."""

    def __init__(self, run: Run, hook: Any) -> None:
        self.__self__, self.hook = run, hook

    def __call__(self, *given: Any) -> Any:
        return None if self.__self__.aside else self.hook(*given)


def _prepare(
    adapter: Adapter,
    budget: Amount | None,
    method: str | None,
    plan: Plan | str | Path | None,
    calibration: Table | str | Path | None,
    workload: Workload | None,
    options: dict[str, Any],
    text: float | None = None,
    second_turn: str = "keep",
    tiles: float | str | None = None,
    sites: Sequence[Site | str] | str | None = None,
) -> Run:
    """Find method and plan, and refuse what does not fit together; nothing is hooked yet."""
    _check_free(adapter)
    if method is not None and ":" in method:
        method, own = spelled(method)
        sites, options = own.pop("sites", sites) if sites is None else sites, {**own, **options}
    chosen, built = with_tiles(adapter, budget, method, plan, calibration, workload, options, text, tiles, sites)
    chosen = with_text(adapter, chosen, built, text)
    check_plan(adapter, chosen, built)
    checked("second_turn", second_turn, ("keep", "reselect"))
    kind = Run if chosen.tiles is None else WindowedRun if isinstance(adapter, Windowed) else TiledRun
    return kind(adapter, built, chosen, second_turn == "reselect")


def _check_free(adapter: Adapter) -> None:
    if any(isinstance(getattr(hook, "__self__", None), Run) for hook in adapter.base._forward_pre_hooks.values()):
        raise AlreadyPruned(
            "this model is already inside a `with atp.prune(...)` block; leave it first, or put both budgets into one plan"
        )


def _install(run: Run, handles: list[Any]) -> None:
    """Register all hooks; the handles that exist are in the list whatever happens."""
    adapter = run.adapter
    run.stand_alone(adapter, handles)

    def before(module: nn.Module, hook: Any) -> None:
        hook = _Waking(run, hook) if adapter.checks else hook
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(module: nn.Module, hook: Any, **options: Any) -> None:
        # First in the row: recorded hidden states must have their full length.
        hook = _Waking(run, hook) if adapter.checks else hook
        handles.append(module.register_forward_hook(hook, prepend=True, **options))

    watched = {view.name: _watched(run, view) for view in adapter.views}
    own = [adapter.own] if adapter.own is not None and "text" in run.method.kinds and run.steps("language") else []
    lines = [(view, layer) for view in own for layer in _watched(run, view)]
    before(adapter.base, Standing(adapter, [*((view, one) for view in adapter.views for one in watched[view.name]), *lines]))
    for module, listener in adapter.listeners():
        before(module, listener)
    before(adapter.top, run.enter_top)
    before(adapter.base, run.enter_base)
    after(adapter.base, run.leave_base, always_call=True)
    if "vision" in adapter.stacks:
        before(adapter.tower, run.enter_tower)
        after(adapter.tower, run.leave_tower)
    if "vision" in adapter.stacks and adapter.connects != "grid":
        before(adapter.connector, run.enter_connector)
        after(adapter.connector, run.leave_connector)
    handles.extend(_Watch(run, owner, name) for owner, name in adapter.watched())
    handles.extend(Recall(module, run.memory, run.decoding) for module in adapter.recurring())
    before(adapter.text, run.enter_text)
    after(adapter.text, run.leave_text, with_kwargs=True)
    if adapter.reader is not None:
        before(adapter.reader, run.encoded.enter_reader)
    for view in adapter.views:
        if view.name == "vision" and not (isinstance(run, WindowedRun) or run.steps("vision")):
            continue
        for index, layer in enumerate(view.layers):
            _hook_layer(run, view, index, layer, index in watched[view.name], before, after)
    for view in own:
        for index, layer in enumerate(view.layers):
            _hook_layer(run, view, index, layer, (view, index) in lines, before, after)


def _watched(run: Run, view: StackView) -> list[int]:
    """Return the layers of a stack whose rows sites read."""
    found = {view.before(layer) for layer in run.steps(view.name)} if looks_back(run.method, view) else set()
    return sorted(layer for layer in found if layer is not None)


class _Watch:
    """Reports the calls of one method of the model, which no hook sees; `remove` gives the model its own back."""

    def __init__(self, run: Run, owner: nn.Module, name: str) -> None:
        self.owner, self.name, self.before = owner, name, vars(owner).get(name)
        method = getattr(owner, name)

        @functools.wraps(method)
        def reported(*args: Any, **kwargs: Any) -> Any:
            run.enter_alone(self)
            try:
                return run.laid_out(name, method, args, kwargs)
            finally:
                run.leave_alone(self)

        setattr(owner, name, reported)

    def remove(self) -> None:
        delattr(self.owner, self.name)
        if self.before is not None:
            setattr(self.owner, self.name, self.before)


def _hook_layer(run: Run, view: StackView, index: int, layer: nn.Module, watched: bool, before: Any, after: Any) -> None:
    """Register the hooks of one layer, and of its projections where the next site reads them."""

    def enter(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        running = run.running(view)
        return None if running is None else running.enter(index, args, kwargs, watched)

    def leave(module: nn.Module, args: Args, output: Any) -> Any:
        running = run.running(view)
        return None if running is None else running.leave(output)

    before(layer, enter)
    after(layer, leave)
    if not watched:
        return
    for name, projection in zip(("queries", "keys"), view.projections(index), strict=True):

        def take(module: nn.Module, args: Args, output: Tensor, name: str = name) -> None:
            running = run.running(view)
            if running is not None:
                running.captured(name, output)

        after(projection, take)


def _check_pruned(run: Run, strict: bool) -> None:
    """Say so if the block pruned nothing, or by scores that mean nothing.

    Raises:
        NothingPruned: if strict.
        AtpError: scores that were not finite.
    """
    run.chooser.finite.check()
    if run.dropped or run.book.graphs:
        return
    if run.forwards:
        told = f"the plan ({len(run.plan.steps)} steps) removed no token in {run.forwards} forwards; lower the budget"
    else:
        told = "no forward with an image ran inside the block; pass pixel_values"
    if strict:
        raise NothingPruned(told)
    if run.forwards:
        warnings.warn(told, UserWarning, stacklevel=4)
