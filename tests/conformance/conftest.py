"""Double precision throughout: eager attention of transformers rounds its softmax to single precision."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torch.nn import functional


@pytest.fixture(autouse=True)
def double_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the softmax of double inputs be double."""
    plain = functional.softmax

    def softmax(states: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
        return plain(states, dim, _stacklevel, None if states.element_size() == 8 else dtype)

    monkeypatch.setattr(functional, "softmax", softmax)
