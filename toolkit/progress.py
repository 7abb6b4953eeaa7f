"""What a person sees while something runs: on stderr, and bars only on a terminal."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click

from toolkit.terminal import escaped

CLEAR = "\r\x1b[K"
"""Back to the start of a terminal's line, and the line emptied."""
AT_ONCE = 0.02
"""Seconds in which no weight is done anew."""
WIDTH = 20
"""Characters of a bar."""


class StageProgress:
    """A line for each stage with the time it took; on a terminal the line is there while the stage runs."""

    def __init__(self, check: Callable[[], None] | None = None) -> None:
        """`check` is called before each stage."""
        self.check = check
        self.download: tuple[float, int] | None = None
        """When the download began to be shown, and the bytes that were there then."""
        self.advance: tuple[float, int, float] | None = None
        """When weights began to be done, the bytes that were done then, and when it was last told."""

    def begin(self, stage: str) -> None:
        if self.check is not None:
            self.check()
        if sys.stderr.isatty():
            click.echo(f"  ...     {escaped(stage)}", err=True, nl=False)

    def end(self, stage: str, seconds: float) -> None:
        click.echo(f"{fresh_line()}  {seconds:5.1f} s {escaped(stage)}", err=True)

    def note(self, text: str) -> None:
        click.echo(f"{fresh_line()}note: {escaped(text)}", err=True)

    def downloaded(self, done: int, total: int) -> None:
        """Show how far a download is: bytes, rate and the time that is left; called again and again."""
        if not sys.stderr.isatty():
            return
        now = time.monotonic()
        if self.download is None:
            self.download = (now, done)
        since, before = self.download
        rate = (done - before) / (now - since) if now > since else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
        shown = f"  {megabytes(done)} of {megabytes(total)}, {rate / 1e6:.1f} MB/s{left}"
        click.echo(f"{CLEAR}{shown}", err=True, nl=False)

    def advanced(self, tensors: int, of_tensors: int, size: int, of_size: int) -> None:
        """Show how many of the weights are done; called after each."""
        now = time.monotonic()
        if tensors == 1 or self.advance is None or now - self.advance[2] < AT_ONCE:
            # The first of a stage, or what was done before and took no time now: no rate follows from that.
            self.advance = (now, size, now)
        since, before, _ = self.advance
        self.advance = (since, before, now)
        if not sys.stderr.isatty():
            return
        rate = (size - before) / (now - since) if now > since else 0.0
        left = f", {duration((of_size - size) / rate)} left" if rate > 0 else ""
        shown = f"  {tensors} of {of_tensors} tensors, {megabytes(size)} of {megabytes(of_size)}{left}"
        click.echo(f"{CLEAR}{shown}", err=True, nl=False)


def fresh_line() -> str:
    """What takes away a line that stands unfinished on a terminal."""
    return CLEAR if sys.stderr.isatty() else ""


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@contextmanager
def bar(stream: BinaryIO, *, enabled: bool, verb: str = "embedding") -> Iterator[Callable[[int, int], None]]:
    """Show how far a stream of texts is; called with the bytes and the texts done since the last call.

    A bar with rate and time left over a file, whose size is known; a running count for a pipe. What is passed over with
    no texts was done before, and does not count for the rate.
    """
    if not enabled or not sys.stderr.isatty():
        yield lambda _bytes, _texts: None
        return
    status = os.fstat(stream.fileno())
    shown = TextProgress(status.st_size if stat.S_ISREG(status.st_mode) else None, verb=verb)
    try:
        yield shown.advance
    finally:
        click.echo(err=True)


class TextProgress:
    """How far a stream of `total` bytes is; None where that is not known."""

    def __init__(self, total: int | None, *, verb: str = "embedding") -> None:
        self.total = total
        self.verb = verb
        self.start = time.monotonic()
        self.done = 0
        self.skipped = 0
        self.texts = 0

    def advance(self, size: int, texts: int) -> None:
        self.done += size
        self.texts += texts
        if texts == 0:
            self.skipped += size
            return
        click.echo(f"{CLEAR}{self.line(time.monotonic() - self.start)}", err=True, nl=False)

    def line(self, seconds: float) -> str:
        rate = f"{self.texts} texts, {rated(self.texts / max(seconds, 1e-9))} texts/s"
        if self.total is None:
            return f"{self.verb} {megabytes(self.done)}, {rate}"
        part = self.done / max(self.total, 1)
        filled = int(part * WIDTH)
        left = seconds * (self.total - self.done) / max(self.done - self.skipped, 1)
        return f"{self.verb} [{'#' * filled}{'-' * (WIDTH - filled)}] {part:4.0%}, {rate}, {duration(left)} left"


def rated(rate: float) -> str:
    """A rate in two digits at least, since some models write a word in seconds."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
