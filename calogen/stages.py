"""What long work is doing, said to whoever waits for it: a terminal, a notebook, or nobody.

Work says :func:`stage`, however deep in it one is; whoever started it listens with :func:`reporting`. Nothing is passed
through the functions in between, and nothing happens where nobody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int], None]
"""Called with what is done, how much of it is done, and how much there is to do (0: nobody knows)."""

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def reporting(listener: Listener | None) -> Iterator[None]:
    """Let somebody know the stages of the work done inside.

    Example:
        >>> def show(what, done, of):
        ...     print(f"{what}: {done} of {of}")
        >>> with reporting(show):
        ...     stage("reading", 1, 3)
        reading: 1 of 3

    Args:
        listener: Hears of every stage; None changes nothing.
    """
    token = _LISTENER.set(listener or _LISTENER.get())
    try:
        yield
    finally:
        _LISTENER.reset(token)


def stage(what: str, done: int = 0, of: int = 0) -> None:
    """Say what is being done.

    Args:
        what: In a few words, as in ``fitting layer 2``.
        done: How much of it is done.
        of: How much there is to do; 0 where nobody knows.
    """
    if (listener := _LISTENER.get()) is not None:
        listener(what, done, of)


def counted(what: str, items: Iterable[T], of: int) -> Iterator[T]:
    """The same items, each said before it is worked on.

    Args:
        what: As for :func:`stage`.
        items: What is worked on, one by one.
        of: How many there are.
    """
    for number, item in enumerate(items):
        stage(what, number, of)
        yield item
