"""Each invariant is shown to fail on a planted fault: a test that cannot fail proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

import atp.subset
import invariants
import tiny
from atp.cache import SubsetStore
from atp.engine import block, choice, passes, report
from atp.methods.fastv import FastV
from atp.tokens import Tokens


def inputs(model: Any) -> dict[str, Tensor]:
    return tiny.prompts(model, images=(1, 2, 1))


def renumber(phases: Any, subset: Any) -> Any:
    return phases if subset is None or phases is None else tuple(phase[:, : subset.size] for phase in phases)


def first_columns(mask: Tensor, rows: Tensor | None, columns: Tensor | None, total: int) -> Tensor:
    moved = None if columns is None else torch.arange(columns.shape[1]).expand_as(columns)
    return atp.subset.cut_mask(mask, rows, moved, total)


def see_padding(mask: Tensor, valid: Tensor) -> Tensor:
    return mask


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (passes, "cut_phases", renumber),
        (passes, "cut_mask", first_columns),
        (passes, "close", see_padding),
        (passes, "ragged_mask", lambda valid, *rest: None),
    ],
    ids=["positions renumbered", "columns not gathered", "padding visible", "ragged tower unmasked"],
)
def test_the_reference_notices(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any) -> None:
    model = tiny.model()
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(AssertionError, match="differs from the masked reference"):
        invariants.equals_reference(model, inputs(model), tiny.plan("atp", adaptive=True), steps=3)


@pytest.mark.parametrize("where", ["slots", "back", "flat"])
def test_the_reference_notices_rows_that_are_packed_to_a_wrong_place(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = tiny.model(), passes.packing_of

    def rolled(*given: Any) -> Any:
        laid = whole(*given)
        return None if laid is None else replace(laid, **{where: getattr(laid, where).roll(1)})

    monkeypatch.setattr(passes, "packing_of", rolled)
    with pytest.raises(AssertionError, match="differs from the masked reference"):
        invariants.equals_reference(model, inputs(model), tiny.plan("atp", adaptive=True), steps=3)


def test_the_reference_notices_a_decode_step_that_forgets_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    whole = atp.cache.Columns.extend

    def extend(self: Any, first: int, count: int) -> Any:
        made = whole(self, first, count)
        return type(made)(made.positions, None)

    monkeypatch.setattr(atp.cache.Columns, "extend", extend)
    with pytest.raises(AssertionError, match="differs from the masked reference"):
        invariants.equals_reference(model, inputs(model), tiny.plan("atp", adaptive=True), steps=3)


def test_keep_all_notices_one_lost_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    whole = choice.fixed_counts
    monkeypatch.setattr(choice, "fixed_counts", lambda *args: [n - 1 for n in whole(*args)])
    with pytest.raises(AssertionError):
        invariants.keep_all_is_identical(model, inputs(model), tiny.plan("uniform", keep=1.0))


def test_keep_all_notices_a_wrong_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    leave = passes.StackPass.leave
    monkeypatch.setattr(passes.StackPass, "leave", lambda self, output: leave(self, output) or output * (1 + 1e-12))
    with pytest.raises(AssertionError, match="logits changed"):
        invariants.keep_all_is_identical(model, inputs(model), tiny.plan("uniform", keep=1.0))


def test_singles_notice_the_first_prompt_deciding_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in published code that reads `attention[0]`."""
    model = tiny.model()

    def score(self: FastV, tokens: Tokens) -> Tensor:
        return tokens.rows["last"].mean()[:1].expand_as(tokens.alive)

    monkeypatch.setattr(FastV, "score", score)
    with pytest.raises(AssertionError, match="alone"):
        invariants.batch_equals_singles(model, tiny.prompts(model), tiny.plan("fastv"), (1, 1, 1))


def test_lengths_notice_a_physical_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    monkeypatch.setattr(SubsetStore, "get_seq_length", lambda self: self.stored)
    with pytest.raises(AssertionError, match="says"):
        invariants.cache_keeps_its_lengths(model, tiny.prompts(model, (6,)), tiny.plan("fastv"), steps=3)


def test_lengths_notice_a_crop_of_the_keys_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    crop = SubsetStore.crop

    def half(self: SubsetStore, count: int) -> None:
        seen = self.seen
        crop(self, count)
        self.seen = seen

    monkeypatch.setattr(SubsetStore, "crop", half)
    with pytest.raises(AssertionError, match="says"):
        invariants.cache_keeps_its_lengths(model, inputs(model), tiny.plan("fastv"))


@pytest.mark.parametrize("part", ["selection", "connector"])
def test_flops_notice_a_part_left_out(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    model = tiny.model()
    total = report._sum

    def without(parts: Any) -> Any:
        return atp.budget.cost.Flops(**{**vars(total(parts)), part: 0.0})

    monkeypatch.setattr(report, "_sum", without)
    with pytest.raises(AssertionError, match="torch says"):
        invariants.counted_flops_are_true(model, tiny.prompts(model, (12,)), tiny.plan("atp"), tolerance=0.005)


def test_a_leaked_hook_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.make()
    removed: list[RemovableHandle] = []
    install = block._install

    def forget(run: Any, handles: Any) -> None:
        install(run, handles)
        removed.append(handles.pop())

    monkeypatch.setattr(block, "_install", forget)
    with pytest.raises(AssertionError, match="changed"):
        invariants.leaves_no_trace(model, tiny.prompts(model), tiny.plan("atp"))


def test_a_forward_put_in_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.make()
    install = block._install

    def patch(run: Any, handles: Any) -> None:
        install(run, handles)
        model.lm_head.forward = model.lm_head.forward

    monkeypatch.setattr(block, "_install", patch)
    with pytest.raises(AssertionError, match="changed"):
        invariants.leaves_no_trace(model, tiny.prompts(model), tiny.plan("atp"))
