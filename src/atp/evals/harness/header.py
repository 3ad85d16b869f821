"""`run.json`: what all records of a folder have in common, so that a resumed run cannot mix two experiments."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import atp
from atp.errors import BadInput

FILE = "run.json"
PLACES = ("data", "device", "strict")
"""Settings that say where and how carefully, not what: shards on several machines may differ in them."""
SHOWN = 12  # differences in a message


def versions() -> dict[str, str]:
    """Return the versions that answers may depend on."""
    found = {"python": platform.python_version(), "atp": atp.__version__}
    for name in ("torch", "transformers", "numpy", "pillow", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the git commit of atp's own source, with `+` where files differ from it; None where it is no checkout."""
    root = Path(__file__).parents[4]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head[:12] + ("+" if _git(root, "status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True, timeout=20)
    return done.stdout.strip()


def agree(folder: Path, header: Mapping[str, Any]) -> None:
    """Write the header, or compare it with the one that is there.

    Args:
        folder: of the run.
        header: plain values.

    Raises:
        BadInput: they differ, with the differences; or the folder cannot be written.
    """
    path = folder / FILE
    mine = json.loads(json.dumps(header))
    made = folder / f"{FILE}.{os.getpid()}"
    try:
        made.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
        os.link(made, path)  # fails where another shard was first
    except FileExistsError:
        there = load(folder)
        found = list(differences(compared(there), compared(mine)))
        if found:
            raise BadInput(
                f"{str(folder)!r} holds records of another run; choose another --out, or ask for the same. "
                f"Different (there, then now): {listed(found)}"
            ) from None
    except OSError as error:
        raise BadInput(f"cannot write {str(path)!r}: {error.strerror}; free some space or choose another --out") from None
    finally:
        made.unlink(missing_ok=True)


def load(folder: Path) -> dict[str, Any]:
    """Read the header of a folder.

    Raises:
        BadInput: there is none, or it is broken.
    """
    path = folder / FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"no {FILE} in {str(folder)!r}; expected a folder that `atp eval --out` wrote") from None
    except (ValueError, TypeError) as error:
        raise BadInput(f"{str(path)!r} is broken ({error}); restore it, or begin anew in another folder") from None


def compared(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part that must be equal."""
    settings = {name: value for name, value in header["settings"].items() if name not in PLACES}
    return {**header, "settings": settings}


def differences(there: Any, now: Any, at: str = "") -> Iterator[str]:
    """Yield `place: there -> now` for every leaf in which two plain values differ."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*there, *now)):
            yield from differences(there.get(name), now.get(name), f"{at}.{name}" if at else str(name))
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        for number, (one, other) in enumerate(zip(there, now, strict=True)):
            yield from differences(one, other, f"{at}[{number}]")
    elif there != now:
        yield f"{at}: {_short(there)} -> {_short(now)}"


def listed(found: Sequence[str]) -> str:
    """Join differences, the first few of many."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
