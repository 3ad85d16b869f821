"""Read a question of the scene grammar back into its program. Knows the grammar's sentences, nothing of scenes or models.

The reading shares no code with the writing (`scenes/questions.py`), so a changed question is understood from its words alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from atp.scenes.catalog import CATEGORIES, COLOR_NAMES
from atp.scenes.questions import EXTREMES, Op

Program = tuple[Op, ...]
SINGULAR = {c.name: c.name for c in CATEGORIES} | {c.plural: c.name for c in CATEGORIES}
_SIDES = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


def _alternatives(words: object) -> str:
    return "|".join(sorted((re.escape(str(w)) for w in words), key=len, reverse=True))  # type: ignore[attr-defined]


_ONE = f"(?:(?:{_alternatives(COLOR_NAMES)}) )?(?:{_alternatives(c.name for c in CATEGORIES)})"
_MANY = f"(?:{_alternatives(c.plural for c in CATEGORIES)})"


def select(phrase: str, base: int = 0) -> Program:
    """Return the operations that find "cup", "cups" or "red cup", the first being operation number `base`."""
    color, _, noun = phrase.partition(" ")
    if color in COLOR_NAMES:
        return (("select", SINGULAR[noun], ()), ("filter color", color, (base,)))
    return (("select", SINGULAR[phrase], ()),)


def _then(first: Program, name: str, argument: str) -> Program:
    return (*first, (name, argument, (len(first) - 1,)))


def _two(a: str, b: str, name: str, argument: str) -> Program:
    first = select(a)
    second = select(b, len(first))
    return (*first, *second, (name, argument, (len(first) - 1, len(first) + len(second) - 1)))


def _both(m: re.Match[str]) -> Program:
    return (("select", m[1], ()), ("exist", "?", (0,)), ("select", m[3], ()), ("exist", "?", (2,)), (m[2], "?", (1, 3)))


_FORMS: tuple[tuple[str, Callable[[re.Match[str]], Program]], ...] = (
    (rf"is there an? ({_ONE}) (and|or) an? ({_ONE})", _both),
    (rf"is there an? ({_ONE})(?: in the image)?", lambda m: _then(select(m[1]), "exist", "?")),
    (rf"are there any ({_MANY})", lambda m: _then(select(m[1]), "exist", "?")),
    (rf"how many ({_MANY}) are (?:there|in the image)", lambda m: _then(select(m[1]), "count", "?")),
    (rf"are there more ({_MANY}) than ({_MANY})", lambda m: _two(m[1], m[2], "more", "?")),
    (rf"what (?:color is|is the color of) the ({_ONE})", lambda m: _then(select(m[1]), "query", "color")),
    (rf"is the ({_ONE}) ({_alternatives(COLOR_NAMES)})", lambda m: _then(select(m[1]), "verify color", m[2])),
    (rf"is the ({_ONE}) (bigger than|smaller than) the ({_ONE})", lambda m: _two(m[1], m[3], "verify rel", m[2])),
    (rf"is the ({_ONE}) ({_alternatives(_SIDES)}) the ({_ONE})", lambda m: _two(m[1], m[3], "verify rel", m[2])),
    (rf"is the ({_ONE}) left or right of the ({_ONE})", lambda m: _two(m[1], m[2], "choose rel", "left|right")),
    (rf"is the ({_ONE}) above or below the ({_ONE})", lambda m: _two(m[1], m[2], "choose rel", "above|below")),
    (
        rf"what is the ({_alternatives(EXTREMES)}) object",
        lambda m: (("select", "object", ()), ("extreme", m[1], (0,)), ("query", "name", (1,))),
    ),
)
_COMPILED = tuple((re.compile(pattern), build) for pattern, build in _FORMS)


def parse(text: str) -> Program | None:
    """Return the program of a question, without object numbers, or None where the grammar does not say such a sentence.

    Example:
        >>> parse("How many cups are there?")
        (('select', 'cup', ()), ('count', '?', (0,)))
    """
    plain = " ".join(text.lower().removesuffix("?").split())
    for pattern, build in _COMPILED:
        if found := pattern.fullmatch(plain):
            return build(found)
    return None
