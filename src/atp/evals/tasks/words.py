"""Words of captions: the official Java tokenizer, and one of our own that agrees with it on plain English. Knows strings only.

`ptb` runs Stanford's PTBTokenizer (CoreNLP 3.4.1, as coco-caption does) from the jar in `pycocoevalcap`, as published numbers do.
`plain` needs no Java; it differs on abbreviations such as "St.".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from atp.evals.tasks import java

MODES = ("plain", "ptb")
# The official list names brackets in capitals, but the tokenizer has lower-cased them by then, so they stay words: -lrb-.
DROPPED = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())

_CLITIC = re.compile(r"(?<=[a-z0-9])(n't|'(?:s|re|ve|ll|d|m))(?![a-z'])")
_SAME = str.maketrans({"\u2019": "'", "\u2013": " - ", "\u2014": " - "})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_QUOTES = ('"', "\u201c", "\u201d")
_GLUED = _BRACKETS | {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}
_TOKEN = re.compile(
    r"""n't|'(?:s|re|ve|ll|d|m)(?![a-z])      # clitics, split off before
    |(?:[a-z]\.){2,}                          # u.s.
    |\d+(?:[.,:]\d+)+|\d+/\d+                  # 3.5  1,000  10:30  1/2
    |[^\W_]+(?:[-'._/&][^\W_]+)*              # words; t-shirt, o'clock
    |\.{2,}|-{2,}|\S""",
    re.VERBOSE,
)


def plain(caption: str) -> list[str]:
    """Lower-case words of a caption; punctuation goes, brackets become words, as the official tokenizer has it.

    Example:
        >>> plain("A man's T-shirt isn't red, or blue.")
        ['a', 'man', "'s", 't-shirt', 'is', "n't", 'red', 'or', 'blue']
    """
    text = _CLITIC.sub(r" \1", caption.lower().translate(_SAME))
    words = [word for found in _TOKEN.findall(text) for word in _GLUED.get(found, found).split()]
    return [word for word in words if word not in DROPPED and word not in _QUOTES]


def ptb(captions: Sequence[str]) -> list[list[str]]:
    """Words of captions by the official tokenizer.

    Raises:
        BadInput: no Java, no `pycocoevalcap`, or the tokenizer fails.
    """
    return [[word for word in line if word not in DROPPED] for line in java.tokenizer(captions)] if captions else []


def tokenized(captions: Sequence[str], mode: str) -> list[list[str]]:
    """Words of captions under a mode."""
    return ptb(captions) if mode == "ptb" else [plain(caption) for caption in captions]
