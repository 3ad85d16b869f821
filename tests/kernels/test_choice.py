"""Who computes attention rows: PyTorch unless asked, and what is told where Triton cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from atp import kernels, rows
from atp.adapters import adapt
from atp.bench.clock import HostClock
from atp.bench.execute import steps
from atp.bench.measure import generate
from atp.bench.settings import Settings
from atp.bench.sides import sides
from atp.bench.subject import Subject
from atp.errors import BadInput
from families import FAMILIES

MODULE = "atp.kernels.triton_rows"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kernel that answers with sevens, on the host."""
    made = SimpleNamespace(INTERPRETED=True, attention_rows=lambda q, k, *rest: torch.full((1, q.shape[2], k.shape[2]), 7.0))
    monkeypatch.setitem(sys.modules, MODULE, made)
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    return made


def made(dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    states = torch.ones(1, 2, 3, 4, dtype=dtype, requires_grad=grad)
    return rows.attention_rows(states, states, None, 0.5)


def test_pytorch_unless_asked(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made().sum() == pytest.approx(3)
    with kernels.using("triton"):
        assert made().eq(7).all()
        with kernels.using("torch"):
            assert made().sum() == pytest.approx(3)
        assert made().eq(7).all()
    assert made().sum() == pytest.approx(3)
    monkeypatch.setenv(kernels.VARIABLE, "triton")
    assert made().eq(7).all()


def test_auto_leaves_the_host_doubles_and_gradients_to_pytorch(planted: Any) -> None:
    with kernels.using("auto"):
        assert made().sum() == pytest.approx(3)
        assert made(torch.float64).dtype == torch.float64
        assert made(grad=True).requires_grad


@pytest.mark.parametrize(("asked", "words"), [({"dtype": torch.float64}, "float64"), ({"grad": True}, "gradients")])
def test_what_the_kernels_cannot_do_is_told(planted: Any, asked: Any, words: str) -> None:
    with kernels.using("triton"), pytest.raises(BadInput, match=f"{words}; set ATP_KERNELS=torch"):
        made(**asked)


def test_no_gpu(planted: Any) -> None:
    planted.INTERPRETED = False
    with (
        kernels.using("triton"),
        pytest.raises(BadInput, match=r"run on a CUDA device, got tensors on 'cpu'; set ATP_KERNELS=torch"),
    ):
        made()


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with kernels.using("triton"), pytest.raises(BadInput, match=r"pip install 'atp-vlm\[triton\]', or set ATP_KERNELS=torch"):
        made()


def test_unknown_names(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="one of torch, triton, auto, got 'cuda'"), kernels.using("cuda"):
        made()
    monkeypatch.setenv(kernels.VARIABLE, "tritn")
    with pytest.raises(BadInput, match="ATP_KERNELS is one of torch, triton, auto, got 'tritn'"):
        made()
    with pytest.raises(BadInput, match="--kernels is torch or triton, got 'auto'"):
        Settings(kernels="auto")


def test_a_benchmark_runs_pruned_sides_with_both(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Settings(arch="llava-clip-llama", methods=("fastv",), budgets=(0.9,), text=10, rounds=1, compare=(), kernels="triton")
    own = Subject(asked.subject, adapt(FAMILIES[asked.subject].make(dtype=torch.float32)), None, asked)
    inputs = own.inputs(1)
    found = sides(own, own.workload(inputs, 2))[0]
    assert [side.name for side in found] == ["unpruned", "fastv 0.9", "triton + fastv 0.9"]
    assert steps(asked) == len(found) * 3  # warm-up, timed, memory
    ran = []
    monkeypatch.setattr(planted, "attention_rows", lambda q, k, *rest: ran.append(1) or torch.ones(1, q.shape[2], k.shape[2]))
    for side in found:
        generate(own, inputs, side, 2, HostClock())
        assert bool(ran) is (side.kernels == "triton")
    planted.INTERPRETED = False
    with pytest.raises(BadInput, match="--kernels triton: Triton kernels run on a CUDA device"):
        sides(own, own.workload(inputs, 2))


def test_the_kernels_are_imported_when_they_are_asked_for() -> None:
    """PyTorch's compiler imports triton by itself where it is installed, so `import atp` is what stays free of it."""
    code = (
        "import sys, atp; assert not {'torch', 'triton'} & set(sys.modules)\n"
        "import atp.engine, atp.rows, torch\n"
        "atp.rows.attention_rows(*[torch.ones(1, 1, 2, 4)] * 2, None, 1.0)\n"
        f"assert {MODULE!r} not in sys.modules"
    )
    source = str(Path(__file__).parents[2] / "src")
    env = {**os.environ, "PYTHONPATH": source, kernels.VARIABLE: ""}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
