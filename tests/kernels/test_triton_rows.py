"""The Triton rows against those of PyTorch: on a GPU where there is one, else through the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from atp import kernels, prune, rows
from atp.plan import Plan, Site, Step

pytest.importorskip("triton", reason="triton is not installed: pip install 'atp-vlm[triton]'")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if (why := kernels.obstacle(DEVICE)) is not None:
    pytest.skip(why, allow_module_level=True)

SHAPES = {  # B, H, H_kv, R, C, d
    "one rater": (2, 2, 2, 1, 70, 16),
    "odd": (1, 3, 1, 5, 131, 20),
    "one key": (1, 2, 2, 2, 1, 8),
    "whole blocks": (1, 2, 1, 16, 128, 32),
    "grouped": (2, 6, 2, 17, 65, 24),
    "two blocks of raters": (1, 2, 2, 33, 30, 64),
    "wide heads": (1, 2, 1, 3, 40, 160),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""Ours: both sides compute in float32 and add in another order."""


def parts(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    batch, heads, groups, raters, stored, width = shape
    made = torch.Generator().manual_seed(0)
    queries = torch.randn(batch, heads, raters, width, generator=made) * 2
    keys = torch.randn(batch, groups, stored, width, generator=made) * 2
    return queries.to(DEVICE, dtype), keys.to(DEVICE, dtype)


def same(
    queries: Tensor, keys: Tensor, allowed: Tensor | None = None, scaling: float = 0.2, softcap: float | None = None
) -> None:
    want = rows.attention_rows(queries, keys, allowed, scaling, softcap)
    with kernels.using("triton"):
        got = rows.attention_rows(queries, keys, allowed, scaling, softcap)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, equal_nan=True, **CLOSE)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyTorch is what the variable says, and no test passes because the kernel never ran."""
    from atp.kernels import triton_rows

    made: list[int] = []
    real = triton_rows.attention_rows
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(triton_rows, "attention_rows", lambda *args: (made.append(1), real(*args))[1])
    yield made
    assert made


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    same(*parts(shape, dtype))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NaN on purpose, in the interpreter
@pytest.mark.parametrize("kind", ["bool", "float32", "bfloat16", "-inf"])
@pytest.mark.parametrize("per_head", [False, True])
def test_masks_and_rows_that_see_nothing(kind: str, per_head: bool) -> None:
    """Left padding of whole blocks, keys closed at random, and one row without a key: uniform, or NaN under -inf, as PyTorch."""
    shape = (2, 4, 2, 5, 150, 16)
    queries, keys = parts(shape)
    seen = torch.rand(2, 4 if per_head else 1, 5, 150, generator=torch.Generator().manual_seed(1)) > 0.3
    seen[0, ..., :130] = False
    seen[1, :, 3] = False
    seen = seen.to(DEVICE)
    if kind == "bool":
        return same(queries, keys, seen)
    dtype = torch.float32 if kind == "-inf" else getattr(torch, kind)
    closed = -torch.inf if kind == "-inf" else torch.finfo(dtype).min
    biased = torch.randn(seen.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)
    return same(queries, keys, biased.masked_fill(~seen, closed))


@pytest.mark.parametrize("shape", [(1, 1, 1, 70), (2, 1, 1, 70), (2, 1, 3, 70), (1, 4, 3, 1)])
def test_masks_are_broadcast(shape: tuple[int, ...]) -> None:
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.4
    same(*parts((2, 4, 1, 3, 70, 16)), seen.to(DEVICE))


def test_softcap_and_large_logits() -> None:
    queries, keys = parts((1, 2, 1, 4, 80, 16))
    same(queries, keys, None, 1.0, 5.0)
    same(queries * 30, keys * 30, None, 1.0)


def test_tensors_that_are_not_contiguous() -> None:
    queries, keys = parts((2, 4, 2, 5, 70, 16))
    laid = keys.transpose(1, 2).contiguous().transpose(1, 2)
    seen = torch.ones(2, 1, 70, 5, dtype=torch.bool, device=DEVICE).tril(3).transpose(2, 3)
    same(queries[:, :, ::2], laid, seen[:, :, ::2])


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_pruned_model_keeps_the_same_tokens(kind: str) -> None:
    """Sites of tower and language model, batches of unequal prompts."""
    model = tiny.model(kind, dtype=torch.float32).to(DEVICE)
    inputs = {name: value.to(DEVICE) for name, value in tiny.prompts(model, (6, 9)).items()}
    plan = Plan("atp", (Step(Site("vision", 1), 0.8), Step(Site("language", 2), 0.4)))
    found = []
    for choice in ("torch", "triton"):
        with kernels.using(choice), torch.no_grad(), prune(model, plan=plan) as run:
            model(**inputs)
        found.append([record.keep for record in run.trace.records])
    assert found[0]
    assert all(map(torch.equal, *found))
