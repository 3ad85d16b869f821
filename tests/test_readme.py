"""The README's example runs as printed, its tree is the tree, and it stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import atp
from atp.scenes import make_scene, render

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    Image.fromarray(render(make_scene(1, "val"), 224)[0]).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"atp: \d\d\.\d% of the FLOPs", printed)
    assert "kept at vision:" in printed
    assert len(code[1].splitlines()) <= 10


def test_tree_names_what_is_there() -> None:
    tree = re.search(r"```\nsrc/atp/.*?```", README, re.DOTALL)
    assert tree is not None
    base = ROOT
    for line in tree[0].splitlines()[1:-1]:
        name = line.split()[0]
        base = ROOT / "src/atp" if line.startswith("  ") else ROOT
        assert (base / name).exists(), name
    folders = {p.name for p in (ROOT / "src/atp").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= {line.split()[0].rstrip("/") for line in tree[0].splitlines() if line.startswith("  ")}


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 150
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_every_public_name_is_there_and_an_unknown_one_says_so() -> None:
    for name in atp.__all__:
        assert getattr(atp, name) is not None
    with pytest.raises(AttributeError, match="module 'atp' has no attribute 'prun'; it has AtpError"):
        atp.prun  # noqa: B018
