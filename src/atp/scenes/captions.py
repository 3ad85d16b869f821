"""Captions of scenes, and the closed vocabulary of everything that the world says."""

from __future__ import annotations

import random

from atp.scenes.catalog import CATEGORIES, COLOR_NAMES
from atp.scenes.questions import EXTREMES, article
from atp.scenes.world import Scene

_NUMBER = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def caption(scene: Scene, variant: int = 0) -> str:
    """Describe a scene in one sentence; variant 0 lists categories in a fixed order, others shuffle and rephrase."""
    groups: dict[tuple[int, int], int] = {}
    for thing in scene.things:
        groups[(thing.category, thing.color)] = groups.get((thing.category, thing.color), 0) + 1
    order = sorted(groups)
    if variant:
        random.Random(f"{scene.seed}:{variant}").shuffle(order)
    parts = []
    for category, color in order:
        number = groups[(category, color)]
        noun = CATEGORIES[category].name if number == 1 else CATEGORIES[category].plural
        noun = f"{COLOR_NAMES[color]} {noun}" if color >= 0 else noun
        parts.append(article(noun) if number == 1 else f"{_NUMBER[number]} {noun}")
    listing = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    opening = ("a photo of {}", "a photo of {}", "an image with {}", "there is {} in this picture", "a picture showing {}")
    return opening[variant % 5].format(listing)


def words() -> list[str]:
    """Return every lower-case word that questions, answers and captions use."""
    seen: set[str] = set()
    for category in CATEGORIES:
        seen.update(f"{category.name} {category.plural}".split())
    seen.update(COLOR_NAMES, _NUMBER, EXTREMES)
    seen.update("is there a an in the image are any what color of how many more than bigger smaller to left right".split())
    seen.update("above below object or and yes no photo picture showing with this describe".split())
    return sorted(seen)
