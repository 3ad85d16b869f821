"""POPE: is an object there? The official question files unchanged, or questions made from COCO instances by the same rule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest

import numpy as np

from atp.errors import BadInput
from atp.evals.tasks import pope_rules as rules
from atp.evals.tasks.base import Example, Scores, Task, by_kind, points, register, with_images
from atp.evals.tasks.coco_files import read_instances
from atp.evals.tasks.files import Problems, Source, read_lines

FILE = "coco_pope_{variant}.json"
ROW = {"question_id": int, "image": str, "text": str, "label": str}


@register("pope")
class Pope(Task):
    """Yes-no questions about single objects, in variants by how the absent ones were chosen. https://arxiv.org/abs/2305.10355.

    The reported F1 of LLaVA-1.5 is the mean over the three variants, as `metrics["f1"]` is. `tables[variant]` has the bound of
    a blind guess beside each variant's scores; by name, `tables["yes_share"]` says how unbalanced the true answers are,
    `tables["questions"]` how many there are, `tables["right"]` the accuracy.
    """

    primary = "accuracy"
    modes = rules.MODES

    def __init__(self, examples: Sequence[Example], problems: Problems, source: str, mode: str = "") -> None:
        super().__init__(examples, problems, mode)
        self.source = source

    @classmethod
    def read(
        cls,
        source: Source,
        mode: str = "",
        variants: Sequence[str] = rules.VARIANTS,
        generate: bool = False,
        count: int = 500,
        seed: int = 0,
    ) -> Pope:
        """Read `coco_pope_<variant>.json`, or make the questions from instances where there is none of these files.

        Args:
            source: split `val`, ...
            mode: how answers are read.
            variants: of `pope_rules.VARIANTS`; `balanced` is always made.
            generate: make all questions even where the files are.
            count: images to draw when making questions.
            seed: of the draw.

        Raises:
            BadInput: unknown variant; neither question files nor instances.
        """
        for variant in variants:
            if variant not in (*rules.VARIANTS, rules.BALANCED):
                raise BadInput(f"POPE has no variant {variant!r}; choose of {', '.join((*rules.VARIANTS, rules.BALANCED))}")
        files = {variant: source.find(FILE.format(variant=variant)) for variant in variants if variant != rules.BALANCED}
        given = not generate and any(files.values())
        made = [variant for variant in variants if not given or variant == rules.BALANCED]
        drawn = _drawn(source, count, seed) if made else {}
        read = {v: _made(source, v, drawn, seed) if v in made else _official(source, v) for v in variants}
        mixed = [example for example in chain.from_iterable(zip_longest(*read.values())) if example is not None]
        return cls(with_images(source, mixed), source.problems, "official files" if given else f"made, seed {seed}", mode)

    def rate(self, said: Sequence[str]) -> Scores:
        """Score by variant and over all: accuracy, precision, recall, F1, share of yes said and true, and the blind bound."""
        answers = np.array([rules.parse(text, self.mode) for text in said])
        labels = np.array([example.answer for example in self.examples])
        names = [rules.named(example.question) for example in self.examples]
        kinds = np.array([example.kind for example in self.examples])
        tables: dict[str, dict[str, float]] = {}
        for variant in dict.fromkeys(kinds.tolist()):
            chosen = np.flatnonzero(kinds == variant)
            found = rules.measured(answers[chosen].tolist(), labels[chosen].tolist())
            found["blind"] = rules.blind([names[i] for i in chosen], labels[chosen].tolist())
            found["true_yes"] = float(np.mean(labels[chosen] == "yes"))
            tables[variant] = {name: 100 * value for name, value in found.items()}
        items = {"accuracy": (answers == labels).astype(float), "yes_ratio": (answers == "yes").astype(float)}
        metrics = {name: points(values) for name, values in items.items()}
        for name in ("precision", "recall", "f1", "true_yes", "blind"):
            metrics[name] = float(np.mean([table[name] for table in tables.values()]))
        shares = rules.yes_share(names, labels.tolist())
        tables["yes_share"] = {name: 100 * share for name, share in shares.items()}
        tables["questions"] = {name: float(names.count(name)) for name in shares}
        tables["right"] = by_kind(names, items["accuracy"])
        return Scores(metrics, items, tables, {"unclear": int((answers == "").sum())})


def _official(source: Source, variant: str) -> list[Example]:
    path = source.need(f"POPE questions ({variant})", FILE.format(variant=variant))
    out = []
    for row in source.checked(path, read_lines(path), ROW, "question_id"):
        if row["label"] not in ("yes", "no"):
            source.problems.add(f"labels other than yes and no in {path.name}", row["question_id"])
            continue
        key = f"{variant}:{row['question_id']}"
        out.append(Example(key, source.image(row["image"]), row["text"], (row["label"],), variant, row["image"]))
    return out


def _drawn(source: Source, count: int, seed: int) -> dict[str, Sequence[str]]:
    instances = read_instances(source)
    return rules.sample({instances.files[image]: found for image, found in instances.objects.items()}, count, seed)


def _made(source: Source, variant: str, drawn: dict[str, Sequence[str]], seed: int) -> list[Example]:
    return [
        Example(f"{variant}:{number}", source.image(poll.image), poll.text, (poll.label,), variant, poll.image)
        for number, poll in enumerate(rules.build(drawn, variant, seed), 1)
    ]
