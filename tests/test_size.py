"""Ceilings on the code: raising one is a change of its own, with a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "atp"
FILES = sorted(ROOT.rglob("*.py"))
CORE = ("engine", "adapters", "methods", "budget")  # folders; and the modules below
SHARED = ("__init__", "base", "stacks", "views", "scattered", "cache_layer", "controls", "architectures")
CORE_MODULES = ("errors", "plan", "tokens", "trace", "subset", "blocks", "rows", "fusion", "cache", "registry", "__init__")


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def code(path: Path) -> int:
    """Lines of a file that are code: not blank, no comment, no docstring."""
    text = path.read_text(encoding="utf-8")
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    kept = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in prose]
    return sum(1 for line in kept if line and not line.startswith("#"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length of every function, without decorators and docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)


PLUGINS = [p for p in FILES if p.parent.name in ("adapters", "methods") and p.stem not in SHARED]
"""One family or one paper each: nothing else knows them, so their number may grow; their size may not."""


def test_core_and_package() -> None:
    core = [p for p in FILES if p.relative_to(ROOT).parts[0] in CORE or (p.parent == ROOT and p.stem in CORE_MODULES)]
    # 4,500 until text and tiles left, 5,800 until operators were spared and text left across, 6,000 until padding was left out,
    # 6,200 until callers named sites and threads were refused, 6,300 until windows left and plans of other sites were mixed,
    # 6,500 until masked attention was causal
    assert sum(code(p) for p in core if p not in PLUGINS) <= 6_600
    # 16,000 until padding was left out, 16,500 until bad input was refused earlier, 16,900 until processors had `resize`
    assert sum(code(p) for p in FILES if p not in PLUGINS) <= 17_100


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_family_or_a_paper_is_short(path: Path) -> None:
    assert code(path) <= 160


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions(path: Path) -> None:
    assert lines(path) <= 300
    assert [f"{name}: {length}" for name, length in functions(path) if length > 50] == []


def test_no_drawers_for_everything() -> None:
    assert [p for p in FILES if p.stem in ("utils", "helpers", "common", "misc")] == []
