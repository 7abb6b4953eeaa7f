"""Report the progress of an export: one protocol, called by everything that takes long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")

BYTES = "bytes"
"""The unit of downloads and of weights."""
_SECONDS_BETWEEN = 0.2
"""Seconds between two updates of a download."""


class Progress(Protocol):
    """Shows the progress of an export; implement it to show your own, and give it to `export(progress=...)`.

    All methods are called from the thread that exports. What they raise ends the export.
    """

    def begin(self, stage: str) -> None:
        """A stage begins, such as `trace with Optimum`; stages do not overlap."""

    def end(self, stage: str, seconds: float) -> None:
        """The stage ended without an error, after so many seconds."""

    def note(self, text: str) -> None:
        """A message for the user that does not stop the export."""

    def update(self, done: int, total: int, unit: str) -> None:
        """So many of a stage's items are done; `unit` is `bytes` of a download or of weights, `texts`, `pairs`, ...

        A stage may count several times from the beginning, in the same unit or in another one.
        """


class NoProgress:
    """Progress that shows nothing."""

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def update(self, done: int, total: int, unit: str) -> None: ...


_CURRENT: ContextVar[Progress | None] = ContextVar("_CURRENT", default=None)


@contextmanager
def stage(progress: Progress, name: str) -> Iterator[None]:
    """Report the beginning and the end of a stage, and to the same listener what `counted` counts within it."""
    progress.begin(name)
    start = time.perf_counter()
    token = _CURRENT.set(progress)
    try:
        yield
    finally:
        _CURRENT.reset(token)
    progress.end(name, time.perf_counter() - start)


def counted(items: Sequence[Item], unit: str) -> Iterator[Item]:
    """Yield the items, and report each as done to the listener of the current stage when the next one is asked for."""
    progress = _CURRENT.get()
    for number, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress.update(number, len(items), unit)


class WeightCounter:
    """Reports how many bytes of weights are done, tensor by tensor."""

    def __init__(self, progress: Progress | None, sizes: Sequence[int]) -> None:
        """`sizes` are the bytes of each tensor."""
        self._progress = progress
        self._total = sum(sizes)
        self._done = 0

    def advance(self, size: int) -> None:
        """Count a tensor of `size` bytes as done."""
        self._done += size
        if self._progress is not None:
            self._progress.update(self._done, self._total, BYTES)


class DownloadCounter:
    """Reports how many bytes of several files are downloaded, a few times a second."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._complete = 0
        """Bytes of the files that are complete."""
        self._last = 0.0
        self.current = 0
        """Bytes of the file that is being downloaded."""

    def at(self, size: int) -> None:
        """So many bytes of the current file are there."""
        self.current = size
        now = time.monotonic()
        if self._progress is not None and now - self._last >= _SECONDS_BETWEEN:
            self._last = now
            self._progress.update(min(self._complete + size, self._total), self._total, BYTES)

    def complete(self, size: int) -> None:
        """The current file, of `size` bytes, is complete."""
        self._complete += size
        self.current = 0

    def finish(self) -> None:
        """All files are complete."""
        if self._progress is not None:
            self._progress.update(self._total, self._total, BYTES)
