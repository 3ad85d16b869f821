"""CHAIR: objects that a caption names and the image does not show. COCO captions and instances files, unchanged."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from atp.evals.tasks import caption_rules
from atp.evals.tasks.base import Example, Scores, Task, points, register, with_images
from atp.evals.tasks.coco_files import read_captions, read_instances
from atp.evals.tasks.files import Problems, Source
from atp.evals.tasks.objects import SYNONYMS_FILE, Vocabulary
from atp.evals.tasks.words import plain

QUESTION = "Please describe this image in detail."  # of OPERA, VCD and others
KEPT = ("chair_s", "recall")


@register("chair")
class Chair(Task):
    """Hallucinated objects in captions. Rohrbach et al. 2018, https://arxiv.org/abs/1809.02156.

    Differences: names are found by a fixed table of plurals rather than by a lemmatizer.
    """

    primary = "chair_s"
    modes = ("chair",)
    prompt = "{question}"
    max_new_tokens = 512
    result_fields = ("image_id", "caption")

    def __init__(
        self,
        examples: Sequence[Example],
        problems: Problems,
        truth: dict[str, frozenset[str]],
        vocabulary: Vocabulary,
        mode: str = "",
    ) -> None:
        super().__init__(examples, problems, mode)
        self.truth, self.vocabulary = truth, vocabulary

    @classmethod
    def read(cls, source: Source, mode: str = "", question: str = QUESTION, sample: int | None = None, seed: int = 0) -> Chair:
        """Read instances and captions; the truth is what either of them names.

        Args:
            source: split `val`, ...
            mode: there is one.
            question: that asks for a caption. CHAIR grows with length, so compare equal questions and lengths only.
            sample: ask about so many images, drawn with `seed`; the papers draw 500 of val2014.
            seed: of the draw.
        """
        captions, instances = read_captions(source), read_instances(source)
        vocabulary = Vocabulary(instances.categories, source.find(SYNONYMS_FILE))
        examples = []
        for image, name in instances.files.items():
            if image not in captions.said:
                source.problems.add("images with instances but no captions", image)
                continue
            examples.append(Example(str(image), source.image(name), question, captions.said[image], "caption", str(image)))
        kept = with_images(source, examples)
        if sample is not None and sample < len(kept):
            kept = sorted(random.Random(seed).sample(kept, sample), key=lambda example: int(example.key))
        truth = {}
        for example in kept:
            told = {m.name for caption in example.references for m in vocabulary.mentions(plain(caption))}
            truth[example.key] = frozenset(told | set(instances.objects[int(example.key)]))
        return cls(kept, source.problems, truth, vocabulary, mode)

    def rate(self, said: Sequence[str]) -> Scores:
        """Score captions: lower `chair_s` and `chair_i` are better, so look at `recall` and `words` beside them."""
        words = [plain(caption) for caption in said]
        truth = [self.truth[example.key] for example in self.examples]
        found = caption_rules.chair([self.vocabulary.mentions(caption) for caption in words], truth)
        mentioned, wrong = found["mentioned"].sum(), found["hallucinated"].sum()
        items = {name: found[name] for name in KEPT if not np.isnan(found[name]).all()}
        metrics = {name: points(values) for name, values in items.items()}
        metrics["chair_i"] = float(100 * wrong / mentioned) if mentioned else 0.0
        metrics["words"] = float(np.mean([len(caption) for caption in words]))
        return Scores(metrics, items, {}, {"mentioned": int(mentioned), "hallucinated": int(wrong)})
