"""The training recipe's modules, which are no package, and how each processor is called."""

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
        image = Image.new("RGB", (150, 200), (90, 120, 60))
        template = processor.chat_template or processor.tokenizer.chat_template
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        if type(processor).__name__ == "IdeficsProcessor":  # text and images interleaved
            before, after = prompt.split("<image>")
            return dict(processor(text=[[before, image, after]], return_tensors="pt"))
        return dict(processor(images=[[image]], text=[prompt], add_special_tokens=False, return_tensors="pt"))

    return ask
