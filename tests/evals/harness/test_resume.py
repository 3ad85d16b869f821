"""A run that is killed, cut off, split into shards or asked for something else: no record is lost, doubled or mixed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from atp.errors import BadInput
from atp.evals.harness import records
from atp.evals.harness.records import Journal, once, read, shard_file
from atp.plan import Plan, Site, Step

SRC = Path(__file__).parents[3] / "src"


def told(*folders: Path) -> list[dict[str, Any]]:
    """All records, sorted, without what a clock says."""
    found = list(once([path for folder in folders for path in folder.glob(records.PATTERN)]))
    for record in found:
        record["batch"] = {name: value for name, value in record["batch"].items() if name != "seconds"}
    return sorted(found, key=lambda record: tuple(map(str, records.key(record))))


def command(settings: dict[str, Any], out: Path) -> list[str]:
    """The same run as the command line says it."""
    words = ["eval", "--model", settings["model"], "--data", settings["data"], "--device", "cpu", "--out", str(out)]
    words += [
        "--tasks",
        ",".join(settings["tasks"]),
        "--methods",
        ",".join(settings["methods"]),
        "--limit",
        str(settings["limit"]),
    ]
    words += ["--budgets", ",".join(map(str, settings["budgets"])), "--corruptions", ",".join(settings["corruptions"])]
    return [*words, "--batch", str(settings["batch"]), "--max-new-tokens", str(settings["longest"])]


def kill_in_the_middle(arguments: Sequence[str], file: Path) -> int:
    """Start a command, kill -9 it when it has written some records, return how many lines lie there."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(SRC)]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    log = file.with_suffix(".log")
    log.parent.mkdir(parents=True)
    with log.open("wb") as told:
        process = subprocess.Popen([sys.executable, "-m", "atp", *arguments], env=environment, stdout=told, stderr=told)
    give_up = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < give_up:
        if file.is_file() and file.read_bytes().count(b"\n") >= 20:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, log.read_text()
    return file.read_bytes().count(b"\n")


def test_killed_and_resumed_is_the_same_as_in_one_go(evaluate, settings: dict[str, Any], tmp_path: Path) -> None:
    whole = evaluate(tmp_path / "whole")
    assert whole.made == 2 * 2 * 3 * 10  # tasks, clean and disturbed, settings, items
    file = shard_file(tmp_path / "killed", 0, 1)
    left = kill_in_the_middle(command(settings, tmp_path / "killed"), file)
    assert 20 <= left < whole.made
    os.truncate(file, file.stat().st_size - 700)  # in the middle of a line, as a power cut leaves it
    done = evaluate(tmp_path / "killed")
    assert done.dropped > 0 and done.before < left and done.before + done.made == whole.made
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    assert evaluate(tmp_path / "killed").made == 0


def test_a_batch_of_which_a_part_was_written_is_completed(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "a", tasks=("vqav2",), corruptions=())
    file = shard_file(tmp_path / "a", 0, 1)
    before = told(tmp_path / "a")
    lines = file.read_bytes().splitlines(keepends=True)
    sizes = [json.loads(line)["batch"]["size"] for line in lines]
    cut = next(n for n in range(2, len(lines)) if sizes[n] > 2 and lines[n][:200] != lines[n - 1][:200]) + 1
    file.write_bytes(b"".join(lines[:cut]))
    done = evaluate(tmp_path / "a", tasks=("vqav2",), corruptions=())
    assert (done.before, done.dropped) == (cut, 0)
    assert told(tmp_path / "a") == before


def test_shards_merge_to_the_same(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "whole")
    parts = [evaluate(tmp_path / "shared", number, shards=3) for number in range(2)]
    parts.append(evaluate(tmp_path / "elsewhere", 2, shards=3))
    assert all(part.made > 0 for part in parts)
    assert told(tmp_path / "shared", tmp_path / "elsewhere") == told(tmp_path / "whole")


def test_another_plan_is_refused_with_the_difference(evaluate, tmp_path: Path) -> None:
    plan = tmp_path / "mine.yaml"
    asked = {"plans": (str(plan),), "methods": (), "tasks": ("vqav2",), "corruptions": ()}
    Plan("uniform", (Step(Site("language", 2), 0.5),)).save(plan)
    evaluate(tmp_path / "a", **asked)
    before = told(tmp_path / "a")
    Plan("uniform", (Step(Site("language", 2), 0.25),)).save(plan)
    with pytest.raises(BadInput, match=r"another run.*cells\.vqav2\.plan:mine\.plan\.steps\[0\]\.keep: 0\.5 -> 0\.25"):
        evaluate(tmp_path / "a", **asked)
    assert told(tmp_path / "a") == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limit": 9}, "settings.limit: 10 -> 9"),
        ({"budgets": (0.9,)}, r"settings.budgets: \[1.0, 0.8\] -> \[0.9\]"),
        ({"seed": 1}, "settings.seed: 0 -> 1"),
        ({"shards": 2}, "settings.shards: 1 -> 2"),
        ({"batch": 5}, "settings.batch: 4 -> 5"),
    ],
)
def test_other_settings_are_refused_with_the_difference(evaluate, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    quick = {"tasks": ("vqav2",), "methods": ("random",), "corruptions": ()}
    evaluate(tmp_path / "a", **quick)
    with pytest.raises(BadInput, match=f"another run.*{says}"):
        evaluate(tmp_path / "a", **quick, **change)


def test_other_files_are_refused(evaluate, scenes: Path, tmp_path: Path) -> None:
    from atp.scenes.official import write

    quick = {"tasks": ("vqav2",), "methods": (), "corruptions": ()}
    evaluate(tmp_path / "a", **quick)
    write(tmp_path / "other", range(10, 16), size=64)
    with pytest.raises(BadInput, match=r"items\.vqav2\.digest"):
        evaluate(tmp_path / "a", **quick, data=str(tmp_path / "other"))


def line(item: str, **more: Any) -> dict[str, Any]:
    """A record as far as a journal looks at it."""
    return {"task": "t", "disturbance": "none", "method": "m", "budget": 0.5, "item": item, **more}


def test_a_full_disk_says_so_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "records-1-of-1.jsonl", os.write

    def full(file: int, data: bytes) -> int:
        if os.fstat(file).st_size > len(before):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:40])

    with Journal(path) as journal:
        journal.add([line("a")])
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(BadInput, match=r"the disk is full: .* holds 1 records; free some space, then run the same command"):
            journal.add([line("b"), line("c")])
        monkeypatch.setattr(os, "write", real)
        assert path.read_bytes() == before
        journal.add([line("b")])
    assert [record["item"] for record in read(path)[0]] == ["a", "b"]


def test_two_processes_cannot_write_one_shard(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Journal(tmp_path / "r.jsonl"), pytest.raises(BadInput, match="another process is writing"):
        Journal(tmp_path / "r.jsonl")


@pytest.mark.parametrize("tail", [b'{"task": "t", "it', b"\0\0\0\0", b'{"task": "t"}\n'])
def test_a_broken_last_line_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "r.jsonl"
    good = (json.dumps(line("a")) + "\n").encode()
    path.write_bytes(good + tail)
    with Journal(path) as journal:
        assert journal.dropped == len(tail)
        assert [key[-1] for key in journal.done] == ["a"]
    assert path.read_bytes() == good


def test_a_broken_line_before_the_last_is_no_accident(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"{json.dumps(line('a'))}\n{{}}\n{json.dumps(line('b'))}\n")
    with pytest.raises(BadInput, match=r"r.jsonl, line 2: no record"):
        Journal(path)


def test_a_record_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps(line("x")) + "\n")
    with pytest.raises(BadInput, match=r"the record \(t, none, m, 0.5, x\) is in .*a and again in .*b; remove one"):
        list(once([tmp_path / "a", tmp_path / "b"]))
