"""The compiler takes what the interpreter runs; no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'atp-vlm[triton]'")


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    here = Path(__file__)
    own = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(here.parents[2] / "src")}
    command = [sys.executable, str(here.with_name("compiled.py")), "90"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 6 and min(sizes) > 0
