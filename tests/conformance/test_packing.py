"""Padding of ragged batches runs through attention only: nothing changes but the rows that are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import invariants
import tiny
from atp.adapters import adapt
from atp.adapters.base import CrossView
from atp.engine import packing, passes, prune
from atp.engine.packing import packing_of
from atp.subset import Subset, build
from conformance.test_families import SERVED, model_of, plan_of, pruned


def ragged() -> Subset:
    """Two inputs of four tokens: the first keeps places 1 and 3, the second only place 2."""
    live = torch.tensor([[False, True, False, True], [False, False, True, False]])
    return build(live, [2, 1])


def test_packing_by_hand() -> None:
    laid = packing_of(ragged(), 3)
    assert laid is not None
    full = torch.arange(8.0).view(2, 4, 1)
    packed = laid.gather(full)
    assert packed.flatten().tolist() == [1, 3, 6]
    padded = laid.pad(packed)
    assert padded.shape == (2, 2, 1) and padded.flatten().tolist()[:2] == [1, 3] and padded[1, 1] == 6
    assert torch.equal(laid.pack(padded), packed)
    assert laid.scatter(full, -packed).flatten().tolist() == [0, -1, 2, -3, 4, 5, -6, 7]


def test_little_or_no_padding_and_empty_inputs_stay_padded() -> None:
    even = build(torch.ones(2, 3, dtype=torch.bool), [3, 3])
    assert packing_of(even, 6) is None
    live = torch.ones(2, 100, dtype=torch.bool)
    live[0, 0] = False
    assert packing_of(build(live, [99, 100]), 199) is None  # half a percent
    assert packing_of(build(torch.zeros(2, 3, dtype=torch.bool), [0, 0]), 0) is None


@contextmanager
def rows_in(modules: list[nn.Module]) -> Iterator[list[tuple[int, ...]]]:
    """Note the shapes of what modules are called with."""
    found: list[tuple[int, ...]] = []
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: found.append(tuple((*args, *kwargs.values())[0].shape)), with_kwargs=True
        )
        for module in modules
    ]
    yield found
    for handle in handles:
        handle.remove()


def test_only_attention_sees_padding() -> None:
    model = tiny.model()
    inputs, plan = tiny.prompts(model, images=(1, 2, 1)), tiny.plan("atp", adaptive=True)
    tower, text = adapt(model).vision.layers, adapt(model).language.layers
    with prune(model, plan=plan) as run, rows_in([layer.mlp for layer in (*tower, *text)]) as rows, torch.no_grad():
        model(**inputs)
    kept = run.trace.kept("vision")
    last = kept[max(kept)]
    assert len(set(last)) > 1, "the test needs unequal counts"
    shape = run.shape
    assert rows[len(tower) - 1][:2] == (1, sum(last) + shape.prefix * len(last))
    assert all(one[0] == 1 for one in rows[-2:])
    assert run.report().packed == ("language", "vision") and "in attention only" in str(run.report())


@pytest.mark.parametrize("name", SERVED)
def test_a_family_answers_as_with_padding_everywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, model = SERVED[name], model_of(name)
    inputs, plan = own.inputs(model), plan_of(model, "atp", adaptive=True)
    tokens, packed, run = pruned(model, own, inputs, plan, steps=4)
    padding = run.report().padding
    ragged = {view.name for view in adapt(model).views if padding.get(view.name, 0) > packing.LEAST and view.mixer(0) is not None}
    assert set(run.report().packed) <= ragged
    monkeypatch.setattr(passes, "packing_of", lambda *given: None)
    want_tokens, want, plain = pruned(model, own, inputs, plan, steps=4)
    assert plain.report().packed == () and plain.report().padding == padding
    assert torch.equal(tokens, want_tokens)
    torch.testing.assert_close(packed, want, rtol=0, atol=1e-9)
    if "language" in ragged and not isinstance(adapt(model).language, CrossView):
        assert "language" in run.report().packed


def test_training_is_padded() -> None:
    model = tiny.model()
    with prune(model, plan=tiny.plan("atp", adaptive=True)) as run:
        model(**tiny.prompts(model, images=(1, 2, 1)))
    assert run.report().packed == ()


@pytest.mark.parametrize("where", ["self_attn", "layer_norm2"])
def test_nothing_stays_hooked_where_a_layer_breaks_off(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    broken = getattr(adapt(model).vision.layers[-1], where)

    def fail(*args: Any, **kwargs: Any) -> Tensor:
        raise KeyError("planned")

    before = invariants.fingerprint(model)
    monkeypatch.setattr(broken, "forward", fail)
    with pytest.raises(KeyError, match="planned"), torch.no_grad(), prune(model, plan=tiny.plan("atp", adaptive=True)):
        model(**tiny.prompts(model, images=(1, 2, 1)))
    monkeypatch.undo()
    assert invariants.fingerprint(model) == before
