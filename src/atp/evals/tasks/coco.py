"""COCO captions: CIDEr-D, BLEU, ROUGE-L, and object and tuple F1 where instances are given. The official files, unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from atp.evals.tasks import java, ngrams
from atp.evals.tasks.base import Example, Scores, Task, points, register, with_images
from atp.evals.tasks.caption_rules import f1, tuples
from atp.evals.tasks.coco_files import INSTANCES, Captions, Instances, read_captions, read_instances
from atp.evals.tasks.files import Problems, Source, read_json
from atp.evals.tasks.gqa import GRAPHS, SCENES
from atp.evals.tasks.objects import SYNONYMS_FILE, Vocabulary
from atp.evals.tasks.words import MODES, plain, tokenized

QUESTION = "Provide a one-sentence caption for the provided image."  # of lmms-eval
KARPATHY = "dataset_coco.json"
Tuples = dict[int, set[tuple[str, ...]]]


@register("coco")
class CocoCaptions(Task):
    """One caption an image against about five. https://cocodataset.org, Chen et al. 2015."""

    primary = "CIDEr"
    modes = MODES
    prompt = "{question}"
    max_new_tokens = 64
    result_fields = ("image_id", "caption")

    def __init__(
        self,
        examples: Sequence[Example],
        problems: Problems,
        instances: Instances | None,
        graph_tuples: Tuples,
        vocabulary: Vocabulary | None,
        mode: str = "",
        frequency: ngrams.Frequency | None = None,
        with_meteor: bool = False,
    ) -> None:
        super().__init__(examples, problems, mode)
        self.instances, self.graph_tuples, self.vocabulary = instances, graph_tuples, vocabulary
        self.with_meteor = with_meteor
        self._words: dict[str, list[list[str]]] = {}
        self._frequency = frequency

    @classmethod
    def read(
        cls,
        source: Source,
        mode: str = "",
        question: str = QUESTION,
        karpathy: str = "",
        corpus_df: bool = False,
        with_meteor: bool = False,
    ) -> CocoCaptions:
        """Read captions, and instances and the scenes' graphs where they are.

        Args:
            source: split `val`, `val2017`, ...
            mode: tokenizer: `plain`, or `ptb` (Java), which published numbers use.
            question: that asks for a caption.
            karpathy: keep only `test` or `val` of Karpathy's split, whose `dataset_coco.json` must lie in the folder.
            corpus_df: CIDEr's document frequencies from all images of the file rather than from those asked; only then can
                scores of different subsets be compared.
            with_meteor: METEOR 1.5 too (Java).
        """
        captions = read_captions(source)
        chosen = _karpathy(source, karpathy) if karpathy else set(captions.said)
        examples = [
            Example(str(image), source.image(captions.files[image]), question, said, "caption", str(image))
            for image, said in captions.said.items()
            if image in chosen
        ]
        instances = read_instances(source) if source.find(INSTANCES) else None
        vocabulary = Vocabulary(instances.categories, source.find(SYNONYMS_FILE)) if instances else None
        kept = with_images(source, examples)
        frequency = _frequency(captions, mode) if corpus_df else None
        return cls(kept, source.problems, instances, _graph_tuples(source), vocabulary, mode, frequency, with_meteor)

    def _references(self) -> list[list[list[str]]]:
        missing = [example for example in self.examples if example.key not in self._words]
        if missing:
            words = iter(tokenized([caption for example in missing for caption in example.references], self.mode))
            for example in missing:
                self._words[example.key] = [next(words) for _ in example.references]
        return [self._words[example.key] for example in self.examples]

    def rate(self, said: Sequence[str]) -> Scores:
        """Score captions; an empty one is worth nothing."""
        truth, words = self._references(), tokenized(said, self.mode)
        corpus, _ = ngrams.bleu(words, truth)
        items = {"CIDEr": ngrams.cider_d(words, truth, self._frequency), "ROUGE_L": ngrams.rouge_l(words, truth)}
        if self.with_meteor:
            items["METEOR"] = java.meteor(words, truth)
        if self.vocabulary is not None:
            items |= self._objects(said)
        items = {name: found for name, found in items.items() if not np.isnan(found).all()}
        metrics = {name: points(found) for name, found in items.items()}
        metrics |= {f"BLEU_{order}": 100 * value for order, value in enumerate(corpus, 1)}
        metrics["words"] = float(np.mean([len(caption) for caption in words]))
        images = self._frequency.images if self._frequency else len(truth)
        return Scores(metrics, items, {}, {"cider_images": images})

    def _objects(self, said: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        if self.instances is None or self.vocabulary is None:
            return {}
        mentions = [self.vocabulary.mentions(plain(caption)) for caption in said]
        images = [int(example.key) for example in self.examples]
        attributes = {pair[1] for found in self.graph_tuples.values() for pair in found if len(pair) == 2}
        objects = [{(name,) for name in self.instances.objects.get(image, ())} for image in images]
        pairs: list[set[tuple[str, ...]]] = [self.graph_tuples.get(image, set()) for image in images]
        ones = [f1(tuples(found, ()), there) for found, there in zip(mentions, objects, strict=True)]
        twos = [f1(tuples(found, attributes), there) for found, there in zip(mentions, pairs, strict=True)]
        return {"object_F1": np.array(ones), "tuple_F1": np.array(twos)}


def _karpathy(source: Source, part: str) -> set[int]:
    path = source.need("Karpathy's split of COCO", KARPATHY)
    rows = source.rows(path, "images", {"cocoid": int, "split": str}, "cocoid")
    return {row["cocoid"] for row in rows if row["split"] == part}


def _frequency(captions: Captions, mode: str) -> ngrams.Frequency:
    words = iter(tokenized([caption for said in captions.said.values() for caption in said], mode))
    return ngrams.Frequency.of([[next(words) for _ in said] for said in captions.said.values()])


def _graph_tuples(source: Source) -> Tuples:
    """Objects and (object, attribute) pairs of the scenes' graphs; empty for COCO itself, whose images have no graphs."""
    graphs = source.find(GRAPHS)
    if graphs is None or source.find(SCENES) is None:
        return {}
    out: Tuples = {}
    content: Mapping[str, dict[str, dict[str, dict[str, list[str]]]]] = read_json(graphs)
    for image, graph in content.items():
        found: set[tuple[str, ...]] = set()
        for thing in graph["objects"].values():
            found |= {(str(thing["name"]),)} | {(str(thing["name"]), attribute) for attribute in thing["attributes"]}
        out[int(image)] = found
    return out
