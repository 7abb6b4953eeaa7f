"""How many of a stage's texts, matrices or trials are done, reported to whoever shows the stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Counted = Callable[[int, int, str], None]
"""Is given how many are done, of how many, and what they are."""

SHOWN: ContextVar[Counted | None] = ContextVar("SHOWN", default=None)


@contextmanager
def shown_by(listener: Counted) -> Iterator[None]:
    """Report what is counted within to a listener."""
    token = SHOWN.set(listener)
    try:
        yield
    finally:
        SHOWN.reset(token)


def counted(items: Sequence[Item], noun: str) -> Iterator[Item]:
    """The same items, each reported when the next one is asked for."""
    listener = SHOWN.get()
    for number, item in enumerate(items, start=1):
        yield item
        if listener is not None:
            listener(number, len(items), noun)
