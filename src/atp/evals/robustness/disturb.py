"""One disturbance of a picture or a question, and lists of them as a command line names them. Knows names, nothing of models.

A disturbance depends on its name, severity and seed and on the image's or question's key, so all settings compared meet the
same pictures and questions whatever the order, the batch or the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

from atp.errors import BadInput
from atp.evals.robustness.constants import COMMON, CORRUPTIONS, EXTRA
from atp.evals.robustness.perturb import PERTURBATIONS, SEVERITIES, check_severity, perturb
from atp.evals.robustness.replaced import replace_words
from atp.registry import did_you_mean

REPLACED = "replaced"
NAMES = (*CORRUPTIONS, *PERTURBATIONS, REPLACED)
GROUPS = {
    "common": COMMON,
    "extra": EXTRA,
    "pictures": CORRUPTIONS,
    "questions": PERTURBATIONS,
    "all": CORRUPTIONS + PERTURBATIONS,
}


@dataclass(frozen=True)
class Disturbance:
    """What is done to the items of one run.

    Attributes:
        name: one of `NAMES`: a corruption of the picture, a perturbation of the question, or "replaced".
        severity: 1..5.
        seed: of the whole disturbed set.

    Raises:
        BadInput: no such name or severity.
    """

    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise BadInput(f"unknown disturbance {self.name!r}.{did_you_mean(self.name, NAMES)} Known: {', '.join(NAMES)}")
        check_severity(self.severity)

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"

    @property
    def of_picture(self) -> bool:
        """Whether the picture is disturbed; else the question is."""
        return self.name in CORRUPTIONS

    @property
    def keeps_answer(self) -> bool:
        """Whether the true answer stays; only replaced words make another question."""
        return self.name != REPLACED

    def picture(self, image: Image.Image, key: str) -> Image.Image:
        """Return the picture, corrupted where this is a corruption; needs scipy then.

        Args:
            image: any mode; a corrupted one is RGB.
            key: of the image, not of the question, so questions about one image see one picture.
        """
        if not self.of_picture:
            return image
        from atp.evals.robustness.corruptions import corrupt_image  # scipy only where it is needed

        return corrupt_image(image, self.name, self.severity, key, self.seed)

    def question(self, text: str, key: str) -> str:
        """Return the question, perturbed where this is a perturbation.

        Args:
            text: without the model's prompt around it.
            key: of the question.
        """
        if self.of_picture:
            return text
        if self.name == REPLACED:
            return replace_words(text, self.severity, key, self.seed).text
        return perturb(text, self.name, self.severity, key, self.seed).text


def read_disturbances(text: str, seed: int = 0) -> tuple[Disturbance, ...]:
    """Read a list such as "common,typing:3,fog:1-2"; without severities, all five; doubles are asked once.

    Args:
        text: names or groups (`GROUPS`), separated by commas, each with a severity or a range of them.
        seed: of the disturbed set.

    Raises:
        BadInput: an unknown name, a severity out of 1..5, an empty list.

    Example:
        >>> [str(d) for d in read_disturbances("fog:1-2,typing:3")]
        ['fog:1', 'fog:2', 'typing:3']
    """
    found: dict[Disturbance, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(?::\s*(\d+)\s*(?:-\s*(\d+))?)?\s*", part)
        if match is None:
            raise BadInput(
                f"cannot read {part!r} in {text!r}; write a name, name:severity or name:first-last: fog, fog:3, fog:1-3"
            )
        name, low, high = match[1], int(match[2] or SEVERITIES[0]), int(match[3] or match[2] or SEVERITIES[-1])
        if low > high:
            raise BadInput(f"severities of {part.strip()!r} run backwards; write {name}:{high}-{low}")
        if name not in NAMES and name not in GROUPS:
            hint = did_you_mean(name, (*GROUPS, *NAMES))
            raise BadInput(f"unknown disturbance {name!r}.{hint} Known: {', '.join((*GROUPS, *NAMES))}")
        for one in GROUPS.get(name, (name,)):
            for severity in range(low, high + 1):
                found[Disturbance(one, severity, seed)] = None
    return tuple(found)
