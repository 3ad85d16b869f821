"""A grammar of questions with balanced answers over one scene. Knows scenes, nothing of pixels, files or models.

Every question carries its functional program in GQA's form (operation, argument, dependencies) and the objects that it is about,
so that the official schemas and grounding can be written from it. A question is only asked where the picture settles it: unique
referents, and margins between positions and sizes that the eye can see.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from atp.scenes.catalog import CATEGORIES, COLOR_NAMES
from atp.scenes.world import Scene, Thing

SIDE_MARGIN = 0.12  # of the image's side, between centres: our choice
SIZE_MARGIN = 1.3  # ratio of sides: our choice
KINDS = ("existence", "color", "count", "comparison", "relation", "extreme", "logical")
MIX = (0.21, 0.25, 0.18, 0.10, 0.14, 0.05, 0.07)  # share of each kind: our choice

Op = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Question:
    """One question with its answer.

    Attributes:
        text, answer: lower-case answer of one word or number.
        kind: one of `KINDS`.
        program: GQA-style operations.
        about: indices of the scene's objects that decide the answer (empty where nothing is there).
    """

    text: str
    answer: str
    kind: str
    program: tuple[Op, ...]
    about: tuple[int, ...]


def article(noun: str) -> str:
    """Return the noun with a or an."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


class _View:
    """The facts of one scene that the grammar asks for, found once."""

    def __init__(self, scene: Scene) -> None:
        self.things = scene.things
        self.of: dict[int, list[int]] = {}
        for index, thing in enumerate(scene.things):
            self.of.setdefault(thing.category, []).append(index)
        self.absent = [c for c in range(len(CATEGORIES)) if c not in self.of]
        self.named = [(i, self._reference(i)) for i in range(len(scene.things)) if self._reference(i)]

    def _reference(self, index: int) -> str:
        thing = self.things[index]
        same = self.of[thing.category]
        if len(same) == 1:
            return thing.name
        alike = [i for i in same if self.things[i].color == thing.color]
        return f"{thing.color_name} {thing.name}" if thing.color >= 0 and len(alike) == 1 else ""

    def select(self, index: int, name: str, base: int = 0) -> tuple[Op, ...]:
        """Program that finds one object by its reference, starting at operation number `base`."""
        thing = self.things[index]
        ops: tuple[Op, ...] = (("select", f"{thing.name} ({index})", ()),)
        if name != thing.name:
            ops += (("filter color", f"{thing.color_name}", (base,)),)
        return ops


def _existence(view: _View, rng: random.Random) -> Question | None:
    wanted = rng.random() < 0.5
    tinted = [i for i, t in enumerate(view.things) if t.color >= 0]
    if tinted and rng.random() < 0.3:
        index = rng.choice(tinted)
        category, color = view.things[index].category, view.things[index].color
        if not wanted:
            used = {view.things[i].color for i in view.of[category]}
            color = rng.choice([c for c in range(len(COLOR_NAMES)) if c not in used])
        about = tuple(i for i in view.of[category] if view.things[i].color == color)
        noun = f"{COLOR_NAMES[color]} {CATEGORIES[category].name}"
        ops: tuple[Op, ...] = (
            ("select", CATEGORIES[category].name, ()),
            ("filter color", COLOR_NAMES[color], (0,)),
            ("exist", "?", (1,)),
        )
        return Question(f"Is there {article(noun)}?", _yes(wanted), "existence", ops, about)
    category = rng.choice(list(view.of)) if wanted else rng.choice(view.absent)
    noun = CATEGORIES[category].name
    form = rng.randrange(3)
    text = (
        f"Is there {article(noun)} in the image?",
        f"Are there any {CATEGORIES[category].plural}?",
        f"Is there {article(noun)}?",
    )[form]
    ops = (("select", noun, ()), ("exist", "?", (0,)))
    return Question(text, _yes(wanted), "existence", ops, tuple(view.of.get(category, ())))


def _color(view: _View, rng: random.Random) -> Question | None:
    unique = [i for i, name in view.named if view.things[i].color >= 0 and name == view.things[i].name]
    if not unique:
        return None
    index = rng.choice(unique)
    thing = view.things[index]
    first = view.select(index, thing.name)
    if rng.random() < 0.3:
        wanted = rng.random() < 0.5
        others = [c for c in range(len(COLOR_NAMES)) if c != thing.color]
        color = COLOR_NAMES[thing.color if wanted else rng.choice(others)]
        ops = (*first, ("verify color", color, (0,)))
        return Question(f"Is the {thing.name} {color}?", _yes(wanted), "color", ops, (index,))
    text = rng.choice((f"What color is the {thing.name}?", f"What is the color of the {thing.name}?"))
    ops = (*first, ("query", "color", (0,)))
    return Question(text, str(thing.color_name), "color", ops, (index,))


def _count(view: _View, rng: random.Random) -> Question | None:
    by_count: dict[int, list[int]] = {0: view.absent}
    for category, members in view.of.items():
        by_count.setdefault(len(members), []).append(category)
    numbers = sorted(by_count)
    number = rng.choices(numbers, [0.6 if n == 0 else 1.0 for n in numbers])[0]
    category = rng.choice(by_count[number])
    plural = CATEGORIES[category].plural
    text = rng.choice((f"How many {plural} are there?", f"How many {plural} are in the image?"))
    ops = (("select", CATEGORIES[category].name, ()), ("count", "?", (0,)))
    return Question(text, str(number), "count", ops, tuple(view.of.get(category, ())))


def _comparison(view: _View, rng: random.Random) -> Question | None:
    wanted = rng.random() < 0.5
    if rng.random() < 0.5:
        present = list(view.of)
        pairs = [(a, b) for a in present for b in present if len(view.of[a]) > len(view.of[b])]
        if not pairs:
            return None
        a, b = rng.choice(pairs)
        if not wanted:
            a, b = b, a
        text = f"Are there more {CATEGORIES[a].plural} than {CATEGORIES[b].plural}?"
        ops: tuple[Op, ...] = (
            ("select", CATEGORIES[a].name, ()),
            ("select", CATEGORIES[b].name, ()),
            ("more", "?", (0, 1)),
        )
        return Question(text, _yes(wanted), "comparison", ops, (*view.of[a], *view.of[b]))
    pair = _pair(view, rng, lambda p, q: p.side >= SIZE_MARGIN * q.side)
    if pair is None:
        return None
    (i, a_name), (j, b_name) = pair
    word = rng.choice(("bigger", "smaller"))
    if wanted != (word == "bigger"):
        (i, a_name), (j, b_name) = (j, b_name), (i, a_name)
    ops = _two(view, i, a_name, j, b_name, f"{word} than")
    return Question(f"Is the {a_name} {word} than the {b_name}?", _yes(wanted), "comparison", ops, (i, j))


def _pair(
    view: _View, rng: random.Random, holds: Callable[[Thing, Thing], bool]
) -> tuple[tuple[int, str], tuple[int, str]] | None:
    pairs = [(a, b) for a in view.named for b in view.named if a[0] != b[0] and holds(view.things[a[0]], view.things[b[0]])]
    return rng.choice(pairs) if pairs else None


def _two(view: _View, i: int, a: str, j: int, b: str, what: str) -> tuple[Op, ...]:
    first = view.select(i, a)
    second = view.select(j, b, len(first))
    return (*first, *second, ("verify rel", what, (len(first) - 1, len(first) + len(second) - 1)))


def _relation(view: _View, rng: random.Random) -> Question | None:
    sideways = rng.random() < 0.5
    if sideways:
        pair = _pair(view, rng, lambda p, q: q.x - p.x >= SIDE_MARGIN)
        words = ("to the left of", "to the right of")
    else:
        pair = _pair(view, rng, lambda p, q: q.y - p.y >= SIDE_MARGIN)
        words = ("above", "below")
    if pair is None:
        return None
    first, second = pair  # first is left of / above second
    wanted, turned = rng.random() < 0.5, rng.random() < 0.5
    (i, a), (j, b) = (second, first) if turned else (first, second)
    if rng.random() < 0.3:
        choice = ("left", "right") if sideways else ("above", "below")
        text = f"Is the {a} left or right of the {b}?" if sideways else f"Is the {a} above or below the {b}?"
        ops = _two(view, i, a, j, b, "|".join(choice))
        return Question(text, choice[turned], "relation", (*ops[:-1], ("choose rel", *ops[-1][1:])), (i, j))
    word = words[turned if wanted else not turned]
    ops = _two(view, i, a, j, b, word)
    return Question(f"Is the {a} {word} the {b}?", _yes(wanted), "relation", ops, (i, j))


EXTREMES: dict[str, Callable[[Thing], float]] = {
    "leftmost": lambda t: -t.x,
    "rightmost": lambda t: t.x,
    "highest": lambda t: -t.y,
    "lowest": lambda t: t.y,
    "largest": lambda t: t.side,
    "smallest": lambda t: -t.side,
}


def _extreme(view: _View, rng: random.Random) -> Question | None:
    for word in rng.sample(list(EXTREMES), len(EXTREMES)):
        key = EXTREMES[word]
        order = sorted(range(len(view.things)), key=lambda i: key(view.things[i]))
        best, runner = view.things[order[-1]], view.things[order[-2]]
        if word in ("largest", "smallest"):
            clear = max(best.side, runner.side) >= SIZE_MARGIN * min(best.side, runner.side)
        else:
            clear = key(best) - key(runner) >= SIDE_MARGIN / 2
        if clear:
            ops: tuple[Op, ...] = (("select", "object", ()), ("extreme", word, (0,)), ("query", "name", (1,)))
            return Question(f"What is the {word} object?", best.name, "extreme", ops, (order[-1],))
    return None


def _logical(view: _View, rng: random.Random) -> Question | None:
    if len(view.of) < 2:
        return None
    both, wanted = rng.random() < 0.5, rng.random() < 0.5
    present, absent = rng.sample(list(view.of), 2), rng.sample(view.absent, 2)
    if both:
        pair = present if wanted else [present[0], absent[0]]
    else:
        pair = [present[0], absent[0]] if wanted else absent
    rng.shuffle(pair)
    a, b = (CATEGORIES[c].name for c in pair)
    word = "and" if both else "or"
    ops: tuple[Op, ...] = (
        ("select", a, ()),
        ("exist", "?", (0,)),
        ("select", b, ()),
        ("exist", "?", (2,)),
        (word, "?", (1, 3)),
    )
    about = tuple(i for c in pair for i in view.of.get(c, ()))
    return Question(f"Is there {article(a)} {word} {article(b)}?", _yes(wanted), "logical", ops, about)


_MAKERS = dict(zip(KINDS, (_existence, _color, _count, _comparison, _relation, _extreme, _logical), strict=True))


def ask(scene: Scene, count: int, seed: int = 0, kinds: tuple[str, ...] = KINDS) -> list[Question]:
    """Draw up to `count` different questions about a scene in the shares of `MIX`.

    Args:
        scene: with at least two objects.
        count: how many; fewer come back where the scene does not carry as many.
        seed: same scene, count and seed, same questions.
        kinds: subset of `KINDS` to draw from.
    """
    rng = random.Random(f"{scene.split}:{scene.seed}:{seed}")
    view = _View(scene)
    weights = [MIX[KINDS.index(kind)] for kind in kinds]
    found: dict[str, Question] = {}
    for kind in rng.choices(kinds, weights, k=2 * count):
        question = _MAKERS[kind](view, rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())
