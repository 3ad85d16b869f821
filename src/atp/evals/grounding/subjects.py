"""What is asked, with what it is about: questions over scenes, and the mask of the objects that decide the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from atp.evals.grounding.measures import Bools, Box
from atp.evals.tasks import gqa_rules
from atp.scenes import ask, make_scene, render
from atp.scenes.official import gqa, scene_graph

PER_SCENE = 20


@dataclass(frozen=True)
class Subject:
    """One question about one image.

    Attributes:
        key: unique and stable, `split:seed:number`.
        group: number of the scene.
        image: RGB.
        question, answer: the truth is lower case.
        mask: `[height, width]`, pixels that show an object of the answer.
        regions: boxes of the objects that the question names (GQA's pointers), as shares of the image's sides; may be none.
    """

    key: str
    group: int
    image: Image.Image
    question: str
    answer: str
    mask: Bools
    regions: tuple[Box, ...]


def subjects(count: int, split: str = "val", first: int = 0, size: int = 224, per_scene: int = PER_SCENE) -> Iterator[Subject]:
    """Yield `count` questions that are about something visible; of an absent thing there is no mask.

    Args:
        count: how many questions.
        split: one of `atp.scenes.SPLITS`.
        first: seed of the first scene.
        size: side of the images in pixels.
        per_scene: most questions drawn for one scene.
    """
    made, seed = 0, first
    while made < count:
        scene = make_scene(seed, split)
        picture, owner = render(scene, size)
        asked = ask(scene, per_scene)
        entries = gqa([(seed + 1, scene, asked)])
        graph = scene_graph(scene, seed + 1, size)
        for number, (question, (qid, entry)) in enumerate(zip(asked, entries.items(), strict=True)):
            mask = np.isin(owner, question.about)
            if made < count and mask.any():
                pointed = gqa_rules.parse(qid, entry).pointed
                regions = tuple(gqa_rules.region(graph, found) for found in pointed)
                image = Image.fromarray(picture)
                yield Subject(f"{split}:{seed}:{number}", seed, image, question.text, question.answer, mask, regions)
                made += 1
        seed += 1
