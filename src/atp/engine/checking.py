"""A model of an untried family is compared with itself before its first call is pruned. Part of the engine."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from atp.adapters.base import Adapter, Args, Kwargs
from atp.engine.planning import make_method
from atp.engine.run import Run
from atp.errors import AtpError, UnsupportedModel
from atp.plan import Plan, Site, Step

ALLOWED = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative error (of norms) that rounding may cause, by precision; chosen."""

Hooked = Callable[[Run], AbstractContextManager[Any]]


class FirstCall:
    """The hook that compares, once, on the first call of the base model that carries images.

    Args:
        run: of the block; its hooks are set aside meanwhile.
        hooked: puts the hooks of another run on while it is open.
    """

    def __init__(self, run: Run, hooked: Hooked) -> None:
        self.run, self.adapter, self.hooked = run, run.adapter, hooked
        self.done = False

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Before the base model.

        Raises:
            UnsupportedModel: the model is not what the adapter takes it for.
        """
        if self.done or self.run.aside or self.adapter.prompt(args, kwargs, 0) is None:
            return
        self.run.aside = True
        try:
            with torch.no_grad():
                found = compare(self.adapter, args, kwargs, self.hooked)
        except AtpError:
            raise
        except Exception as error:  # an untried model may fail in any way
            raise self.refused(f"it raised {type(error).__name__}: {error}") from error
        finally:
            self.run.aside = False
        for what, wrong, allowed in found:
            if not wrong <= allowed:
                raise self.refused(f"{what}, its states differ by {wrong:.1e} of their norm (allowed: {allowed:.0e})")
        self.done = True
        warnings.warn(
            f"the generic adapter passed its check on this {self.kind} model; it prunes the language model only, and counts only "
            "the FLOPs of that",
            UserWarning,
            stacklevel=3,
        )

    @property
    def kind(self) -> str:
        """The model's type."""
        config: Any = self.adapter.model.config
        return str(config.model_type)

    def refused(self, why: str) -> UnsupportedModel:
        """Say why this model cannot be pruned."""
        return UnsupportedModel(
            f"the generic adapter's check failed on this {self.kind} model: {why}. Pruning it would change its answers; "
            "use one of the types that `atp models` lists"
        )


def compare(adapter: Adapter, args: Args, kwargs: Kwargs, hooked: Hooked) -> list[tuple[str, float, float]]:
    """Run a call unhooked, with everything kept, and with half of the visual tokens hidden by the mask and pruned.

    Returns:
        What was compared, the relative error, and the largest allowed one.
    """
    given = _by_name(adapter.base, args, kwargs)
    prompt = adapter.prompt((), given, 0)
    assert prompt is not None
    live = torch.ones_like(prompt.visual) if prompt.live is None else prompt.live
    want = _states(adapter, given)
    allowed = ALLOWED.get(want.dtype, max(ALLOWED.values()))
    everything = Run(adapter, make_method("none", {}), Plan("none"))
    everything.gathers = True
    with hooked(everything):
        error = _error(_states(adapter, given), want, live)
    found = [("with every token kept", error, allowed)]
    half = Run(adapter, make_method("random", {}), Plan("random", (Step(Site("language", 0), 0.5),)))
    with hooked(half):
        got = _states(adapter, given)
    left = prompt.visual.clone()
    for row, kept in enumerate(half.trace.last("language")[0].kept):
        places = prompt.visual[row].nonzero().flatten()
        left[row, places[kept.to(places.device)]] = False
    mask = given.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        raise UnsupportedModel(
            f"the generic adapter checks itself by a mask [batch, length], got one of shape {list(mask.shape)}"
        )
    mask = torch.ones_like(prompt.ids) if mask is None else mask.clone()
    mask[:, -left.shape[1] :] = mask[:, -left.shape[1] :].masked_fill(left, 0)
    want = _states(adapter, {**given, "attention_mask": mask})
    return [
        *found,
        ("with half of the visual tokens removed instead of masked", _error(got, want, live & ~prompt.visual), allowed),
    ]


def _states(adapter: Adapter, given: Kwargs) -> Tensor:
    """Call the base model with its own copy of what it may change; last hidden states `[B, T, D]`."""
    mine = {name: copy.deepcopy(given[name]) for name in ("past_key_values",) if name in given}
    if given.get("mm_encoder_outputs") is not None:
        mine["mm_encoder_outputs"] = dict(given["mm_encoder_outputs"])
    output: Any = adapter.base(**{**given, **mine})
    states: Tensor = output[0] if isinstance(output, tuple) else output.last_hidden_state
    return states


def _by_name(module: nn.Module, args: Args, kwargs: Kwargs) -> Kwargs:
    """Name the positional arguments of a call."""
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _error(got: Tensor, want: Tensor, places: Tensor) -> float:
    """Norm of the difference over the norm, at some places."""
    got, want = got[places].double(), want[places].double()
    return float((got - want).norm() / want.norm().clamp(min=1e-30))
