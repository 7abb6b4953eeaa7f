"""What a person sees while something runs: on stderr, and bars only on a terminal.

A line of progress begins with CLEAR, which empties the line that it replaces, and has no end. All that is no progress
begins on a line of its own: `OwnLines` sees to it, whoever writes.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol

import click

from toolkit.terminal import escaped

CLEAR = "\r\x1b[K"
"""Back to the start of a terminal's line, and the line emptied."""
AT_ONCE = 0.02
"""Seconds in which no weight is done anew."""
WIDTH = 20
"""Characters of a bar."""
HEARTBEAT = 1.0
"""Seconds after which a stage that tells nothing shows that it still runs."""
REDRAW = 0.1
"""Seconds between two lines that show a count."""


class OwnLines(io.TextIOWrapper):
    """Stderr on a terminal, which ends a line of progress before anything else is written, an error or a warning."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, stream.errors, line_buffering=True, write_through=True)
        self.unfinished = False
        self.writing = threading.RLock()

    def write(self, text: str, /) -> int:
        with self.writing:
            if self.unfinished and text and not text.startswith(("\r", "\n")):
                super().write("\n")
            if text:
                self.unfinished = text.startswith(CLEAR) and not text.endswith("\n")
            return super().write(text)


def show(line: str) -> None:
    """Show a line of progress in place of the one before."""
    click.echo(f"{CLEAR}{line}", err=True, nl=False)


class StageProgress:
    """The progress of an export (`exporters.Progress`): a line for each stage with the time it took.

    On a terminal the line is there while the stage runs.

    Used as a context manager, so that nothing is shown any more after an error.
    """

    def __init__(self, check: Callable[[], None] | None = None) -> None:
        """`check` is called before each stage."""
        self.check = check
        self.measured: tuple[float, int, float] | None = None
        """When bytes began to be counted, how many were done then, and when they were last counted."""
        self.shown = 0.0
        """When a line was last shown."""
        self.stop: threading.Event | None = None
        self.thread: threading.Thread | None = None

    def __enter__(self) -> StageProgress:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *_error: object) -> None:
        self.quieten()

    def begin(self, stage: str) -> None:
        if self.check is not None:
            self.check()
        self.quieten()
        self.measured = None
        if sys.stderr.isatty():
            show(f"  ...     {escaped(stage)}")
            self.stop = threading.Event()
            self.thread = threading.Thread(target=self.beat, args=(stage, self.stop), daemon=True)
            self.thread.start()

    def beat(self, stage: str, stop: threading.Event) -> None:
        """Show how long a stage has run, where nothing else is shown of it."""
        began = time.monotonic()
        while not stop.wait(HEARTBEAT):
            now = time.monotonic()
            if now - self.shown >= HEARTBEAT:
                show(f"  ...     {escaped(stage)}, {duration(now - began)}")

    def quieten(self) -> None:
        """Show nothing more of the stage that ran."""
        if self.stop is not None and self.thread is not None:
            self.stop.set()
            self.thread.join()
        self.stop = self.thread = None

    def end(self, stage: str, seconds: float) -> None:
        self.quieten()
        click.echo(f"{fresh_line()}  {seconds:5.1f} s {escaped(stage)}", err=True)

    def note(self, text: str) -> None:
        click.echo(f"{fresh_line()}note: {escaped(text)}", err=True)

    def update(self, done: int, total: int, unit: str) -> None:
        """Show how many of a stage's items are done; of bytes, the rate and the time that is left too."""
        now = time.monotonic()
        if unit == "bytes":
            self.update_bytes(done, total, now)
        elif sys.stderr.isatty() and (done == total or now - self.shown >= REDRAW):
            self.draw(f"  {done} of {total} {unit}", now)

    def update_bytes(self, done: int, total: int, now: float) -> None:
        if self.measured is None or done < self.measured[1] or now - self.measured[2] < AT_ONCE:
            # The first of a stage, or what was done before and took no time now: no rate follows from that.
            self.measured = (now, done, now)
        since, before, _ = self.measured
        self.measured = (since, before, now)
        if not sys.stderr.isatty():
            return
        rate = (done - before) / (now - since) if now > since else 0.0
        left = f", {rate / 1e6:.1f} MB/s, {duration((total - done) / rate)} left" if rate > 0 else ""
        self.draw(f"  {megabytes(done)} of {megabytes(total)}{left}", now)

    def draw(self, line: str, now: float) -> None:
        self.shown = now
        show(line)


def fresh_line() -> str:
    """What takes away a line that stands unfinished on a terminal."""
    return CLEAR if sys.stderr.isatty() else ""


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


class Progress(Protocol):
    """Is told how far a stream of texts is."""

    def advance(self, size: int, texts: int) -> None:
        """So many bytes and texts more are done; what is passed over with no texts was done before."""

    def within(self, texts: int) -> None:
        """So many texts more of those that are computed together are done; called from several threads."""


class NoProgress:
    """Shows nothing."""

    def advance(self, size: int, texts: int) -> None: ...

    def within(self, texts: int) -> None: ...


@contextmanager
def bar(stream: BinaryIO, *, enabled: bool, output: str | None, verb: str = "embedding") -> Iterator[Progress]:
    """Show how far a stream of texts is, from the beginning on.

    A bar with rate and time left over a file, whose size is known; a running count for a pipe. Nothing where results go
    to the terminal itself.
    """
    if not enabled or not sys.stderr.isatty() or (output is None and sys.stdout.isatty()):
        yield NoProgress()
        return
    status = os.fstat(stream.fileno())
    shown = TextProgress(status.st_size if stat.S_ISREG(status.st_mode) else None, verb=verb)
    show(f"{verb} ...")
    try:
        yield shown
    finally:
        if not isinstance(sys.stderr, OwnLines) or sys.stderr.unfinished:
            click.echo(err=True)


class TextProgress:
    """How far a stream of `total` bytes is; None where that is not known. What was done before counts for no rate."""

    def __init__(self, total: int | None, *, verb: str = "embedding") -> None:
        self.total = total
        self.verb = verb
        self.start = time.monotonic()
        self.done = 0
        self.skipped = 0
        self.texts = 0
        self.ahead = 0
        """Texts that are computed, and not written yet."""
        self.shown = 0.0
        self.counting = threading.Lock()

    def advance(self, size: int, texts: int) -> None:
        with self.counting:
            self.done += size
            self.texts += texts
            self.ahead = 0
            if texts == 0:
                self.skipped += size
                return
            show(self.line(time.monotonic() - self.start))

    def within(self, texts: int) -> None:
        with self.counting:
            self.ahead += texts
            now = time.monotonic()
            if now - self.shown < REDRAW:
                return
            self.shown = now
            show(self.line(now - self.start))

    def line(self, seconds: float) -> str:
        texts = self.texts + self.ahead
        rate = f"{texts} texts, {rated(texts / max(seconds, 1e-9))} texts/s"
        if self.total is None:
            return f"{self.verb} {megabytes(self.done)}, {rate}"
        part = self.done / max(self.total, 1)
        filled = int(part * WIDTH)
        new = self.done - self.skipped
        left = f", {duration(seconds * (self.total - self.done) / new)} left" if new else ""
        return f"{self.verb} [{'#' * filled}{'-' * (WIDTH - filled)}] {part:4.0%}, {rate}{left}"


def rated(rate: float) -> str:
    """A rate in two digits at least, since some models write a word in seconds."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
