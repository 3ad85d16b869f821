"""`import atp` is light: nothing heavy is imported before it is used, and no device is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and return the names of the modules it has imported."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    source = str(Path(__file__).parents[1] / "src")
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import atp", "import atp; atp.Plan", "import atp; atp.list_models()", "import atp.cli"])
def test_light(code: str) -> None:
    assert not {"transformers", "tokenizers", "matplotlib", "fastapi", "torchvision"} & modules_after(code)


def test_bare_import_does_not_even_import_torch() -> None:
    assert not {"torch", "numpy", "PIL"} & modules_after("import atp")


def test_methods_engine_and_budget_need_no_transformers() -> None:
    code = "import atp; atp.prune, atp.list_methods(), atp.solve, atp.Trace, atp.Tokens"
    assert "transformers" not in modules_after(code)


def test_no_device_is_initialised() -> None:
    code = "import atp; atp.prune; atp.list_methods(); import torch; assert not torch.cuda.is_initialized()"
    assert "torch" in modules_after(code)


def test_every_public_name_exists() -> None:
    modules_after("import atp\nfor name in atp.__all__: getattr(atp, name)")
