"""Names and what they stand for: register, get, list; unknown names say the nearest known one. Knows nothing else.

Third parties add methods through the entry-point group `atp.methods`; a plug-in that does not load warns and is left out.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, Generic, TypeVar

from atp.errors import AtpError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'fastv'?"`, or an empty string where nothing is near.

    Example:
        >>> did_you_mean("fastvv", ["fastv", "atp"])
        " Did you mean 'fastv'?"
    """
    close = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """Classes by name.

    Args:
        noun: what is registered, for messages ("method").
        error: what an unknown name raises.
        group: entry-point group of third parties, None = there is none.
    """

    def __init__(self, noun: str, error: type[AtpError], group: str | None = None) -> None:
        self.noun, self.error, self.group = noun, error, group
        self._entries: dict[str, type[T]] = {}
        self._loaded = group is None

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that files the class under `name`.

        Raises:
            AtpError: the name is taken by another class.
        """

        def add(cls: type[T]) -> type[T]:
            taken = self._entries.get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise AtpError(
                    f"{self.noun} {name!r} is already registered by {taken.__module__}.{taken.__qualname__}; "
                    f"choose another name for {cls.__module__}.{cls.__qualname__}"
                )
            cls.name = name  # type: ignore[attr-defined]
            self._entries[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """Return the class of that name.

        Raises:
            AtpError: of the registry's own kind, for an unknown name.
        """
        self._load()
        if not isinstance(name, str) or name not in self._entries:
            known = ", ".join(self.names())
            raise self.error(f"unknown {self.noun} {name!r}.{did_you_mean(str(name), self._entries)} Known: {known}")
        return self._entries[name]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        self._load()
        return sorted(self._entries)

    def _load(self) -> None:
        if self._loaded or self.group is None:
            return
        self._loaded = True
        for entry in metadata.entry_points(group=self.group):
            try:
                loaded: Any = entry.load()
                self.register(entry.name)(loaded)
            except Exception as error:  # a plug-in may fail in any way; it must not take the library with it
                warnings.warn(f"{self.noun} plug-in {entry.name!r} ({entry.value}) was left out: {error}", stacklevel=2)
