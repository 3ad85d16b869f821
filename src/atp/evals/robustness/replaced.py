"""Replaced words in the manner of ELECTRA: a small generator puts plausible wrong words in. Knows the grammar, nothing of models.

The places are kept, so one can ask whether a method that prunes text tokens finds the intruders (`metrics.caught`).
The answer need not stay true: score such questions apart.

Source of the idea: Clark et al., "ELECTRA" (ICLR 2020, arXiv 2003.10555). Differences: the generator counts n-grams
of the grammar's questions, is no masked language model and never draws the word itself; severity says how many, not 15 %; places
where another word fits between both neighbours come first, so compare with the same places of the question as it was.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from atp.errors import BadInput
from atp.evals.robustness.perturb import check_severity, check_text
from atp.evals.robustness.words import is_word, pieces, wanted
from atp.scenes import ask, make_scene

TRAINING_SCENES = 300  # of split train, 12 questions each: our choice; every word of the grammar occurs
EDGE = ""  # before the first and after the last word


class Generator:
    """What stands between given neighbours, counted; proposes words for a gap.

    Args:
        texts: to count.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.seen: dict[tuple[str | None, ...], Counter[str]] = {}
        for text in texts:
            words = [p.lower() for p in pieces(text) if is_word(p)]
            for at, word in enumerate(words):
                for context in _contexts(words, at):
                    self.seen.setdefault(context, Counter())[word] += 1

    def fits(self, words: Sequence[str], at: int) -> bool:
        """Whether another word has been seen between both neighbours of this one."""
        both = list(_contexts(words, at))[1]
        return bool(set(self.seen.get(both, ())) - {words[at]})

    def weights(self, words: Sequence[str], at: int) -> Counter[str]:
        """Return how often each other word stood in such a gap; the narrowest context that knows another word decides.

        Args:
            words: lower case.
            at: which of them is to be replaced.

        Raises:
            BadInput: trained on fewer than two different words.
        """
        for context in _contexts(words, at):
            found = self.seen.get(context, Counter()).copy()
            del found[words[at]]
            if found:
                return found
        raise BadInput(f"the generator knows no word but {words[at]!r}; give it more questions to count")


def _contexts(words: Sequence[str], at: int) -> Iterator[tuple[str | None, ...]]:
    """Two words on each side, one on each side, the left one, the right one, nothing; None = does not matter."""
    around = [EDGE, EDGE, *words, EDGE, EDGE]
    before, left, right, after = (around[at + offset] for offset in (0, 1, 3, 4))
    yield before, left, right, after
    yield None, left, right, None
    yield None, left, None, None
    yield None, None, right, None
    yield None, None, None, None


@lru_cache(maxsize=1)
def grammar_generator() -> Generator:
    """Return the generator trained on the grammar's questions about training scenes."""
    return Generator(question.text for seed in range(TRAINING_SCENES) for question in ask(make_scene(seed), 12))


@dataclass(frozen=True)
class Replaced:
    """A question with some words replaced.

    Attributes:
        text: what to ask instead.
        words: its words in order.
        mask: which of them were replaced.
        spans: first letter and one past the last of each word in `text`.
    """

    text: str
    words: tuple[str, ...]
    mask: tuple[bool, ...]
    spans: tuple[tuple[int, int], ...]

    def tokens(self, offsets: Sequence[tuple[int, int]], shift: int = 0) -> tuple[bool, ...]:
        """Return which tokens carry a part of a replaced word.

        Args:
            offsets: first letter and one past the last of each token, as tokenizers give them; (0, 0) for special tokens.
            shift: where `text` begins within the tokenized prompt.
        """
        bad = [(a + shift, b + shift) for (a, b), replaced in zip(self.spans, self.mask, strict=True) if replaced]
        return tuple(any(start < b and end > a for a, b in bad) for start, end in offsets)


def replace_words(text: str, severity: int, key: str, seed: int = 0, generator: Generator | None = None) -> Replaced:
    """Replace words by plausible wrong ones; a higher severity replaces the places of the lower ones and more.

    Args:
        text: of the question.
        severity: 1..5: share of the words, see `words.SHARES`.
        key: of the question, unique in its data set.
        seed: of the whole perturbed set.
        generator: what proposes the words; None = `grammar_generator()`.

    Raises:
        BadInput: no such severity, or a text without words.
    """
    check_severity(severity)
    check_text(text)
    generator = generator or grammar_generator()
    parts = pieces(text)
    places = [number for number, part in enumerate(parts) if is_word(part)]
    words = [parts[number].lower() for number in places]
    rng = random.Random(f"{seed}\x1f{key}\x1freplaced")
    ranked = sorted(rng.sample(range(len(places)), len(places)), key=lambda at: not generator.fits(words, at))
    chosen = ranked[: wanted(severity, len(places))]
    for at in chosen:
        weights = generator.weights(words, at)
        new = words[at] = rng.choices(list(weights), list(weights.values()))[0]
        old = parts[places[at]]
        parts[places[at]] = new.capitalize() if old[0].isupper() else new
    starts = [sum(map(len, parts[:number])) for number in places]
    return Replaced(
        "".join(parts),
        tuple(parts[number] for number in places),
        tuple(at in chosen for at in range(len(places))),
        tuple((start, start + len(parts[number])) for start, number in zip(starts, places, strict=True)),
    )
