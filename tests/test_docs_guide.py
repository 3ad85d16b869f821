"""The guide's code runs as printed, and its commands have options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from atp.cli import app
from atp.scenes import make_scene, render

GUIDE = (Path(__file__).parents[1] / "docs/guide.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^atp .*", GUIDE, re.MULTILINE)


def test_code_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(render(make_scene(1, "val"), 224)[0]).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "guide.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("True True True\n")
    assert re.search(r"atp: \d\d\.\d% of the FLOPs", printed)
    assert abs(float(printed.splitlines()[-1]) - 64) <= 2
    assert len(names["answers"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    name, *rest = line.split()[1:]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {flag for parameter in command.params for flag in parameter.opts}
    given = {word for word in rest if word.startswith("--")}
    assert given <= known
