"""What `prune` returns: nothing happens before its block is entered; who forgets the `with` is told. Part of the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from contextlib import _GeneratorContextManager
from typing import NoReturn, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


class Block(_GeneratorContextManager[T]):
    """What `contextlib.contextmanager` makes, with words for those who take it for what it yields."""

    __name__: str

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"atp.{self.__name__}(...) has no {name!r}, and nothing is pruned before its block is entered; write "
            f"`with atp.{self.__name__}(...) as run:`, call the model inside, and use run.{name}"
        )


def block(made: Callable[P, Iterator[T]]) -> Callable[P, Block[T]]:
    """Make a function that yields once return a `Block`, as `contextlib.contextmanager` would."""

    @functools.wraps(made)
    def called(*args: P.args, **kwargs: P.kwargs) -> Block[T]:
        opened: Block[T] = Block(cast(Callable[..., Generator[T, None, None]], made), args, kwargs)
        opened.__name__ = made.__name__
        return opened

    return called
