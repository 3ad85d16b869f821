"""Do models see what usually stands there? Objects that go together in training images, one of them absent. COCO instances files.

Each name is asked in three sorts of images, equally many of each: `companion` (absent, but what it mostly goes with is there),
`control` (both absent) and `present`. A model that answers from what it sees says yes as seldom in the first as in the second.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atp.errors import BadInput
from atp.evals.tasks import pope_rules as rules
from atp.evals.tasks.base import Example, Scores, Task, points, register, with_images
from atp.evals.tasks.coco_files import INSTANCES, Instances, read_instances
from atp.evals.tasks.files import Problems, Source

SORTS = ("companion", "control", "present")
FALSE_YES = {"companion": "false_yes_companion", "control": "false_yes_control"}


@dataclass(frozen=True)
class Probe:
    """One question: a poll, the sort of its image, and the name that the asked one goes with."""

    poll: rules.Poll
    sort: str
    companion: str


def companions(objects: Sequence[Sequence[str]]) -> dict[str, str]:
    """Name -> the other name that raises its chance most: largest P(name | other) - P(name), ties by name.

    Args:
        objects: names in each training image, each once. Names that no other one raises are left out.
    """
    alone: Counter[str] = Counter()
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for found in objects:
        alone.update(found)
        for name in found:
            together[name].update(other for other in found if other != name)
    out = {}
    for name, counts in together.items():
        raised = {other: n / alone[other] - alone[name] / len(objects) for other, n in counts.items()}
        best = min(raised, key=lambda other: (-raised[other], other), default="")
        if best and raised[best] > 0:
            out[name] = best
    return out


def build(objects: Mapping[str, Sequence[str]], goes_with: Mapping[str, str], most: int, seed: int) -> list[Probe]:
    """Make the questions.

    Args:
        objects: image -> names in it.
        goes_with: from `companions`.
        most: images of each sort and name.
        seed: of the draw.
    """
    probes = []
    for name, other in sorted(goes_with.items()):
        sorts: dict[str, list[str]] = {sort: [] for sort in SORTS}
        for image, found in sorted(objects.items()):
            sorts["present" if name in found else "companion" if other in found else "control"].append(image)
        size = min(most, *(len(images) for images in sorts.values()))
        rng = random.Random(f"{name}:{seed}")
        for sort, images in sorts.items():
            label = "yes" if sort == "present" else "no"
            probes += [Probe(rules.Poll(image, name, label), sort, other) for image in sorted(rng.sample(images, size))]
    return probes


@register("spurious")
class Spurious(Task):
    """Spurious correlation: how much more often an absent object is seen where its usual companion is.

    Differences: POPE's adversarial questions take what goes together from the images asked; this takes it from the training
    images, and asks the same names without the companion to compare with. Generated scenes draw objects independently, so
    on them the gap of a model that looks is 0 but for chance.
    """

    primary = "accuracy"
    modes = rules.MODES

    def __init__(
        self, examples: Sequence[Example], problems: Problems, goes_with: Mapping[str, str], source: str, mode: str = ""
    ) -> None:
        super().__init__(examples, problems, mode)
        self.goes_with, self.source = goes_with, source

    @classmethod
    def read(cls, source: Source, mode: str = "", train: str = "train", most: int = 10, seed: int = 0) -> Spurious:
        """Read the instances of the split, and those of the training split for what goes together.

        Args:
            source: split `val`, ...
            mode: how answers are read, see `pope_rules`.
            train: split that what goes together is counted over; where its file is absent, the asked split's own.
            most: images of each sort and name.
            seed: of the draw.

        Raises:
            BadInput: no instances; no two objects that go together.
        """
        asked = read_instances(source)
        taught = _taught(source, train, asked)
        goes_with = companions([found for found in taught.objects.values() if found])
        named = {asked.files[image]: found for image, found in asked.objects.items()}
        probes = build(named, goes_with, most, seed)
        if not probes:
            raise BadInput(f"no question can be made from {len(named)} images: every sort of image needs one; add images")
        examples = [
            Example(
                f"{p.sort}:{p.poll.name}:{p.poll.image}",
                source.image(p.poll.image),
                p.poll.text,
                (p.poll.label,),
                p.sort,
                p.poll.image,
            )
            for p in probes
        ]
        where = train if taught is not asked else source.split
        return cls(with_images(source, examples), source.problems, goes_with, f"what goes together in {where}", mode)

    def rate(self, said: Sequence[str]) -> Scores:
        """Score by accuracy, recall, the two rates of false yes, and `gap`, their difference (a plain reader of images: 0)."""
        answers = np.array([rules.parse(text, self.mode) for text in said])
        labels = np.array([example.answer for example in self.examples])
        sorts, yes = np.array(self.kinds), (answers == "yes").astype(float)
        items = {"accuracy": (answers == labels).astype(float)}
        for sort, metric in (*FALSE_YES.items(), ("present", "recall")):
            items[metric] = np.where(sorts == sort, yes, np.nan)
        items = {name: values for name, values in items.items() if not np.isnan(values).all()}
        metrics = {name: points(values) for name, values in items.items()}
        if set(FALSE_YES.values()) <= set(metrics):
            metrics["gap"] = metrics["false_yes_companion"] - metrics["false_yes_control"]
        names = np.array([rules.named(example.question) for example in self.examples])
        table = {}
        for name in sorted(set(names.tolist())):
            with_it, without = (yes[(names == name) & (sorts == sort)] for sort in FALSE_YES)
            if len(with_it) and len(without):
                table[name] = points(with_it) - points(without)
        return Scores(metrics, items, {"gap": table}, {"names": len(table)})


def _taught(source: Source, train: str, asked: Instances) -> Instances:
    other = Source(source.folder, train, False, source.problems)
    return asked if train == source.split or other.find(INSTANCES) is None else read_instances(other)
