"""Records as Parquet, for tools that read columns. Needs pyarrow: `pip install 'atp-vlm[parquet]'`.

A Parquet file has its index at the end, so one that is being written does not outlive a kill. The log that a run goes on from is
therefore JSON lines always; its Parquet copy is made, whole or not at all, when a shard has all its answers.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from atp.errors import BadInput

ROWS = 10_000  # of a row group: a few MB


def _arrow(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise BadInput(
            "Parquet needs pyarrow, which is not installed: pip install 'atp-vlm[parquet]'; or use JSON lines"
        ) from None


def check() -> None:
    """Fail before the work, not after it.

    Raises:
        BadInput: pyarrow is not installed.
    """
    _arrow("pyarrow.parquet")


def schema() -> Any:
    """Return the columns, the fields of a record; what differs by task or part is a map."""
    pa = _arrow("pyarrow")
    text, number, whole = pa.string(), pa.float64(), pa.int64()
    numbers, texts = pa.map_(text, number), pa.map_(text, text)
    batch = {
        "size": whole,
        "steps": whole,
        "seconds": number,
        "flops": numbers,
        "flops_unpruned": numbers,
        "equivalent_tokens": number,
    }
    fields = dict.fromkeys(("model", "task", "disturbance", "method"), text) | {"budget": number, "item": text, "answer": text}
    fields |= {"score": number, "scores": numbers, "nan": whole, "image": text, "kind": text, "plan": text, "seed": whole}
    fields["solved_for"] = pa.map_(text, whole)
    return pa.schema(fields | {"batch": pa.struct(batch), "versions": texts, "commit": text})


def write(path: Path, records: Iterator[dict[str, Any]]) -> Path:
    """Write records, in a file beside `path` that takes its name when it is whole.

    Raises:
        BadInput: pyarrow is not installed; the disk is full or fails.
    """
    pa, parquet = _arrow("pyarrow"), _arrow("pyarrow.parquet")
    columns, made = schema(), path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with parquet.ParquetWriter(made, columns, compression="zstd") as file:
            while rows := list(islice(records, ROWS)):
                file.write_table(pa.Table.from_pylist(rows, schema=columns))
        with made.open("rb") as whole:
            os.fsync(whole.fileno())
        made.replace(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise BadInput(
            f"cannot write {str(path)!r} ({why}); the JSON lines beside it are whole: free some space, run again"
        ) from None
    finally:
        made.unlink(missing_ok=True)
    return path


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, as `write` was given them.

    Raises:
        BadInput: pyarrow is not installed; not a whole Parquet file of records.
    """
    pa, parquet = _arrow("pyarrow"), _arrow("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema()):
                raise BadInput(f"{path}: not a file of records; expected the columns {', '.join(schema().names)}")
            for rows in file.iter_batches(ROWS):
                yield from rows.to_pylist(maps_as_pydicts="strict")
    except (pa.ArrowInvalid, OSError) as error:
        why = " ".join(str(error).split())[:120]
        raise BadInput(f"{path}: not a whole Parquet file ({why}); copy it again, or use the .jsonl beside it") from None
