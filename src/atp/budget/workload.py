"""What a prompt is made of, as far as FLOPs go. Plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

from atp.errors import InvalidPlan
from atp.plan import Step

TAIL = 32
"""Last text tokens of a prompt that stay where others leave; chosen to hold question, instruction and the template's end."""


@dataclass(frozen=True)
class Workload:
    """What one prompt asks for.

    Attributes:
        images: images of the prompt.
        text: prompt tokens that are not visual.
        answer: generated tokens; the first comes from the prefill, so there are `answer - 1` decode steps.
        protected: text tokens that stay in any case where text leaves; None = the first and the last 32.
    """

    images: int = 1
    text: int = 32
    answer: int = 3
    protected: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("images", 0), ("text", 0), ("answer", 1), ("protected", 0)):
            value = getattr(self, name)
            if name == "protected" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidPlan(
                    f"a workload's {name} is a whole number >= {least}, got {value!r}; e.g. Workload(images=1, text=32, answer=3)"
                )

    @property
    def stays(self) -> int:
        """Text tokens that never leave."""
        return min(self.text, TAIL + 1 if self.protected is None else self.protected)

    def text_after(self, step: Step | None, alive: float) -> float:
        """Text tokens that are there from a step on; `alive` before it."""
        if step is None or step.text == 1:
            return alive
        return min(alive, float(max(min(1, self.text), round(step.text * self.text), self.stays)))
