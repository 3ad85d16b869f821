"""Run a question's program on a scene: the true answer, or none where the picture does not settle it. Knows scenes, no words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from atp.errors import BadInput
from atp.evals.robustness.grammar import Program
from atp.registry import did_you_mean
from atp.scenes.catalog import BY_NAME
from atp.scenes.questions import EXTREMES, SIDE_MARGIN, SIZE_MARGIN
from atp.scenes.world import Scene, Thing

OPERATIONS = (
    *("select", "filter color", "exist", "verify color", "query", "count"),
    *("more", "verify rel", "choose rel", "extreme", "and", "or"),
)
_AXIS = {"left": ("x", 1), "right": ("x", -1), "above": ("y", 1), "below": ("y", -1)}


@dataclass(frozen=True)
class Truth:
    """A true answer and the indices of the objects that decide it."""

    answer: str
    about: tuple[int, ...]


class _Unsettled(Exception):
    """Two referents, no colour to ask for, or a margin too small to see."""


def execute(program: Program, scene: Scene) -> Truth | None:
    """Answer a program from the scene's ground truth.

    Args:
        program: operations as `scenes.questions` writes them; object numbers in "cup (3)" are not looked at.
        scene: what is asked about.

    Returns:
        None where the question has no clear answer here: no or two referents, or a margin below the grammar's own.

    Raises:
        BadInput: an operation that the grammar does not have.
    """
    values: list[frozenset[int] | str] = []
    about: set[int] = set()
    try:
        for name, argument, inputs in program:
            if name not in OPERATIONS:
                known = ", ".join(OPERATIONS)
                raise BadInput(f"unknown operation {name!r} in a program.{did_you_mean(name, OPERATIONS)} Known: {known}")
            values.append(_step(name, argument, [values[i] for i in inputs], scene))
    except _Unsettled:
        return None
    read = {i for _, _, inputs in program for i in inputs if not _narrows(program, i)}
    for number in read:
        value = values[number]
        if isinstance(value, frozenset):
            about |= value
    return Truth(str(values[-1]), tuple(sorted(about)))


def _narrows(program: Program, number: int) -> bool:
    """Whether operation `number` only feeds a filter, so its objects are not yet the ones that are asked about."""
    return any(name in ("filter color", "extreme") and number in inputs for name, _, inputs in program)


def _step(name: str, argument: str, given: list[frozenset[int] | str], scene: Scene) -> frozenset[int] | str:
    sets = [value for value in given if isinstance(value, frozenset)]
    things = scene.things
    if name == "select":
        noun = re.sub(r" \(\d+\)$", "", argument)
        return frozenset(i for i, t in enumerate(things) if noun == "object" or t.category == BY_NAME[noun])
    if name == "filter color":
        return frozenset(i for i in sets[0] if things[i].color_name == argument)
    if name == "extreme":
        return frozenset({_extreme(argument, scene)})
    if name in ("exist", "more"):
        return _yes(bool(sets[0]) if name == "exist" else len(sets[0]) > len(sets[1]))
    if name == "count":
        return str(len(sets[0]))
    if name in ("and", "or"):
        return _yes("no" not in given if name == "and" else "yes" in given)
    first, *rest = (_only(members, things) for members in sets)
    if name == "verify rel":
        return _yes(_holds(argument, first, rest[0]))
    if name == "choose rel":
        return next(word for word in argument.split("|") if _holds(word, first, rest[0]))
    if argument == "name":
        return first.name
    if first.color_name is None:
        raise _Unsettled
    return first.color_name if name == "query" else _yes(first.color_name == argument)


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _only(members: frozenset[int], things: tuple[Thing, ...]) -> Thing:
    if len(members) != 1:
        raise _Unsettled
    return things[next(iter(members))]


def _holds(relation: str, a: Thing, b: Thing) -> bool:
    if a is b:
        raise _Unsettled
    if relation in ("bigger than", "smaller than"):
        if max(a.side, b.side) < SIZE_MARGIN * min(a.side, b.side):
            raise _Unsettled
        return (a.side > b.side) == (relation == "bigger than")
    axis, sign = next(_AXIS[word] for word in relation.split() if word in _AXIS)
    gap = sign * (getattr(b, axis) - getattr(a, axis))
    if abs(gap) < SIDE_MARGIN:
        raise _Unsettled
    return bool(gap > 0)


def _extreme(word: str, scene: Scene) -> int:
    key = EXTREMES[word]
    order = sorted(range(len(scene.things)), key=lambda i: key(scene.things[i]))
    if len(order) < 2:
        raise _Unsettled
    best, second = scene.things[order[-1]], scene.things[order[-2]]
    if word in ("largest", "smallest"):
        clear = max(best.side, second.side) >= SIZE_MARGIN * min(best.side, second.side)
    else:
        clear = key(best) - key(second) >= SIDE_MARGIN / 2
    if not clear:
        raise _Unsettled
    return order[-1]
