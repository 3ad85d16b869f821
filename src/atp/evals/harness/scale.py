"""The same run on a cluster: batches as rows of a Ray data set, the model as a `map_batches` class.

Workers answer, the driver alone writes: the log, its resumption and its records are those of a single process. Ray starts a
killed worker again and gives it the batches whose answers had not come; what the driver has written is not asked again.

Every node needs atp, the model and the files under the same names, e.g. on a shared file system; a worker that finds other
weights, items or plans than the driver refuses to answer. Needs Ray: `pip install 'atp-vlm[ray]'`.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atp.errors import AtpError, BadInput
from atp.evals.harness import execute, header
from atp.evals.harness.execute import Answered, Engine, Left, Prepared
from atp.evals.harness.settings import Settings

ENGINES = ("local", "ray")
STORE = 200_000_000  # bytes of Ray's object store on this machine: records are text
BLOCKS = 64  # a worker; what a killed one must answer again is one block


class Predictor:
    """A model with its tasks, made once in each worker; a call answers one batch.

    Args:
        settings: of the run, as `Settings.to_dict` writes them.
        out: folder of the run.
        place: working folder of the driver, from which relative names count.
        common: from `execute.common`, of the driver.
    """

    def __init__(self, settings: dict[str, Any], out: str, place: str, common: dict[str, Any]) -> None:
        if Path(place).is_dir():
            os.chdir(place)  # the process is this worker's own
        self.refused = ""
        try:
            self.ready = execute.prepare(Settings.from_dict(settings), Path(out))
        except AtpError as error:  # Ray tries a class that fails here for ever, and shows its own words
            self.refused = str(error)
            return
        mine = json.loads(json.dumps(execute.common(self.ready)))
        found = list(header.differences(header.compared(common), header.compared(mine)))
        if found:
            self.refused = f"it has another run than the driver. Different (driver, here): {header.listed(found)}"
        self.source = execute.origin()

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """Answer batches.

        Args:
            rows: columns `batch`, its number, and `missing`, the settings to ask it of as a JSON list.

        Returns:
            Columns `batch`, `setting`, `records`, a JSON list, and `problem`, one row for each batch and setting. A problem
            is what atp refuses this batch or this node for; as an exception it would come back in Ray's words.
        """
        made: dict[str, list[Any]] = {"batch": [], "setting": [], "records": [], "problem": []}

        def add(at: int, label: str, answered: Sequence[Any], problem: str = "") -> None:
            for name, value in zip(made, (at, label, json.dumps(answered, allow_nan=False), problem), strict=True):
                made[name].append(value)

        for at, missing in zip(rows["batch"], rows["missing"], strict=True):
            try:
                if self.refused:
                    raise BadInput(f"{self.refused}; put the same files and weights on every node")
                for label, answered in execute.answers(self.ready, int(at), json.loads(str(missing)), self.source):
                    add(int(at), label, answered)
            except AtpError as error:
                add(int(at), "", [], f"node {platform.node()}: {error}")
        return made


def on_ray(workers: int | None = None, predictor: type[Predictor] = Predictor) -> Engine:
    """Return an engine for `execute.run` that answers on the cluster Ray is connected to, or on one of this machine.

    Args:
        workers: processes with a model each; None = one for each GPU of the cluster, or for each CPU where it has none.
        predictor: what they run.

    Raises:
        BadInput: Ray is not installed; fewer than one worker.

    Example:
        >>> from atp.evals.harness.execute import run
        >>> run(settings, 0, out, step, on_ray(workers=8))  # doctest: +SKIP
    """
    try:
        ray: Any = importlib.import_module("ray")
        data: Any = importlib.import_module("ray.data")
    except ModuleNotFoundError as error:
        raise BadInput(f"--engine ray needs Ray ({error}): pip install 'atp-vlm[ray]'; or leave --engine out") from None
    if workers is not None and workers < 1:
        raise BadInput(f"workers is at least 1, got {workers}")

    def engine(ready: Prepared, left: Sequence[Left], out: Path) -> Iterator[Answered]:
        if not left:
            return
        _connect(ray)
        has = ray.cluster_resources()
        gpus = 0 if ready.settings.device == "cpu" else int(has.get("GPU", 0))
        count = min(workers or gpus or int(has.get("CPU", 1)), len(left))
        rows = [{"batch": at, "missing": json.dumps(missing)} for at, missing in left]
        asked = data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS * count))
        asked.context.enable_progress_bars = False
        common = json.loads(json.dumps(execute.common(ready)))
        answered = asked.map_batches(
            predictor,
            fn_constructor_args=(ready.settings.to_dict(), str(out.resolve()), str(Path.cwd()), common),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=count),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        for row in answered.iter_rows():
            if row["problem"]:
                raise BadInput(str(row["problem"]))
            yield int(row["batch"]), str(row["setting"]), json.loads(row["records"])

    return engine


def _connect(ray: Any) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine; nothing where a program did so before."""
    if ray.is_initialized():
        return
    here = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "object_store_memory": STORE, "include_dashboard": False}
    ray.init(log_to_driver=False, **here)


def chosen(name: str, workers: int | None) -> Engine | None:
    """Return the engine of a name, None = this process.

    Raises:
        BadInput: no such engine; workers without a cluster; whatever `on_ray` refuses.
    """
    if name not in ENGINES:
        raise BadInput(f"unknown engine {name!r}; choose one of {', '.join(ENGINES)}")
    if name == "local" and workers is not None:
        raise BadInput(f"--workers {workers} has no meaning in one process; add --engine ray, or run several --shard i/n")
    return on_ray(workers) if name == "ray" else None
