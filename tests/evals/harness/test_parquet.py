"""Records as Parquet: the same as the JSON lines, whole or not at all, read by `atp report`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from atp.errors import BadInput
from atp.evals.harness import parquet, records
from atp.evals.harness.execute import run
from atp.evals.harness.gather import gather
from atp.evals.harness.settings import Settings


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Records of two tasks, so with other scores; one without a score, a budget, a commit."""
    batch = {"size": 2, "steps": 3, "seconds": 0.5, "flops": {"total": 3e9}, "flops_unpruned": {"total": 4e9}}
    batch["equivalent_tokens"] = 40.5
    one = {"model": "m", "task": "vqav2", "disturbance": "none", "method": "atp", "budget": 0.6, "item": "1", "answer": "Ünïcode"}
    one |= {"score": 0.3, "scores": {"accuracy": 0.3}, "nan": 0, "image": "i", "kind": "k", "plan": "p", "seed": 1}
    one["solved_for"] = {"images": 1, "text": 11, "answer": 2}
    one |= {"batch": batch, "versions": {"torch": "2"}, "commit": "abc+"}
    two = {**one, "task": "pope", "budget": None, "answer": "", "score": None, "scores": {}, "nan": 2, "commit": None}
    return [one, two, {**one, "item": "2", "scores": {"f1": 1.0, "yes": 0.0}, "batch": {**batch, "flops": {"vision": 1.5}}}]


def test_what_was_written_is_read(tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'atp-vlm[parquet]'")
    monkeypatch.setattr(parquet, "ROWS", 2)  # more than one row group
    path = parquet.write(tmp_path / "r.parquet", iter(rows))
    assert list(parquet.read(path)) == rows
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_a_run_in_both_formats(settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'atp-vlm[parquet]'")
    quick = {**settings, "tasks": ("vqav2",), "methods": ("random",), "corruptions": ()}
    done = run(Settings(**quick), 0, tmp_path / "run", lambda *_: None, form="parquet")
    assert done.file.suffix == ".parquet" and done.made == 20
    log = done.file.with_suffix(".jsonl")
    assert list(parquet.read(done.file)) == records.read(log)[0]
    assert records.files(tmp_path / "run") == [log]  # not the same records twice
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in (tmp_path / "run" / "run.json", done.file):
        shutil.copy(path, copied)
    assert gather([copied]).entries == gather([tmp_path / "run"]).entries
    done.file.unlink()
    again = run(Settings(**quick), 0, tmp_path / "run", lambda *_: None, form="parquet")
    assert (again.before, again.made) == (20, 0) and again.file.is_file()


def test_a_copy_that_is_cut_off_or_another_file_says_so(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'atp-vlm[parquet]'")
    path = parquet.write(tmp_path / "r.parquet", iter(rows))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"r.parquet: not a whole Parquet file .*copy it again, or use the .jsonl beside it"):
        list(parquet.read(path))
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(BadInput, match="not a file of records; expected the columns model, task"):
        list(parquet.read(path))


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'atp-vlm[parquet]'")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def full(self: Path, name: str) -> Path:
        made = tmp_path / name
        made.symlink_to("/dev/full")
        return made

    monkeypatch.setattr(Path, "with_name", full)
    with pytest.raises(BadInput, match=r"cannot write '.*r.parquet' \(.*\); the JSON lines beside it are whole: free some space"):
        parquet.write(tmp_path / "r.parquet", iter(rows))
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_it_fails_before_the_work(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BadInput, match=r"pyarrow, which is not installed: pip install 'atp-vlm\[parquet\]'"):
        run(Settings(**settings), 0, tmp_path / "run", lambda *_: None, form="parquet")
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadInput, match="unknown format 'csv'; choose one of jsonl, parquet"):
        run(Settings(**settings), 0, tmp_path / "run", lambda *_: None, form="csv")


def test_lines_and_columns_of_one_shard_are_one(tmp_path: Path) -> None:
    for name in ("records-1-of-2.jsonl", "records-1-of-2.parquet", "records-2-of-2.parquet"):
        (tmp_path / name).write_text(json.dumps({}))
    assert [path.name for path in records.files(tmp_path)] == ["records-1-of-2.jsonl", "records-2-of-2.parquet"]
