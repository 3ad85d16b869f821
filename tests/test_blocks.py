"""A causal mask in blocks: what attention gives is the same, what it computes is less, and only where the mask is causal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.utils.flop_counter import FlopCounterMode

from atp import blocks
from atp.blocks import CausalMask, blocked, hides_later
from atp.subset import causal, ragged_mask
from conformance.test_families import SERVED, model_of, plan_of, pruned

OTHERWISE = ("paligemma", "paligemma2", "gemma3", "blip-2-t5", "instructblip-t5", "idefics", "mllama")
"""Families whose language model sees later tokens, or which has no tokens of the image."""
LENGTHS = (257, 300, 800, 1024)


def states(length: int, batch: int = 2, heads: int = 2, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(batch, heads, length, width, dtype=torch.float64, generator=generator) for _ in range(3)]


def weighing(length: int) -> Tensor:
    weight = torch.arange(1, length + 1, dtype=torch.float64).sqrt().log().view(1, 1, 1, -1)
    return causal(length, weight) + weight


@pytest.mark.parametrize("length", LENGTHS)
def test_weights_and_padding_change_nothing(length: int) -> None:
    query, key, value = states(length)
    valid = torch.arange(length) >= torch.tensor([[0], [7]])
    for mask in (weighing(length), ragged_mask(valid, length, True, None), ragged_mask(valid, length, True, torch.float64)):
        cut = blocked(mask, True)
        assert isinstance(cut, CausalMask)
        want, got = (attention(query, key, value, attn_mask=each, scale=0.3) for each in (mask, cut))
        assert type(got) is Tensor
        rows = torch.ones(2, length, dtype=torch.bool) if mask.shape[0] == 1 else valid  # rows of padding mean nothing
        torch.testing.assert_close(got.transpose(1, 2)[rows], want.transpose(1, 2)[rows], rtol=1e-12, atol=1e-12)
        assert got.isfinite().all()


def test_it_computes_less() -> None:
    query, key, value = states(1024)
    spent = []
    for mask in (weighing(1024), blocked(weighing(1024), True)):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            attention(query, key, value, attn_mask=mask)
        spent.append(counter.get_total_flops())
    assert spent[1] == 0.625 * spent[0]  # 4 blocks: 1 + 2 + 3 + 4 of 16 quarters


def test_gradients_are_the_same() -> None:
    found = []
    for mask in (weighing(300), blocked(weighing(300), True)):
        query, key, value = (state.requires_grad_() for state in states(300))
        attention(query, key, value, attn_mask=mask).square().sum().backward()
        found.append([query.grad, key.grad, value.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(1, 1, 300, 300, dtype=torch.bool),
        weighing(300).masked_fill(torch.arange(300) == 299, 0.0),
        weighing(blocks.SHORTEST),
        weighing(300)[..., 1:, :],
        weighing(300)[..., 1:],
    ],
    ids=["all", "one later", "short", "fewer queries", "fewer keys"],
)
def test_other_masks_stay_as_they_are(mask: Tensor) -> None:
    assert not hides_later(mask) and blocked(mask, hides_later(mask)) is mask


def test_masks_are_known_by_what_they_hide() -> None:
    for mask in (weighing(300), weighing(300) > -1e9):
        assert hides_later(mask) and isinstance(blocked(mask, hides_later(mask)), CausalMask)
    assert blocked(weighing(blocks.SHORTEST), True).__class__ is Tensor


def test_it_is_a_usual_tensor_to_everything_else() -> None:
    mask, plain = blocked(weighing(300), True), weighing(300)
    query, key, value = states(300)
    for made, want in ((mask + 1, plain + 1), (mask[:, :, 1:], plain[:, :, 1:]), (mask.to(torch.float32), plain.float())):
        assert type(made) is Tensor and torch.equal(made, want)
    assert not hides_later(mask.new_zeros(1, 1, 3, 3))
    two = attention(query[..., 40:, :], key, value, attn_mask=mask[..., 40:, :])  # sliced: no longer square
    torch.testing.assert_close(two, attention(query, key, value, attn_mask=plain)[..., 40:, :], rtol=1e-12, atol=1e-12)
    torch.manual_seed(0)
    some = attention(query, key, value, attn_mask=mask, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(some, attention(query, key, value, attn_mask=plain, dropout_p=0.5))


@pytest.mark.parametrize("name", SERVED)
def test_models_answer_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch with padding and counts per input, every mask that may be is read in blocks of three."""
    family, model = SERVED[name], model_of(name)
    inputs = family.inputs(model)
    plan = replace(plan_of(model, "atp", adaptive=True), options={})
    found, used, run_blocks = [], [], blocks._in_blocks

    def counted(*given: Any) -> Tensor:
        used.append(len(found))
        return run_blocks(*given)

    monkeypatch.setattr(blocks, "_in_blocks", counted)
    monkeypatch.setattr(blocks, "block_of", lambda length: 3)
    for shortest in (10**9, 3):
        monkeypatch.setattr(blocks, "SHORTEST", shortest)
        found.append(pruned(model, family, inputs, plan, steps=3)[1])
    assert (found[0] - found[1]).abs().max() <= 1e-9
    assert set(used) == ({1} if name not in OTHERWISE else set()), "blocks where none should be, or none where they should"
