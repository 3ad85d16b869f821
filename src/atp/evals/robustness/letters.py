"""Errors of single letters: the typist's and the scanner's. Knows words, nothing of scenes or models.

Edits come in one order for all severities, so a higher severity holds the edits of the lower ones. No letter is edited twice; an
edit that would make the word read as another one is not made (`words.still_reads`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from atp.evals.robustness.words import Perturbed, is_word, pieces, still_reads, wanted

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
OFFSETS = (0.0, 0.25, 0.75)  # how far each row of the keyboard stands to the right, in keys
OCR = {  # what a scanner takes for what: our choice among the usual confusions
    **{
        "a": "o e",
        "b": "h 6",
        "c": "e o",
        "d": "cl",
        "e": "c o",
        "f": "t",
        "g": "q 9",
        "h": "b n",
        "i": "l 1 j",
        "j": "i",
        "k": "lc",
    },
    **{"l": "1 I i", "m": "rn nn", "n": "ri u", "o": "0 c", "p": "n", "q": "g", "r": "n", "s": "5 8", "t": "f l", "u": "v n"},
    **{"v": "u y", "w": "vv", "x": "z", "y": "v", "z": "2"},
}

Edit = tuple[int, int, str]  # first letter, one past the last, what stands there instead


def _neighbours() -> dict[str, str]:
    place = {key: (x + OFFSETS[y], y) for y, row in enumerate(ROWS) for x, key in enumerate(row)}
    close = {
        a: [b for b in place if b != a and abs(xa - place[b][0]) <= 1 and abs(ya - place[b][1]) <= 1]
        for a, (xa, ya) in place.items()
    }
    return {key: "".join(keys) for key, keys in close.items()}


NEIGHBOURS = _neighbours()


def _slip(word: str, at: int, rng: random.Random) -> Edit | None:
    """One slip of the typist: a neighbouring key instead or besides, a letter left out, doubled, or before its time."""
    letter = word[at]
    near = NEIGHBOURS.get(letter.lower())
    kind = rng.choices(("instead", "besides", "left out", "doubled", "swapped"), (4, 1, 2, 1, 2))[0]
    if kind in ("instead", "besides"):
        if near is None:
            return None
        key = rng.choice(near)
        key = key.upper() if letter.isupper() else key
        return at, at + 1, key if kind == "instead" else letter + key
    if kind == "left out":
        return at, at + 1, ""
    if kind == "doubled":
        return at, at + 1, 2 * letter
    if at + 1 == len(word) or word[at + 1] == letter:
        return None
    return at, at + 2, word[at + 1] + letter


def _misread(word: str, at: int, rng: random.Random) -> Edit | None:
    """One confusion of the scanner."""
    looks = OCR.get(word[at].lower())
    return None if looks is None else (at, at + 1, rng.choice(looks.split()))


def _edited(text: str, severity: int, rng: random.Random, propose: Callable[[str, int, random.Random], Edit | None]) -> Perturbed:
    parts = pieces(text)
    letters = [(number, at) for number, part in enumerate(parts) if is_word(part) for at in range(len(part))]
    slots = [list(part) for part in parts]
    touched: set[tuple[int, int]] = set()
    limit, made = wanted(severity, len(letters)), 0
    for number, at in rng.sample(letters, len(letters)):
        edit = propose(parts[number], at, rng) if len(parts[number]) > 1 else None
        if made == limit:
            break
        if edit is None or touched & {(number, i) for i in range(edit[0], edit[1])}:
            continue
        first, last, new = edit
        trial = slots[number].copy()
        trial[first:last] = [new] + [""] * (last - first - 1)
        if still_reads(parts[number], "".join(trial)):
            slots[number] = trial
            touched |= {(number, i) for i in range(first, last)}
            made += 1
    return Perturbed("".join("".join(slot) for slot in slots), made)


def typing(text: str, severity: int, rng: random.Random) -> Perturbed:
    """Slip on the keyboard."""
    return _edited(text, severity, rng, _slip)


def ocr(text: str, severity: int, rng: random.Random) -> Perturbed:
    """Read letters wrongly, as from a scan."""
    return _edited(text, severity, rng, _misread)
