"""The generated world: repeatable, legible, balanced, and true."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest

from atp.scenes import SPLITS, ask, caption, make_scene, render
from atp.scenes.catalog import BY_NAME, CATEGORIES, COLOR_NAMES, COLORS, held_out_pair, sprite
from atp.scenes.questions import KINDS, SIDE_MARGIN, SIZE_MARGIN

SEEDS = range(60)


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    first, again, other = make_scene(7), make_scene(7), make_scene(8)
    assert first == again
    assert render(first)[0].tobytes() == render(again)[0].tobytes()
    assert render(first)[0].tobytes() != render(other)[0].tobytes()
    assert ask(first, 20) == ask(again, 20)


def test_splits_differ_at_the_same_seed() -> None:
    assert len({make_scene(3, split).things for split in SPLITS}) == len(SPLITS)
    with pytest.raises(ValueError, match="unknown split 'test'; expected one of train"):
        make_scene(0, "test")


@pytest.mark.parametrize("seed", SEEDS)
def test_scene_is_legible(seed: int) -> None:
    scene = make_scene(seed)
    assert 3 <= len(scene.things) <= 9
    _, owner = render(scene, 224)
    for index, thing in enumerate(scene.things):
        left, top, wide, high = thing.box
        assert left >= -1e-9 and top >= -1e-9 and left + wide <= 1 + 1e-9 and top + high <= 1 + 1e-9
        glyph = sprite(thing.category, thing.color, scene.style, round(thing.side * 224), thing.flip)[..., 3] > 127
        assert (owner == index).sum() >= 0.45 * glyph.sum(), f"object {index} of seed {seed} is hidden"


def test_training_never_shows_a_held_out_pair_and_the_split_does() -> None:
    def pairs(split: str) -> set[tuple[int, int]]:
        return {(t.category, t.color) for s in range(200) for t in make_scene(s, split).things if t.color >= 0}

    assert not any(held_out_pair(*pair) for pair in pairs("train") | pairs("val"))
    assert sum(held_out_pair(*pair) for pair in pairs("compositional")) >= 10


def test_tinted_sprites_show_their_colour() -> None:
    for name in ("car", "circle", "book"):
        for color, rgb in COLORS.items():
            pixels = sprite(BY_NAME[name], COLOR_NAMES.index(color), "noto", 48, False)
            seen = pixels[pixels[..., 3] > 200][:, :3].astype(float)
            mean = seen.mean(0)
            if color in ("white", "black"):
                assert (mean.mean() > 150) == (color == "white"), (name, color, mean)
                continue
            chromatic = [c for c in COLORS if c not in ("white", "black")]
            angle = {c: float(mean @ np.array(COLORS[c]) / np.linalg.norm(COLORS[c])) for c in chromatic}
            assert max(angle, key=angle.get) == color, (name, color, rgb, mean)


def _truth(scene, text: str) -> str | None:
    """Answer a question by parsing its words: an oracle that shares no code with the grammar."""
    names = [t.name for t in scene.things]

    def one(phrase: str):
        words = phrase.split()
        color = words[0] if words[0] in COLOR_NAMES else None
        name = " ".join(words[1:] if color else words)
        found = [t for t in scene.things if t.name == name and (color is None or t.color_name == color)]
        assert len(found) == 1, (text, phrase)
        return found[0]

    def singular(word: str) -> str:
        return next(c.name for c in CATEGORIES if c.plural == word)

    def has(phrase: str) -> bool:
        words = phrase.split()
        if words[0] in COLOR_NAMES:
            return any(t.name == " ".join(words[1:]) and t.color_name == words[0] for t in scene.things)
        return phrase in names

    text = text.lower().rstrip("?")
    if m := re.fullmatch(r"is there an? (.+?) (and|or) an? (.+)", text):
        both = (has(m[1]), has(m[3]))
        return "yes" if (all(both) if m[2] == "and" else any(both)) else "no"
    if m := re.fullmatch(r"is there an? (.+?)( in the image)?", text):
        return "yes" if has(m[1]) else "no"
    if m := re.fullmatch(r"are there any (.+)", text):
        return "yes" if singular(m[1]) in names else "no"
    if m := re.fullmatch(r"how many (.+) are (there|in the image)", text):
        return str(names.count(singular(m[1])))
    if m := re.fullmatch(r"are there more (.+) than (.+)", text):
        return "yes" if names.count(singular(m[1])) > names.count(singular(m[2])) else "no"
    if m := re.fullmatch(r"what (?:color is|is the color of) the (.+)", text):
        return one(m[1]).color_name
    if m := re.fullmatch(r"is the (.+) (bigger|smaller) than the (.+)", text):
        a, b = one(m[1]).side, one(m[3]).side
        assert max(a, b) >= SIZE_MARGIN * min(a, b)
        return "yes" if (a > b) == (m[2] == "bigger") else "no"
    if m := re.fullmatch(r"is the (.+) (left or right of|above or below) the (.+)", text):
        a, b = one(m[1]), one(m[3])
        return ("left" if a.x < b.x else "right") if "left" in m[2] else ("above" if a.y < b.y else "below")
    if m := re.fullmatch(r"is the (.+) (to the left of|to the right of|above|below) the (.+)", text):
        a, b = one(m[1]), one(m[3])
        gap = b.x - a.x if "the" in m[2] else b.y - a.y
        assert abs(gap) >= SIDE_MARGIN
        return "yes" if (gap > 0) == (m[2] in ("to the left of", "above")) else "no"
    if m := re.fullmatch(r"what is the (\w+) object", text):
        keys = {"leftmost": ("x", min), "rightmost": ("x", max), "highest": ("y", min), "lowest": ("y", max)}
        keys |= {"largest": ("side", max), "smallest": ("side", min)}
        attribute, pick = keys[m[1]]
        return pick(scene.things, key=lambda t: getattr(t, attribute)).name
    if m := re.fullmatch(r"is the (.+) (\w+)", text):
        return "yes" if one(m[1]).color_name == m[2] else "no"
    return None


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_true_by_an_independent_oracle(seed: int) -> None:
    scene = make_scene(seed, "val")
    for question in ask(scene, 25):
        assert _truth(scene, question.text) == question.answer, question


def test_answers_are_balanced_and_every_kind_is_asked() -> None:
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for seed in range(300):
        for question in ask(make_scene(seed), 20):
            answers[question.kind][question.answer] += 1
    assert set(answers) == set(KINDS)
    for kind in ("existence", "logical", "comparison"):
        share = answers[kind]["yes"] / answers[kind].total()
        assert 0.42 < share < 0.58, (kind, share)
    assert answers["count"].most_common(1)[0][1] / answers["count"].total() < 0.45


def test_caption_names_what_is_there() -> None:
    scene = make_scene(5)
    for variant in range(5):
        text = caption(scene, variant)
        for thing in scene.things:
            assert thing.name in text or CATEGORIES[thing.category].plural in text
