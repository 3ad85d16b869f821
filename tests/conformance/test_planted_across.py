"""The invariants of text that leaves where images are read across, each shown to fail on a planted fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import atp.subset
from atp.adapters import idefics, mllama, stacks
from atp.engine import block, cross, lines, passes
from atp.engine.census import Crossing
from conformance import test_text_across as across
from conformance.test_families import model_of

ACROSS = across.ACROSS


def first_rows(full: Tensor, subset: Any) -> Tensor:
    """Rows 0, 1, ... in the place of those that stay, of what a layer is told of its rows; latents and states stay right."""
    return full[:, : subset.size] if full.dim() == 2 or full.shape[-1] == 1 else atp.subset.gather(full, subset)


def first_lines(mask: Tensor, rows: Tensor | None, columns: Tensor | None, total: int) -> Tensor:
    moved = None if rows is None else torch.arange(rows.shape[1]).expand_as(rows)
    return atp.subset.cut_mask(mask, moved, columns, total)


def renumbered(phases: Any, subset: Any) -> Any:
    return phases if subset is None or phases is None else tuple(phase[:, : subset.size] for phase in phases)


FAULTS: dict[str, tuple[str, Any, str, Any]] = {
    "gates of other rows, idefics": ("idefics", idefics, "gather", first_rows),
    "gates of other rows, mllama": ("mllama", mllama, "gather", first_rows),
    "positions renumbered, idefics": ("idefics", passes, "gather", first_rows),
    "positions renumbered, mllama": ("mllama", passes, "cut_phases", renumbered),
    "images of other rows, idefics": ("idefics", cross, "cut_mask", first_lines),
    "images of other rows, mllama": ("mllama", cross, "cut_mask", first_lines),
    "text stays after all, idefics": ("idefics", lines.LinePass, "shrink", lambda self: None),
    "text stays after all, mllama": ("mllama", lines.LinePass, "shrink", lambda self: None),
    "padding visible, idefics": ("idefics", passes, "close", lambda mask, valid: mask),
    "padding visible, mllama": ("mllama", passes, "close", lambda mask, valid: mask),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_reference_notices(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, where, what, wrong = FAULTS[fault]
    monkeypatch.setattr(where, what, wrong)
    with pytest.raises(AssertionError, match="differs from the masked reference"):
        across.equals_reference(name, "random", "left")


def test_keys_notice_raters_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Idefics: the tiny Mllama has no cross-attention layer between the sites."""

    def arm(self: Any) -> None:
        self.capture = cross.CrossCapture(self.subset, None, None, None)

    def widened(states: Tensor, subset: Any) -> Tensor:
        if subset is None:
            return states
        wide = torch.randn(len(states), subset.length, states.shape[-1], dtype=states.dtype)
        return wide.scatter(1, subset.rows.unsqueeze(-1).expand_as(states), states)

    monkeypatch.setattr(cross.CrossPass, "_arm", arm)
    monkeypatch.setattr(cross, "_widened", widened)
    with pytest.raises(AssertionError):
        across.test_text_that_left_rates_no_key("idefics")


def test_scores_notice_phases_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idefics.Turned, "phases", stacks.OwnView.phases)
    with pytest.raises(AssertionError, match="not close"):
        across.test_scores_are_what_the_last_tokens_pay("idefics")


def test_special_ones_notice_marks_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idefics.Idefics, "marks", lambda self: frozenset())
    with pytest.raises(AssertionError):
        across.test_the_first_the_last_and_special_ones_never_leave("idefics")


@pytest.mark.parametrize("name", ACROSS)
def test_the_cache_notices_keys_of_text_that_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(self: Any, seen: int, columns: Any = None) -> None:
        announce(self, seen - 1 if columns is not None else seen, columns)

    announce = atp.cache.SubsetStore.announce
    monkeypatch.setattr(atp.cache.SubsetStore, "announce", count)
    with pytest.raises(AssertionError):
        across.test_a_second_turn_on_the_cache_is_the_conversation_in_one_piece(name)


@pytest.mark.parametrize("name", ACROSS)
def test_flops_notice_text_that_is_counted_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crossing, "text_lengths", lambda self, layers: [[count] * layers for count in self.other_counts])
    with pytest.raises(AssertionError, match="all is counted"):
        across.test_counted_flops_are_exactly_those_of_torch(name)


@pytest.mark.parametrize("name", ACROSS)
def test_states_notice_a_narrow_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross.CrossPass, "widen", lambda self, state: state)
    with pytest.raises(AssertionError):
        across.test_recorded_states_have_full_length_and_no_cache_says_the_same(name, 0)


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize("kind", [lines.LinePass, cross.CrossPass])
def test_bits_notice_a_wrong_residual(name: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    leave = kind.leave
    monkeypatch.setattr(
        kind, "leave", lambda self, output: leave(self, output) or output * (1 + 1e-6)
    )  # norms of Mllama are float32
    with pytest.raises(AssertionError):
        across.test_all_kept_is_bit_identical(name)


@pytest.mark.parametrize("name", ACROSS)
def test_layers_notice_text_that_stays_after_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.LinePass, "shrink", lambda self: None)
    with pytest.raises(AssertionError):
        across.test_every_layer_runs_on_the_text_that_stays(name)


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize("fail", [False, True])
def test_a_leaked_hook_is_noticed(name: str, fail: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model_of.cache_clear()  # this one is spoilt
    install = block._install

    def forget(run: Any, handles: Any) -> None:
        install(run, handles)
        handles.pop()

    monkeypatch.setattr(block, "_install", forget)
    with pytest.raises(AssertionError, match="changed"):
        across.test_nothing_is_left_behind(name, fail)
    model_of.cache_clear()
