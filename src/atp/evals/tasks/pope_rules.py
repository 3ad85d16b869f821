"""POPE: how answers are read, scored, how questions are built from objects, and what a blind guess gets. Knows strings only.

Rules: Li et al. 2023 and its public code. `pope` reads "no" where No, not or no is among the words before the first full stop,
else "yes", even from an empty answer; `exact` (lmms-eval) wants exactly yes or no, and anything else is wrong.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MODES = ("pope", "exact")
VARIANTS = ("random", "popular", "adversarial")
BALANCED = "balanced"  # our own: each name is asked as often of images with it as without it
POSITIVES = 3  # asked of each image, and as many negatives
_NAME = re.compile(r"^is there an? (.+?) in the (?:image|imange|picture|photo)\?*$", re.IGNORECASE)


@dataclass(frozen=True)
class Poll:
    """One question: image file, object name, and whether it is there."""

    image: str
    name: str
    label: str

    @property
    def text(self) -> str:
        """The official template, with the right article."""
        return f"Is there {'an' if self.name[0] in 'aeiou' else 'a'} {self.name} in the image?"


def named(text: str) -> str:
    """Object that a question asks for; the whole question where it has another form."""
    found = _NAME.match(text.strip())
    return found.group(1).lower() if found else text


def parse(said: str, mode: str = "pope") -> str:
    """Read an answer: `yes`, `no`, or an empty string where `exact` finds neither.

    Example:
        >>> [parse(t) for t in ("No, there is not.", "There is not", "Yes. There is no cat.", "", "nope")]
        ['no', 'no', 'yes', 'yes', 'yes']
    """
    if mode == "exact":
        answer = said.strip().lower()
        return answer if answer in ("yes", "no") else ""
    words = said.split(".")[0].replace(",", "").split(" ")
    return "no" if not {"No", "not", "no"}.isdisjoint(words) else "yes"


def measured(said: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 (yes is positive) and the share of yes among the **answers**, all as shares.

    Precision and F1 are 0 where no yes is said (the official code divides by zero there).
    """
    pairs = Counter(zip(said, labels, strict=True))
    hit, false, missed = pairs["yes", "yes"], pairs["yes", "no"], pairs["no", "yes"]
    precision = hit / (hit + false) if hit + false else 0.0
    recall = hit / (hit + missed) if hit + missed else 0.0
    return {
        "accuracy": (hit + pairs["no", "no"]) / len(said),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_ratio": sum(1 for answer in said if answer == "yes") / len(said),
    }


def blind(names: Sequence[str], labels: Sequence[str]) -> float:
    """Share of right answers of an oracle that knows only which name is asked: the bound of any model without eyes."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for name, label in zip(names, labels, strict=True):
        seen[name][label] += 1
    return sum(max(counts.values()) for counts in seen.values()) / len(labels)


def yes_share(names: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Share of questions whose true answer is yes, by name: 0.5 everywhere would leave nothing to guess."""
    seen: dict[str, list[bool]] = defaultdict(list)
    for name, label in zip(names, labels, strict=True):
        seen[name].append(label == "yes")
    return {name: sum(found) / len(found) for name, found in sorted(seen.items())}


def sample(objects: Mapping[str, Sequence[str]], count: int, seed: int) -> dict[str, Sequence[str]]:
    """Draw up to `count` of the images with at least three objects, in the order of their names."""
    rich = sorted(image for image, found in objects.items() if len(found) >= POSITIVES)
    chosen = sorted(random.Random(seed).sample(rich, min(count, len(rich))))
    return {image: objects[image] for image in chosen}


def build(objects: Mapping[str, Sequence[str]], variant: str, seed: int = 0) -> list[Poll]:
    """Make the questions of one variant.

    Per image the first three objects are asked for, each followed by one that is absent and not yet asked: `random` any name;
    `popular` the most frequent over these images; `adversarial` the one that most often stands with the object just asked for.
    Ties go by name. Where no candidate is left any absent name is drawn, and where there is none the negative is left out.

    Args:
        objects: image -> names in it, each once; from `sample`.
        variant: one of `VARIANTS`, or `BALANCED`.
        seed: of the draws.
    """
    rng = random.Random(f"{variant}:{seed}")
    if variant == BALANCED:
        return _balanced(objects, rng)
    often = Counter(name for found in objects.values() for name in found)
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for found in objects.values():
        for name in found:
            together[name].update(other for other in found if other != name)
    everything = sorted(often)
    popular = _ranked(often)
    company = {name: _ranked(counts) for name, counts in together.items()}
    polls = []
    for image, found in objects.items():
        taken = set(found)
        for present in found[:POSITIVES]:
            polls.append(Poll(image, present, "yes"))
            order = {"random": [], "popular": popular, "adversarial": company.get(present, [])}[variant]
            absent = next((name for name in order if name not in taken), None)
            left = [name for name in everything if name not in taken]
            if absent is None and left:
                absent = rng.choice(left)
            if absent is not None:
                taken.add(absent)
                polls.append(Poll(image, absent, "no"))
    return polls


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def _balanced(objects: Mapping[str, Sequence[str]], rng: random.Random) -> list[Poll]:
    polls = []
    for name in sorted({name for found in objects.values() for name in found}):
        with_it = [image for image, found in objects.items() if name in found]
        without = [image for image, found in objects.items() if name not in found]
        size = min(len(with_it), len(without))
        for label, images in (("yes", with_it), ("no", without)):
            polls += [Poll(image, name, label) for image in rng.sample(images, size)]
    return sorted(polls, key=lambda poll: (poll.image, poll.name))
