"""The runner on a cluster of two nodes on this machine: the records of a single process, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atp.errors import BadInput
from atp.evals.harness import execute, scale
from atp.evals.harness.execute import run
from atp.evals.harness.header import FILE
from atp.evals.harness.records import files, key, once, shard_file
from atp.evals.harness.settings import Settings

CPU = {"num_cpus": 1, "object_store_memory": 100_000_000}


def told(folder: Path) -> list[dict[str, Any]]:
    """All records, sorted, without what a clock says."""
    found = list(once(files(folder)))
    for record in found:
        record["batch"].pop("seconds")
    return sorted(found, key=lambda record: tuple(map(str, key(record))))


def in_turn(answered: dict[str, list[Any]]) -> list[Any]:
    return [json.loads(text) for text in answered["records"]]


@pytest.fixture
def quick(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "tasks": ("vqav2",), "methods": ("fastv",), "corruptions": ()}


def test_a_worker_answers_what_the_single_process_answers(quick: dict[str, Any], tmp_path: Path) -> None:
    """The class that Ray calls, called here: no cluster needed."""
    asked = Settings(**quick)
    run(asked, 0, tmp_path / "one", lambda *_: None)
    ready = execute.prepare(asked, tmp_path / "one")
    common = json.loads(json.dumps(execute.common(ready)))
    worker = scale.Predictor(asked.to_dict(), str(tmp_path / "one"), str(Path.cwd()), common)
    made = []
    for at in range(len(ready.work)):
        row = worker({"batch": [at], "missing": [json.dumps(["none", "fastv 0.8"])]})
        assert row["batch"] == [at, at] and row["setting"] == ["none", "fastv 0.8"]
        made += [record for records in in_turn(row) for record in records]
    for record in made:
        record["batch"].pop("seconds")
    assert sorted(made, key=lambda record: tuple(map(str, key(record)))) == told(tmp_path / "one")


def test_a_node_with_other_files_refuses(quick: dict[str, Any], tmp_path: Path) -> None:
    asked = Settings(**quick)
    common = json.loads(json.dumps(execute.common(execute.prepare(asked, tmp_path))))
    common["items"]["vqav2"]["digest"] = "other"
    worker = scale.Predictor(asked.to_dict(), str(tmp_path), str(Path.cwd()), common)
    (problem,) = worker({"batch": [0], "missing": ['["none"]']})["problem"]
    assert re.search(r'^node .*another run than the driver.*items\.vqav2\.digest: "other" ->.*on every node', problem)
    lacking = scale.Predictor({**asked.to_dict(), "data": str(tmp_path / "gone")}, str(tmp_path), "/nowhere", common)
    (problem,) = lacking({"batch": [0], "missing": ['["none"]']})["problem"]
    assert re.search(r"^node .*: no folder .*gone.*put the same files and weights on every node", problem)


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scale.chosen("local", None) is None
    with pytest.raises(BadInput, match="unknown engine 'spark'; choose one of local, ray"):
        scale.chosen("spark", None)
    with pytest.raises(BadInput, match="--workers 3 has no meaning in one process"):
        scale.chosen("local", 3)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BadInput, match=r"--engine ray needs Ray .*pip install 'atp-vlm\[ray\]'"):
        scale.chosen("ray", None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'atp-vlm[ray]'")
    pytest.importorskip("ray.data", reason="Ray has no data library: pip install 'atp-vlm[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**CPU, "include_dashboard": False})
    made.add_node(**CPU)
    ray.init(address=made.address, log_to_driver=False)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_two_nodes_and_a_killed_worker_give_the_same_records(cluster: Any, quick: dict[str, Any], tmp_path: Path) -> None:
    import ray

    class Dying(scale.Predictor):
        """Kills its own process with signal 9 in the middle of the third batch, once; notes on which node it ran."""

        notes = tmp_path / "notes"

        def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
            node, fallen = ray.get_runtime_context().get_node_id(), self.notes / "fallen"
            made = super().__call__(rows)
            with (self.notes / node).open("a") as log:
                log.write(f"worker {os.getpid()} batch {int(rows['batch'][0])}\n")
            if int(rows["batch"][0]) == 2 and not fallen.exists():
                fallen.write_text(f"{os.getpid()}")
                os.kill(os.getpid(), signal.SIGKILL)
            return made

    Dying.notes.mkdir()
    asked = Settings(**quick)
    one = run(asked, 0, tmp_path / "one", lambda *_: None)
    (tmp_path / "many").mkdir()
    shutil.copy(tmp_path / "one" / FILE, tmp_path / "many")
    lines = shard_file(tmp_path / "one", 0, 1).read_bytes().splitlines(keepends=True)
    shard_file(tmp_path / "many", 0, 1).write_bytes(b"".join(lines[:3]))  # a driver that was killed wrote these
    many = run(asked, 0, tmp_path / "many", lambda *_: None, scale.on_ray(2, Dying))
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    fallen = (Dying.notes / "fallen").read_text()
    logs = [path.read_text() for path in Dying.notes.iterdir() if path.name != "fallen"]
    print(f"{one.made} records by one process; {many.before} + {many.made} by two nodes; worker {fallen} was killed; {logs}")
    assert len(logs) == 2 and any(fallen in log for log in logs)
    assert many.before == 3 and many.before + many.made == one.made and told(tmp_path / "many") == told(tmp_path / "one")
    again = run(asked, 0, tmp_path / "many", lambda *_: None, scale.on_ray(2))
    assert (again.before, again.made) == (one.made, 0)


@pytest.mark.filterwarnings("ignore")
def test_what_a_worker_refuses_comes_back_in_its_own_words(cluster: Any, quick: dict[str, Any], tmp_path: Path) -> None:
    class Refusing(scale.Predictor):
        def __init__(self, settings: dict[str, Any], *more: Any) -> None:
            super().__init__({**settings, "data": "/gone"}, *more)

    with pytest.raises(BadInput, match=r"^node .*: no folder '/gone'"):
        run(Settings(**quick), 0, tmp_path, lambda *_: None, scale.on_ray(1, Refusing))
