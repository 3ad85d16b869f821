"""Records on disk: JSON lines that outlive a kill, one file a shard, read from Parquet copies too. Knows keys, no content.

A batch is one write, then a sync. After a kill the last line may be cut off: it is dropped, and its batch is asked again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from atp.errors import BadInput
from atp.evals.harness import parquet

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

KEY = ("task", "disturbance", "method", "budget", "item")
PATTERN = "records-*.jsonl"
FORMATS = ("jsonl", "parquet")
Key = tuple[Any, ...]


def key(record: Mapping[str, Any]) -> Key:
    """Return what no two records may share."""
    return tuple(record[name] for name in KEY)


def shard_file(folder: Path, number: int, count: int) -> Path:
    """Return the file of a shard, numbers from 0."""
    return folder / f"records-{number + 1}-of-{count}.jsonl"


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the records of a file; also how many bytes they take, less than the file where its last line is cut off.

    Raises:
        BadInput: a line before the last is no record.
    """
    found: list[dict[str, Any]] = []
    good = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            record = _parsed(line)
            if record is None:
                if lines.read(1):
                    raise BadInput(f"{path}, line {number}: no record; the file was changed by hand? Remove that line")
                break
            found.append(record)
            good += len(line)
    return found, good


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
        key(record)
    except (ValueError, KeyError, TypeError):
        return None
    return dict(record)


def files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold records: JSON lines, and Parquet copies whose JSON lines are not there."""
    lines = sorted(folder.glob(PATTERN))
    return lines + [p for p in sorted(folder.glob("records-*.parquet")) if p.with_suffix(".jsonl") not in lines]


def stored(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of either format."""
    yield from parquet.read(path) if path.suffix == ".parquet" else read(path)[0]


def once(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the records of several files.

    Raises:
        BadInput: one stands in two places.
    """
    seen: dict[Key, Path] = {}
    for path in files:
        for record in stored(path):
            name = key(record)
            if name in seen:
                shown = ", ".join(map(str, name))
                raise BadInput(f"the record ({shown}) is in {seen[name]} and again in {path}; remove one of the files")
            seen[name] = path
            yield record


class Journal:
    """The records of one shard, to read once and then append to. One process at a time.

    Args:
        path: made if absent.

    Attributes:
        done: keys of the records that are there.

    Raises:
        BadInput: another process writes to it; not writable; broken or doubled records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise BadInput(f"cannot write {str(path)!r}: {error.strerror}; choose another folder with --out") from None
        try:
            self._lock()
            good = read(path)[1]
            self.dropped = os.fstat(self._file).st_size - good
            os.ftruncate(self._file, good)
            self.done = {key(record) for record in once([path])}
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"another process is writing {str(self.path)!r}; wait for it, or run another --shard") from None

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records in one write and wait until they are on the disk.

        Raises:
            BadInput: the disk is full or fails; what was there before is still whole.
        """
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
        data = "".join(lines).encode()
        before = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full" if full else f"cannot write ({error.strerror})"
            raise BadInput(
                f"{what}: {str(self.path)!r} holds {len(self.done)} records; free some space, then run the same command to go on"
            ) from None
        self.done.update(map(key, records))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)
