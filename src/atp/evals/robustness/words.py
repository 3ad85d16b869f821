"""Words of a question: which carry its meaning, which hold it together, whether a misspelt one still reads. Knows text only.

The words of the scene grammar are known; of other words only numbers are protected, so perturbed questions of other data sets
mean what they meant only as far as people's typing errors do.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from atp.scenes.catalog import CATEGORIES, COLOR_NAMES
from atp.scenes.questions import EXTREMES

SHARES = (0.05, 0.10, 0.20, 0.30, 0.40)  # edits per letter or per word at severity 1 to 5: our choice
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RELATIONS = (*EXTREMES, "left", "right", "above", "below", "bigger", "smaller", "more", "than", "and", "or", "not", "no")
NAMES = frozenset(word for c in CATEGORIES for noun in (c.name, c.plural) for word in noun.split())
CONTENT = NAMES | set(COLOR_NAMES) | set(NUMBERS) | set(RELATIONS) | {"how", "many", "color", "object"}
FUNCTION = frozenset(("a an the is are was were be been do does did there of to any").split())  # may be left out
LEXICON = CONTENT | FUNCTION | {"what", "in", "image"}
_LETTERS = {word: frozenset(word) for word in LEXICON}


@dataclass(frozen=True)
class Perturbed:
    """A question with some edits.

    Attributes:
        text: what to ask instead.
        edits: how many were made; fewer than the severity asks for where the question has no room for more, 0 = unchanged.
    """

    text: str
    edits: int


def pieces(text: str) -> list[str]:
    """Split into words, blanks and single marks; joined they are the text again."""
    return re.findall(r"\w+(?:['’]\w+)*|\s+|[^\w\s]", text)


def is_word(piece: str) -> bool:
    """Whether a piece is a word or a number."""
    return piece[0].isalnum() or piece[0] == "_"


def wanted(severity: int, units: int) -> int:
    """Return how many edits a severity asks of so many letters or words: the share rounded up, at least one."""
    return max(1, math.ceil(SHARES[severity - 1] * units - 1e-9))


def distance(a: str, b: str) -> int:
    """Return how many letters must be put in, left out, replaced or swapped with the next one (optimal string alignment)."""
    older, old, row = [0] * (len(b) + 1), [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, old, row = old, row, [i] + [0] * len(b)
        for j, y in enumerate(b, 1):
            row[j] = min(old[j] + 1, row[j - 1] + 1, old[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]


@lru_cache(maxsize=100_000)
def still_reads(word: str, changed: str) -> bool:
    """Whether a misspelt word cannot be taken for another one.

    A word that carries meaning must stay strictly nearer to what was written than every other word of the grammar; any other word
    must not become one that carries meaning; numbers must not change at all. Case does not matter.

    Example:
        >>> still_reads("cat", "cst"), still_reads("cat", "car"), still_reads("bear", "baer")
        (True, False, True)
    """
    word, changed = word.lower(), changed.lower()
    if word == changed:
        return True
    if word in NUMBERS or any(letter.isdigit() for letter in word) or not changed or changed.isdigit():
        return False
    if word not in CONTENT:
        return changed not in CONTENT
    near, letters = distance(word, changed), set(changed)
    for other in LEXICON - {word}:
        # an edit changes the length by one, takes one letter away and brings one: most words need no closer look
        possible = abs(len(other) - len(changed)) <= near
        possible = possible and len(_LETTERS[other] - letters) <= near and len(letters - _LETTERS[other]) <= near
        if possible and distance(other, changed) <= near:
            return False
    return True


def skeleton(text: str) -> tuple[str, ...]:
    """Return the words that carry the meaning, in order, lower case; questions with equal skeletons ask the same."""
    return tuple(p.lower() for p in pieces(text) if is_word(p) and p.lower() not in FUNCTION)
