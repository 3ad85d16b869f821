"""What all inputs of a run kept at each site, in numbers that do not grow with the run. Part of the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Kept:
    """Counts of one site: images in the tower, prompts in the language model.

    Attributes:
        inputs: how many passed it with a token to choose from.
        total: tokens kept, of all of them.
        least, most: tokens kept, of one.
    """

    inputs: int = 0
    total: int = 0
    least: int = 0
    most: int = 0

    def add(self, started: Iterable[int], counts: Iterable[int]) -> None:
        """Add the inputs of one pass, by the tokens that they started with and keep."""
        for count in (count for begun, count in zip(started, counts, strict=True) if begun):
            self.least = min(self.least, count) if self.inputs else count
            self.inputs, self.total, self.most = self.inputs + 1, self.total + count, max(self.most, count)

    @property
    def mean(self) -> float:
        """Tokens kept, on average."""
        return self.total / self.inputs if self.inputs else 0.0

    def to_dict(self) -> dict[str, float]:
        """Return plain values."""
        return {"inputs": self.inputs, "mean": self.mean, "least": self.least, "most": self.most}

    def __str__(self) -> str:
        if self.least == self.most:
            return ""
        return f"; of all {self.inputs} inputs: mean {self.mean:.1f}, least {self.least}, most {self.most}"
