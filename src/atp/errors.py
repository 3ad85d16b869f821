"""Every exception that atp raises on purpose. Knows nothing of the rest of the package.

A message says what was given, what was expected and the nearest fix that can be pasted.
"""

from __future__ import annotations


class AtpError(Exception):
    """Base of all errors raised by atp."""


class UnsupportedModel(AtpError):
    """The model, its cache, its mask or a transformers version that atp cannot prune exactly."""


class UnknownMethod(AtpError):
    """No method of that name is registered."""


class InvalidPlan(AtpError):
    """A plan, a step or a budget that this model cannot follow."""


class UnreachableBudget(InvalidPlan):
    """A budget that is lower than a method can reach on this model.

    Attributes:
        lowest: the lowest budget that it can reach, rounded up to two decimals.
    """

    def __init__(self, message: str, lowest: float) -> None:
        super().__init__(message)
        self.lowest = lowest


class AlreadyPruned(AtpError):
    """`prune` was called on a model that is being pruned."""


class BadInput(AtpError):
    """An image, a question or a file that cannot be used."""


class NothingPruned(AtpError):
    """A strict run whose plan removed no token."""


def told(value: object) -> str:
    """Return a value in few words, and its type, for a message."""
    return f"{' '.join(repr(value).split())[:60]} ({type(value).__name__})"
