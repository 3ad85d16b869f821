"""What is asked: images with questions, true answers and what the answer rests on. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from atp.scenes import ask, make_scene, render

PER_SCENE = 20


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        key: unique and stable, `split:seed:number`.
        image: RGB.
        question, answer: the truth is lower case.
        kind: kind of question, for accuracy by kind.
    """

    key: str
    image: Image.Image
    question: str
    answer: str
    kind: str


def scene_items(count: int, split: str = "val", first: int = 0, size: int = 224, per_scene: int = PER_SCENE) -> Iterator[Item]:
    """Yield `count` questions over generated scenes from seed `first` on.

    Args:
        count: how many questions.
        split: one of `atp.scenes.SPLITS`; `train` seeds from 900,000,000 on are never trained on.
        first: seed of the first scene.
        size: side of the images in pixels.
        per_scene: most questions about one scene, at most 20.
    """
    made, seed = 0, first
    while made < count:
        scene = make_scene(seed, split)
        image = Image.fromarray(render(scene, size)[0])
        for number, question in enumerate(ask(scene, PER_SCENE)[: min(per_scene, count - made)]):
            yield Item(f"{split}:{seed}:{number}", image, question.text, question.answer, question.kind)
            made += 1
        seed += 1
