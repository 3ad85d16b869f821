"""Which objects a sentence mentions: synonyms, plurals and two-word names of COCO's categories. Knows strings only.

The list below is our own and covers the categories of the scenes. Where the folder has CHAIR's `synonyms.txt` (a line per
category: name, synonym, synonym), that one is used instead, unchanged. Other categories match by their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atp.errors import BadInput

SYNONYMS_FILE = "synonyms.txt"
LONGEST = 3  # words of a name

_OWN = """person, man, woman, boy, girl, child, kid, baby, adult, guy, lady, gentleman, player, rider, worker, toddler, human
bicycle, bike, cycle
car, automobile, sedan, taxi, cab, minivan, suv, hatchback
motorcycle, motorbike, motor bike, motor cycle, scooter, moped
airplane, plane, aeroplane, air plane, jet, aircraft, airliner, jetliner
bus, minibus
truck, lorry, pickup, firetruck, fire truck
boat, ship, sailboat, canoe, kayak, yacht, rowboat, ferry
traffic light, traffic signal, stoplight, stop light, street light
bird, duck, goose, pigeon, seagull, gull, parrot, owl, sparrow, eagle, penguin, chicken, rooster, hen
cat, kitten, kitty
dog, puppy, pup, poodle, terrier, hound
horse, pony, foal, colt, mare, stallion
sheep, lamb, ewe, ram
cow, cattle, bull, calf, ox, heifer
elephant
bear, panda
zebra
giraffe
backpack, rucksack, knapsack
umbrella, parasol
handbag, purse, hand bag
tie, necktie, bow tie, bowtie
suitcase, luggage, suit case, briefcase
kite
bottle
cup, mug
banana
apple
carrot
pizza
donut, doughnut
cake, cheesecake, cupcake
chair, seat, stool, armchair
couch, sofa, loveseat, settee
toilet, urinal, commode, lavatory
laptop, notebook computer, laptop computer
clock, alarm clock
vase
book, novel, textbook
circle, disc, disk
square
triangle
star
heart
diamond, rhombus"""

_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe".split()
# two words that stand for one object, or for none of the objects that their words name
_TWO_WORDS = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    **{f"passenger {what}": what for what in ("jet", "train", "plane", "car")},
    "toilet seat": "toilet",
    "car seat": "",
    "hot dog": "hot dog",
    "teddy bear": "teddy bear",
    "cup cake": "cake",
    "book case": "",
    "train track": "",
    "home plate": "",
}
_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "gentleman": "gentlemen", "goose": "geese",
    "calf": "calves", "ox": "oxen", "mouse": "mice", "knife": "knives", "foot": "feet", "leaf": "leaves", "wolf": "wolves",
    "sheep": "sheep", "cattle": "cattle", "aircraft": "aircraft", "luggage": "luggage", "skis": "skis", "scissors": "scissors",
}  # fmt: skip


def plural(name: str) -> str:
    """Plural of a name, its last word inflected.

    Example:
        >>> [plural(n) for n in ("bus", "puppy", "traffic light", "woman", "sheep", "toothbrush", "toy")]
        ['buses', 'puppies', 'traffic lights', 'women', 'sheep', 'toothbrushes', 'toys']
    """
    *before, word = name.split()
    if word in _PLURALS:
        word = _PLURALS[word]
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        word += "es"
    elif word.endswith("y") and word[-2:-1] not in "aeiou":
        word = word[:-1] + "ies"
    else:
        word += "s"
    return " ".join([*before, word])


@dataclass(frozen=True)
class Mention:
    """An object named in a sentence: its category, and the words before the name (closest last)."""

    name: str
    before: tuple[str, ...]


class Vocabulary:
    """Names of objects in sentences.

    Args:
        categories: of the data set; names without synonyms match as they are.
        synonyms: a `synonyms.txt`; None = our own list.

    Raises:
        BadInput: a synonyms file without a line.
    """

    def __init__(self, categories: Iterable[str], synonyms: Path | None = None) -> None:
        lines = (synonyms.read_text(encoding="utf-8") if synonyms else _OWN).splitlines()
        entries = [[part.strip() for part in line.split(",") if part.strip()] for line in lines if line.strip()]
        if not entries:
            raise BadInput(f"{synonyms}: no line 'name, synonym, ...'; remove it to use the list that atp brings")
        wanted = set(categories)
        known = {entry[0] for entry in entries}
        entries += [[name] for name in sorted(wanted - known)]
        names = {name: entry[0] for entry in entries for name in entry}
        for pair, one in _TWO_WORDS.items():
            names.setdefault(pair, names.get(one, ""))
        plurals = {plural(name): node for name, node in names.items()}
        self._nodes = {**plurals, **names}  # a synonym's own spelling wins over another's plural
        self._wanted = wanted

    def mentions(self, words: Sequence[str]) -> list[Mention]:
        """Objects in the order of their mention, repeats kept; the longest name wins.

        Args:
            words: lower case, as `words.plain` gives them.
        """
        if not {"toilet", "toilets"}.isdisjoint(words):  # its seat is no chair
            words = [word for word in words if word not in ("seat", "seats")]
        found: list[Mention] = []
        at, last = 0, 0
        while at < len(words):
            for length in range(min(LONGEST, len(words) - at), 0, -1):
                node = self._nodes.get(" ".join(words[at : at + length]))
                if node is not None:
                    if node in self._wanted:
                        found.append(Mention(node, tuple(words[last:at])))
                    at, last = at + length, at + length
                    break
            else:
                at += 1
        return found
