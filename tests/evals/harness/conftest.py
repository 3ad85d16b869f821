"""A small folder of scenes in the official schemas, and a way to run the harness over it with the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atp.evals.harness.execute import Done, run
from atp.evals.harness.settings import Settings
from atp.scenes.official import write

Runner = Callable[..., Done]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes of 64 pixels. Read only."""
    folder = tmp_path_factory.mktemp("scenes")
    write(folder, range(6), size=64)
    return folder


@pytest.fixture
def settings(model_dir: Path, scenes: Path) -> dict[str, Any]:
    """Two tasks, two settings that prune, one disturbance of the questions, small batches."""
    return {
        "model": str(model_dir),
        "tasks": ("vqav2", "pope"),
        "methods": ("fastv", "random"),
        "budgets": (1.0, 0.8),
        "corruptions": ("typing:2",),
        "data": str(scenes),
        "limit": 10,
        "batch": 4,
        "longest": 3,
        "device": "cpu",
    }


@pytest.fixture
def evaluate(settings: dict[str, Any]) -> Runner:
    """Run the harness into a folder, with some settings changed."""

    def go(out: Path, number: int = 0, **changes: Any) -> Done:
        return run(Settings(**{**settings, **changes}), number, out, lambda *told: None)

    return go
