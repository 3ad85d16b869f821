"""What no model could do is refused before one is loaded and before anything is drawn, in one line with the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atp.cli import main

WRITERS = {
    "run": ("--overlay", "picture", "out.png"),
    "train-gate": ("--out", "weights", "gate.safetensors"),
    "fit-counts": ("--out", "calibration", "adaptive_calibration.json"),
    "calibrate": ("--out", "certificate", "certificate.json"),
}
"""Option for the file that a command writes, what it is, and the example in the refusal."""
ASKED = {"calibrate": ["--max-drop", "0.1"], "run": ["--question", "how many dogs ?"]}
COSTLY = (
    "atp.load", "atp.loading.load", "atp.gate.training.load", "atp.gate.training.questions", "atp.evals.fit_command.asked",
    "atp.evals.certify.execute.write", "atp.evals.certify.execute.run", "atp.bench.subject.load",
)  # fmt: skip


@pytest.fixture
def refused(image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must not begin; returns its one line on stderr."""
    import atp

    assert atp.load, "resolved before it is replaced"

    def never(*given: Any, **more: Any) -> Any:
        raise AssertionError("began")

    for name in COSTLY:
        monkeypatch.setattr(name, never)
    monkeypatch.chdir(tmp_path)

    def call(command: str, *words: str | Path) -> str:
        asked = [*ASKED.get(command, []), *(["--image", str(image_file)] if command == "run" else [])]
        with pytest.raises(SystemExit) as left:
            main([command, *asked, *map(str, words)])
        lines = capsys.readouterr().err.strip().splitlines()
        assert left.value.code == 2 and len(lines) == 1
        return lines[0]

    return call


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("place", ["folder.png", "file/below.png", "/proc/none.png", "name" * 99 + ".png"])
def test_a_place_that_cannot_be_written(refused: Any, tmp_path: Path, command: str, place: str) -> None:
    option, what, example = WRITERS[command]
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    line = refused(command, option, place)
    assert line.startswith(f"error: cannot write the {what} '{place}'"), line
    assert line.endswith(f"expected a writable path such as {example}"), line
    assert sorted(tmp_path.iterdir()) == before, "left something behind"


@pytest.mark.parametrize("form", ["kept.xyz", "kept", "kept.xbm", "kept.psd"])
def test_a_picture_in_a_form_that_is_not_written_in_colour(refused: Any, form: str) -> None:
    assert f"cannot write the picture '{form}'" in refused("run", "--overlay", form)


@pytest.mark.parametrize("command", ["calibrate", "fit-counts", "train-gate", "bench"])
@pytest.mark.parametrize("given", [("--device", "nonsense"), ("--dtype", "float17")])
def test_a_device_and_a_dtype(refused: Any, command: str, given: tuple[str, str]) -> None:
    assert f"{given[1]!r}" in refused(command, *given)


def test_the_last_device_before_the_first_is_timed(refused: Any) -> None:
    assert "cannot use the device 'nonsense'" in refused("bench", "--device", "cpu,nonsense")


def test_a_finished_gate_is_not_written_over(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "gate.safetensors").write_bytes(b"mine")
    assert "'gate.safetensors' is there already" in refused("train-gate", "--out", "gate.safetensors")
    assert (tmp_path / "gate.safetensors").read_bytes() == b"mine"
