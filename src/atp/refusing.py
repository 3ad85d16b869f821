"""What the command line refuses by itself: in one red line, and before a model is loaded where no model could do it."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.text import Text

from atp.errors import BadInput

if TYPE_CHECKING:
    from atp.calibrations import Given
    from atp.engine.tables import Table


def check(
    budget: str | None,
    method: str | None,
    most: int,
    plan: str | None = None,
    overlay: str | None = None,
    calibration: str | None = None,
    model: str = "",
) -> Given | None:
    """Refuse before a model is loaded what no model could do; return the calibration, read."""
    from PIL import Image

    from atp.budget.amount import Budget
    from atp.methods import spelled
    from atp.plan import Plan

    if most < 1:
        raise BadInput(f"max_new_tokens is at least 1, got {most}; e.g. --max-new-tokens 16")
    if budget is not None:
        Budget.parse(budget)
    if plan is not None and calibration is not None:
        raise BadInput(f"both --plan {plan} and --calibration {calibration} decide how many tokens stay; leave one away")
    for name in (method, Plan.load(plan).method if plan is not None else None):
        if name is not None:
            spelled(name)
    if overlay is not None:
        form = Image.registered_extensions().get(Path(overlay).suffix.lower())
        try:
            Image.new("RGB", (8, 8)).save(io.BytesIO(), form or "none")
        except (OSError, ValueError, KeyError):  # a form that is only read, or has no colours
            why = f"{Path(overlay).suffix or 'no file extension'}: no form of pictures that can be written in colour"
            raise BadInput(f"cannot write the picture {overlay!r} ({why}); expected a path such as out.png") from None
        writable(Path(overlay), "picture", "out.png")
    if calibration is None:
        return None
    from atp.calibrations import read

    given = read(calibration, model)
    given.suits(method, budget)
    return given


def applied(given: Given | None, model: Any, method: str | None) -> tuple[str | None, Table | None]:
    """Return method and calibration for `atp.prune`, after refusing one of another model."""
    if given is None:
        return method, None
    given.fits(model)
    return given.method, given.table


def writable(path: Path, what: str, example: str, make: bool = False) -> None:
    """Say at once, and not after the work, that a file has no place; none is left there.

    Args:
        path: of the file.
        what: it is.
        example: of a path.
        make: its folder where that is absent.

    Raises:
        BadInput: it cannot be written.
    """
    there = True
    try:
        there = path.exists()
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot write the {what} {str(path)!r} ({why}); expected a writable path such as {example}") from None
    if not there:
        path.unlink()


def told(error: Any, said: list[str]) -> str:
    """Say what was given, what was expected and the nearest fix, of what the command line itself refuses."""
    words, close = error.format_message().partition(" (Possible options")[0].rstrip("."), getattr(error, "possibilities", None)
    nearest = f". Did you mean {' or '.join(sorted(close))}?" if close else "." if words[-1] not in "?!" else ""
    param, context = getattr(error, "param", None), getattr(error, "ctx", None)
    if isinstance(error, typer.BadParameter) and param is not None and context is not None:
        option = param.opts[0]
        given = next((f", got {value!r}" for name, value in itertools.pairwise(said) if name in param.opts), "")
        nearest = (
            f"{given}. Expected {option if option.startswith('-') else param.name}: {getattr(param, 'help', None) or 'a value'}"
        )
        nearest += "" if nearest[-1] in ".])" else "."
    return f"{words}{nearest} See `{context.command_path if context is not None else 'atp'} --help`"


def refuse(words: str, stderr: TextIO | None, code: int = 2) -> NoReturn:
    """Print one red line and leave with a code."""
    Console(file=stderr or sys.stderr).print(Text(f"error: {' '.join(words.split())}", style="red"), soft_wrap=True)
    raise SystemExit(code) from None
