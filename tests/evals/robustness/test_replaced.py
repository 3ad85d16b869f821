"""Plausible wrong words: where they stand, and that they are both."""

from __future__ import annotations

import itertools
import random

import pytest

from atp.errors import BadInput
from atp.evals.robustness.replaced import Generator, grammar_generator, replace_words
from atp.evals.robustness.words import CONTENT, LEXICON, NUMBERS, is_word, pieces, wanted
from atp.scenes import ask, make_scene

TEXTS = [question.text for seed in range(10) for question in ask(make_scene(seed, "val"), 10)]


def test_the_narrowest_context_that_knows_another_word_decides() -> None:
    known = Generator(["the cat sat", "the dog sat", "the dog ran", "a cat ran"])
    assert known.weights(["the", "dog", "sat"], 1) == {"cat": 1}  # the + sat, whole window
    assert known.weights(["the", "cow", "sat"], 1) == {"cat": 1, "dog": 1}
    assert known.weights(["so", "the", "cow", "sat", "down"], 2) == {"cat": 1, "dog": 1}  # one word on each side
    assert known.weights(["the", "cow", "flew"], 1) == {"cat": 1, "dog": 2}  # the left one
    assert known.weights(["some", "cow", "sat"], 1) == {"cat": 1, "dog": 1}  # the right one
    assert known.weights(["my", "cow", "flew"], 1) == {"the": 3, "a": 1, "cat": 2, "dog": 2, "sat": 2, "ran": 2}


def test_a_generator_with_one_word_says_so() -> None:
    with pytest.raises(BadInput, match="the generator knows no word but 'cat'; give it more questions to count"):
        Generator(["cat"]).weights(["cat"], 0)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_mask_says_which_words_are_wrong(severity: int) -> None:
    for text in TEXTS:
        found = replace_words(text, severity, text)
        before = [p for p in pieces(text) if is_word(p)]
        assert found.mask == tuple(a.lower() != b.lower() for a, b in zip(before, found.words, strict=True))
        assert sum(found.mask) == min(wanted(severity, len(before)), len(before))
        assert [found.text[a:b] for a, b in found.spans] == list(found.words)
        assert {word.lower() for word in found.words} <= LEXICON


def test_higher_severity_holds_the_places_of_the_lower() -> None:
    for text in TEXTS[:40]:
        masks = [replace_words(text, severity, text).mask for severity in range(1, 6)]
        assert all(not (low and not high) for a, b in itertools.pairwise(masks) for low, high in zip(a, b, strict=True))


def test_words_are_more_plausible_than_any_words() -> None:
    """Between both its neighbours a wrong word has been seen far more often than a random one."""
    known, rng = grammar_generator(), random.Random(0)
    vocabulary = sorted(known.seen[None, None, None, None])
    ours = chance = total = 0
    for text in TEXTS:
        found = replace_words(text, 1, text)
        if sum(found.mask) == 1:
            at, words = found.mask.index(True), [word.lower() for word in found.words]
            around = ["", *words, ""]
            fits = known.seen.get((None, around[at], around[at + 2], None), {})
            ours += words[at] in fits
            chance += rng.choice(vocabulary) in fits
            total += 1
    assert total > 80 and ours > 0.9 * total and chance < 0.5 * total


def test_generator_has_seen_the_grammar() -> None:
    assert set(grammar_generator().seen[None, None, None, None]) >= CONTENT - set(NUMBERS) - {"not", "no"}


def test_tokens_of_replaced_words() -> None:
    found = replace_words("Is there a cup?", 3, "k", generator=Generator(["is there a vase", "are there any vases"]))
    at = found.mask.index(True)
    start, end = found.spans[at]
    middle = (start + end) // 2 or end
    offsets = [(0, 0), (start, middle), (middle, end), *(span for span in found.spans if span != (start, end))]
    assert found.tokens(offsets) == (False, True, middle < end, False, False, False)
    shifted = [(a + 10, b + 10) if b else (0, 0) for a, b in offsets]
    assert found.tokens(shifted, shift=10) == found.tokens(offsets)


def test_repeatable_and_seeded() -> None:
    assert replace_words(TEXTS[0], 3, "a") == replace_words(TEXTS[0], 3, "a")
    assert len({replace_words(TEXTS[0], 3, "a", seed).text for seed in range(10)}) > 3


def test_bad_input_is_named() -> None:
    with pytest.raises(BadInput, match="severity must be 1, 2, 3, 4 or 5, got 9"):
        replace_words("Is there a cup?", 9, "a")
    with pytest.raises(BadInput, match="a question needs words, got ''"):
        replace_words("", 1, "a")
