"""The stages of an export: what is told of them while they run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from exporters.counts import shown_by
from exporters.sources import Listener


class Progress(Listener, Protocol):
    """Is told what an export does; the command line shows it."""

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str, seconds: float) -> None: ...

    def advanced(self, tensors: int, of_tensors: int, size: int, of_size: int) -> None: ...

    def counted(self, done: int, total: int, noun: str) -> None: ...


class Silence:
    """Shows nothing."""

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def downloaded(self, done: int, total: int) -> None: ...

    def advanced(self, tensors: int, of_tensors: int, size: int, of_size: int) -> None: ...

    def counted(self, done: int, total: int, noun: str) -> None: ...


@contextmanager
def stage(told: Progress, name: str) -> Iterator[None]:
    told.begin(name)
    start = time.perf_counter()
    with shown_by(told.counted):
        yield
    told.end(name, time.perf_counter() - start)
