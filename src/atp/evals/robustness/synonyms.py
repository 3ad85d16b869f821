"""Other words for the same question. Knows the grammar's words, nothing of scenes or models.

Every synonym stands for one phrase only, so `canonical` undoes them and the grammar reads what was asked: the answer stays true.
Answers are scored as words, so what a question offers as answers ("left or right", "above or below") is not replaced.
"""

from __future__ import annotations

import random
import re

from atp.evals.robustness.words import Perturbed, is_word, pieces, wanted
from atp.scenes.questions import article

_TABLE = """is there: do you see, can you find; are there: can you see, can you spot
in the image: in the picture, in the photo, in this image
how many: what number of; what color is: which color is, what colour is, what hue is; the color of: the colour of, the hue of
to the left of: left of, on the left side of; to the right of: right of, on the right side of
above: over, higher than; below: under, beneath, lower than; bigger: larger; smaller: tinier; object: thing, item
leftmost: farthest left, furthest left; rightmost: farthest right, furthest right; highest: topmost, uppermost
lowest: bottommost; largest: biggest; smallest: tiniest
person: human; persons: humans; bicycle: bike; bicycles: bikes; car: automobile; cars: automobiles
motorcycle: motorbike; motorcycles: motorbikes; airplane: plane, aeroplane; airplanes: planes, aeroplanes; truck: lorry
trucks: lorries; traffic light: stoplight; traffic lights: stoplights; backpack: rucksack; backpacks: rucksacks
handbag: purse; handbags: purses; tie: necktie; ties: neckties; cup: mug; cups: mugs; donut: doughnut; donuts: doughnuts
couch: sofa; couches: sofas; diamond: rhombus; diamonds: rhombuses"""


def _read() -> dict[str, tuple[str, ...]]:
    rows = (row.strip().split(": ") for line in _TABLE.splitlines() for row in line.split(";"))
    return {phrase: tuple(others.split(", ")) for phrase, others in rows}


SYNONYMS = _read()
MEANING = {other: phrase for phrase, others in SYNONYMS.items() for other in others}


def _finder(phrases: dict[str, object]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"\b(?P<article>an? )?(?P<phrase>{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)


_FORTH, _BACK = _finder(dict(SYNONYMS)), _finder(dict(MEANING))


def _put(found: re.Match[str], new: str) -> str:
    """The new phrase in the place of a match, its article and its capital set right."""
    text = article(new) if found["article"] else new
    return text[0].upper() + text[1:] if found[0][0].isupper() else text


def _offered(text: str, found: re.Match[str]) -> bool:
    """Whether the phrase may be the answer itself: one side of "or", unless the question is one of yes and no."""
    return " or " in text and found["phrase"].lower() not in ("is there", "are there") and not text.lower().startswith("is there")


def synonyms(text: str, severity: int, rng: random.Random) -> Perturbed:
    """Replace phrases; a higher severity holds the replacements of the lower ones."""
    found = [match for match in _FORTH.finditer(text) if not _offered(text, match)]
    choices = {match.start(): rng.choice(SYNONYMS[match["phrase"].lower()]) for match in found}
    words = sum(is_word(piece) for piece in pieces(text))
    chosen = rng.sample(found, len(found))[: wanted(severity, words)]
    for match in sorted(chosen, key=lambda m: m.start(), reverse=True):
        text = text[: match.start()] + _put(match, choices[match.start()]) + text[match.end() :]
    return Perturbed(text, len(chosen))


def canonical(text: str) -> str:
    """Return the question in the grammar's own words.

    Example:
        >>> canonical("Do you see a mug in the photo?")
        'Is there a cup in the image?'
    """

    def back(found: re.Match[str]) -> str:
        offered = text[: found.start()].endswith(" or ")  # "left or right of" is the grammar's own
        return found[0] if offered else _put(found, MEANING[found["phrase"].lower()])

    return _BACK.sub(back, text)
