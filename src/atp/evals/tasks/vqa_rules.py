"""VQA accuracy: the leave-one-out rule and the answer normalisations in use. Knows strings only.

Rules: Antol et al. 2015, Goyal et al. 2017 and the public evaluation code of visualqa.org, its quirks included, since published
numbers contain them. `official` compares raw strings where all annotators agree; `evalai` (LLaVA, MMF, lmms-eval) always
normalises, and first drops commas and question marks and splits off "'s".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

MODES = ("official", "evalai")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {w: str(n) for n, w in enumerate("zero one two three four five six seven eight nine ten".split())} | {"none": "0"}
ARTICLES = ("a", "an", "the")
DOTS = 32  # the official code passes the flag re.UNICODE = 32 as the largest number of replacements

# Each is restored when exactly one of its apostrophes is missing. That rule gives the official table, but for one odd entry.
_CONTRACTIONS = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're
they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've
why'll why're why's won't would've wouldn't y'all you'd you'll you're you've couldn't've hadn't've he'd've it'd've mightn't've
'ow's'at she'd've shouldn't've somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've
y'all'll y'all'd've you'd've"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS.split() for at in range(len(word)) if word[at] == "'"
} | {"somebody'd": "somebodyd"}

_DOT = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")


@lru_cache(maxsize=200_000)
def normalized(text: str) -> str:
    """Drop punctuation and articles, write number words up to ten as digits, restore apostrophes; lower case.

    Example:
        >>> normalized("The two T-shirts, 1,000.")
        '2 tshirts 1000'
    """
    out, thousands = text, _THOUSANDS.search(text)
    for mark in PUNCTUATION:
        spaced = thousands or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if spaced else " ")
    out = _DOT.sub("", out, count=DOTS)
    words = [NUMBERS.get(word, word) for word in out.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def stripped(text: str) -> str:
    """Turn newlines and tabs into spaces and strip."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def accuracy(said: str, answers: Sequence[str], mode: str = "official") -> float:
    """Mean over the annotators of min(1, matches among the others / 3).

    Args:
        said: prediction.
        answers: one of each annotator, usually ten.
        mode: one of `MODES`.

    Example:
        >>> [round(accuracy("yes", ["yes"] * k + ["no"] * (10 - k)), 2) for k in range(5)]
        [0.0, 0.3, 0.6, 0.9, 1.0]
    """
    if mode == "evalai":
        said, truth = _evalai(said), [_evalai(answer) for answer in answers]
    else:
        said, truth = stripped(said), [stripped(answer) for answer in answers]
        if len(set(truth)) > 1:
            said, truth = normalized(said), [normalized(answer) for answer in truth]
    hits = [answer == said for answer in truth]
    total = sum(hits)
    return sum(min(1.0, (total - hit) / 3) for hit in hits) / len(hits)


@lru_cache(maxsize=200_000)
def _evalai(text: str) -> str:
    plain = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalized(stripped(plain))
