"""Errors of whole words: function words dropped, word order disturbed, fillers put in. Knows words, nothing of scenes or models.

Words that carry meaning keep their order, so the skeleton of the question (`words.skeleton`), and with it the answer, stays.
Edits are drawn in one order for all severities: a higher severity holds the edits of the lower ones.
"""

from __future__ import annotations

import itertools
import random
import re

from atp.evals.robustness.words import FUNCTION, Perturbed, is_word, pieces, wanted

BEFORE = ("Um,", "Well,", "Okay,", "Hello,", "Quick question:", "Please tell me:", "Could you help me:")
BETWEEN = ("um,", "uh,", "er,", "you know,", "hmm,", "let me think,")
AFTER = ("Thanks.", "Please.", "Thank you!", "Take your time.", "Just curious.")


def dropped(text: str, severity: int, rng: random.Random) -> Perturbed:
    """Leave out function words: articles, forms of be and do, there, of, to, any."""
    parts = pieces(text)
    words = [number for number, part in enumerate(parts) if is_word(part)]
    loose = [number for number in words if parts[number].lower() in FUNCTION]
    gone = rng.sample(loose, len(loose))[: wanted(severity, len(words))]
    for number in gone:
        parts[number] = ""
        if number + 1 < len(parts) and parts[number + 1].isspace():
            parts[number + 1] = ""
    return Perturbed(re.sub(r"\s+(?=[?.!,]|$)", "", "".join(parts)), len(gone))


def order(text: str, severity: int, rng: random.Random) -> Perturbed:
    """Swap neighbouring words, at least one of the two a function word; no word moves twice."""
    parts = pieces(text)
    words = [number for number, part in enumerate(parts) if is_word(part)]
    pairs = [(a, b) for a, b in itertools.pairwise(words) if b == a + 2 and parts[a + 1].isspace()]
    moved: set[int] = set()
    limit, made = wanted(severity, len(words)), 0
    for a, b in rng.sample(pairs, len(pairs)):
        first, second = parts[a].lower(), parts[b].lower()
        if made == limit:
            break
        if moved & {a, b} or first == second or not {first, second} & FUNCTION:
            continue
        parts[a], parts[b] = parts[b], parts[a]
        moved |= {a, b}
        made += 1
    return Perturbed("".join(parts), made)


def filler(text: str, severity: int, rng: random.Random) -> Perturbed:
    """Put in what people say while they think, before, between and after."""
    parts = pieces(text)
    words = [number for number, part in enumerate(parts) if is_word(part)]
    places = rng.sample(range(len(words) + 1), len(words) + 1)  # before word 0, before word 1, ..., after the last mark
    chosen = places[: wanted(severity, len(words))]
    said = {place: rng.random() for place in places}
    for place in chosen:
        if place == len(words):
            parts.append(f" {_pick(AFTER, said[place])}")
        else:
            parts[words[place]] = f"{_pick(BETWEEN if place else BEFORE, said[place])} {parts[words[place]]}"
    return Perturbed("".join(parts), len(chosen))


def _pick(choices: tuple[str, ...], share: float) -> str:
    return choices[int(share * len(choices))]
