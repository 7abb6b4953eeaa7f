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

CLEAR = "\r\x1b[K"
"""Back to the start of a terminal's line, and the line emptied."""


class StageProgress:
    """A line for each stage with the time it took; on a terminal the line is there while the stage runs."""

    def __init__(self) -> None:
        self.download: tuple[float, int] | None = None
        """When the download began to be shown, and the bytes that were there then."""

    def begin(self, stage: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"  ...     {stage}", err=True, nl=False)

    def end(self, stage: str, seconds: float) -> None:
        click.echo(f"{fresh_line()}  {seconds:5.1f} s {stage}", err=True)

    def note(self, text: str) -> None:
        click.echo(f"{fresh_line()}note: {text}", err=True)

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


def fresh_line() -> str:
    """What takes away a line that stands unfinished on a terminal."""
    return CLEAR if sys.stderr.isatty() else ""


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@contextmanager
def bar(stream: BinaryIO, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes of a file, a running count for a pipe; called with the bytes done since the last call."""
    if not enabled or not sys.stderr.isatty():
        yield lambda _: None
        return
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode):
        with click.progressbar(length=status.st_size, label="embedding", file=sys.stderr) as shown:
            yield shown.update
        return
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        click.echo(f"\rembedding {megabytes(done)}", err=True, nl=False)

    yield count
    click.echo(err=True)
