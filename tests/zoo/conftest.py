"""The training recipe's modules, which are no package, and a question to ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ZOO = Path(__file__).parents[2] / "zoo"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes a `name` runs for every backbone."""
    if "name" in metafunc.fixturenames:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(ZOO))
            from backbones import BACKBONES
        metafunc.parametrize("name", BACKBONES)


@pytest.fixture(autouse=True)
def _zoo_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ZOO))


@pytest.fixture
def ask_one() -> Callable[[Any, str], dict[str, Any]]:
    """Inputs of one question about a grey image, through the processor."""

    def ask(processor: Any, question: str) -> dict[str, Any]:
        from atp import build_inputs

        return build_inputs(processor, [Image.new("RGB", (150, 200), (90, 120, 60))], [question])

    return ask
