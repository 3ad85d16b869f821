"""Ids of a tokenizer whose loss turns an answer round: special tokens, numbers, negations."""

from __future__ import annotations

import re
from typing import Any

NEGATION = re.compile(
    r"(.*n)?['\u2019]t|n['\u2019]t|not?|never|none|nothing|nobody|nowhere|neither|nor|without|cannot|except", re.IGNORECASE
)
COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half twice"
)
NUMBER = re.compile(r"(?!<0x[0-9a-f]{2}>).*\d.*|<0x3[0-9]>|" + COUNTED.replace(" ", "|"), re.IGNORECASE | re.DOTALL)
MARKS = "\u0120\u2581# "  # what stands for a space before a word, or for none, in vocabularies


def meaning_ids(processor: Any) -> frozenset[int]:
    """Return the ids of special tokens, and of tokens that are a number or an English negation.

    A word that a vocabulary has only in pieces is not found.

    Args:
        processor: of the model, or its tokenizer; None = no ids.
    """
    if processor is None:
        return frozenset()
    tokenizer = getattr(processor, "tokenizer", processor)
    found = set(tokenizer.all_special_ids)
    for token, number in tokenizer.get_vocab().items():
        word = token.replace("\u00e2\u0122\u013b", "\u2019").strip(MARKS)  # a curly apostrophe, spelled in bytes
        if NUMBER.fullmatch(word) or NEGATION.fullmatch(word):
            found.add(number)
    return frozenset(int(one) for one in found)
