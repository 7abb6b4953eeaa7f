"""Progress on stderr: stages, downloads and bars; bars only on a terminal.

A progress line begins with CLEAR, which erases the line before, and has no line break. `OwnLines` begins all other
output on a new line, whoever writes it.
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

from ...runtime.sizes import megabytes
from .terminal import escaped

CLEAR = "\r\x1b[K"
"""Moves to the start of the line and erases it."""
_RESUMED_SECONDS = 0.02
"""Tensors that take less were resumed, not computed; they do not count for the rate."""
_WIDTH = 20
"""Width of a bar in characters."""
HEARTBEAT = 1.0
"""Seconds without an update after which a stage shows its elapsed time."""
REDRAW = 0.1
"""Least seconds between two updates of a line."""


class OwnLines(io.TextIOWrapper):
    """Stderr on a terminal; ends a progress line before other output, such as a warning, is written."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, stream.errors, line_buffering=True, write_through=True)
        self.unfinished = False
        self.writing = threading.RLock()

    def write(self, text: str, /) -> int:
        with self.writing:
            if self.unfinished and text and not text.startswith(("\r", "\n")):
                super().write("\n")
            if text:
                self.unfinished = text.startswith(CLEAR) and text != CLEAR and not text.endswith("\n")
            return super().write(text)


def show(line: str) -> None:
    """Replace the progress line."""
    click.echo(f"{CLEAR}{line}", err=True, nl=False)


class StageProgress:
    """Print each stage of an export with its duration; on a terminal, show it while it runs.

    Implements `exporters.Progress`. As a context manager, it ends the display after an error.
    """

    def __init__(self, check: Callable[[], None] | None = None) -> None:
        """`check` is called before each stage."""
        self.check = check
        self.measured: tuple[float, int, float] | None = None
        """Time and bytes at the first update of a stage, and the time of the last update."""
        self.shown = 0.0
        """Time of the last shown line."""
        self.stop: threading.Event | None = None
        self.thread: threading.Thread | None = None

    def __enter__(self) -> StageProgress:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop_beat()

    def begin(self, stage: str) -> None:
        if self.check is not None:
            self.check()
        self._stop_beat()
        self.measured = None
        if sys.stderr.isatty():
            show(f"  ...     {escaped(stage)}")
            self.stop = threading.Event()
            self.thread = threading.Thread(target=self._beat, args=(stage, self.stop), daemon=True)
            self.thread.start()

    def _beat(self, stage: str, stop: threading.Event) -> None:
        """Show the elapsed time of a stage while it has no updates."""
        began = time.monotonic()
        while not stop.wait(HEARTBEAT):
            now = time.monotonic()
            if now - self.shown >= HEARTBEAT:
                show(f"  ...     {escaped(stage)}, {duration(now - began)}")

    def _stop_beat(self) -> None:
        """Stop the thread that shows the elapsed time."""
        if self.stop is not None and self.thread is not None:
            self.stop.set()
            self.thread.join()
        self.stop = self.thread = None

    def end(self, stage: str, seconds: float) -> None:
        self._stop_beat()
        click.echo(f"{fresh_line()}  {seconds:5.1f} s {escaped(stage)}", err=True)

    def note(self, text: str) -> None:
        click.echo(f"{fresh_line()}note: {escaped(text)}", err=True)

    def update(self, done: int, total: int, unit: str) -> None:
        """Show how many items of a stage are done; for bytes, also the rate and the time left."""
        now = time.monotonic()
        if unit == "bytes":
            self._update_bytes(done, total, now)
        elif sys.stderr.isatty() and (done == total or now - self.shown >= REDRAW):
            self._draw(f"  {done} of {total} {unit}", now)

    def _update_bytes(self, done: int, total: int, now: float) -> None:
        if self.measured is None or done < self.measured[1] or now - self.measured[2] < _RESUMED_SECONDS:
            # The first update of a stage, or resumed bytes: not used for the rate.
            self.measured = (now, done, now)
        since, before, _ = self.measured
        self.measured = (since, before, now)
        if not sys.stderr.isatty():
            return
        rate = (done - before) / (now - since) if now > since else 0.0
        left = f", {megabytes(rate)}/s, {duration((total - done) / rate)} left" if rate > 0 else ""
        self._draw(f"  {megabytes(done)} of {megabytes(total)}{left}", now)

    def _draw(self, line: str, now: float) -> None:
        self.shown = now
        show(line)


def fresh_line() -> str:
    """CLEAR on a terminal, to erase a progress line; else an empty string."""
    return CLEAR if sys.stderr.isatty() else ""


def counted(number: int, noun: str) -> str:
    """A number of things: `1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Progress(Protocol):
    """Callbacks for the progress of a stream of texts."""

    def advance(self, size: int, texts: int) -> None:
        """Count more bytes and texts as done; bytes without texts were done in an earlier run."""

    def within(self, texts: int) -> None:
        """Count more texts of the current chunk as computed; called from several threads."""


class NoProgress:
    """Shows nothing."""

    def advance(self, size: int, texts: int) -> None: ...

    def within(self, texts: int) -> None: ...


@contextmanager
def bar(stream: BinaryIO, *, enabled: bool, output: str | None, verb: str = "embedding") -> Iterator[Progress]:
    """Show the progress of a stream of texts, in bytes; see `bar_of`."""
    with bar_of(_size_of(stream) if enabled else None, enabled=enabled, output=output, verb=verb) as shown:
        yield shown


def _size_of(stream: BinaryIO) -> int | None:
    """The size of a regular file; None for a pipe, and for what is none."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextmanager
def bar_of(
    total: int | None, *, enabled: bool = True, output: str | None, verb: str = "embedding"
) -> Iterator[Progress]:
    """Show the progress of texts, whose sizes sum up to `total`.

    A bar with rate and time left, a running count where the total is not known. Nothing if the results go to the
    terminal.
    """
    if not enabled or not sys.stderr.isatty() or (output is None and sys.stdout.isatty()):
        yield NoProgress()
        return
    shown = TextProgress(total, verb=verb)
    show(f"{verb} ...")
    try:
        yield shown
    finally:
        if not isinstance(sys.stderr, OwnLines) or sys.stderr.unfinished:
            click.echo(err=True)


class TextProgress:
    """Progress of a stream of `total` bytes, None if unknown. Work of an earlier run does not count for the rate."""

    def __init__(self, total: int | None, *, verb: str = "embedding") -> None:
        self.total = total
        self.verb = verb
        self.start = time.monotonic()
        self.done = 0
        self.skipped = 0
        self.texts = 0
        self.ahead = 0
        """Texts that are computed, but not written yet."""
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
        filled = int(part * _WIDTH)
        new = self.done - self.skipped
        left = f", {duration(seconds * (self.total - self.done) / new)} left" if new else ""
        return f"{self.verb} [{'#' * filled}{'-' * (_WIDTH - filled)}] {part:4.0%}, {rate}{left}"


@contextmanager
def byte_progress(verb: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a callback for the bytes done since its last call; on a terminal they are shown after a second."""
    began = shown = time.monotonic()
    done, drawn = 0, False

    def advance(size: int) -> None:
        nonlocal done, shown, drawn
        done += size
        now = time.monotonic()
        if now - shown < (REDRAW if drawn else HEARTBEAT):
            return
        shown, drawn = now, True
        rate = done / (now - began)
        left = duration(max(total - done, 0) / rate)
        show(f"{verb} {megabytes(done)} of {megabytes(total)}, {megabytes(rate)}/s, {left} left")

    try:
        yield advance if sys.stderr.isatty() else lambda _: None
    finally:
        if drawn:
            click.echo(CLEAR, err=True, nl=False)


@contextmanager
def prefill_progress(count: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Show the progress of a prefill that takes longer than a second, on a terminal.

    `count` returns the prompt's tokens in the KV cache and in all; it is called from another thread.
    """
    if not sys.stderr.isatty():
        yield
        return
    stop = threading.Event()

    def watch() -> None:
        began, shown = time.monotonic(), False
        start, _ = count()
        while not stop.wait(REDRAW if shown else HEARTBEAT):
            done, total = count()
            seconds = time.monotonic() - began
            rate = (done - start) / seconds
            left = f", {duration((total - done) / rate)} left" if rate > 0 else ""
            show(f"prompt: {done} of {total} tokens{left}")
            shown = True
        if shown:
            click.echo(CLEAR, err=True, nl=False)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def rated(rate: float) -> str:
    """A rate with at least two significant digits, since some models are slower than a token per second."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
