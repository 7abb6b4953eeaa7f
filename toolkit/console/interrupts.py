"""Ctrl-C that ends an answer and not the program, and Ctrl-C that no library swallows."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...runtime.decoder.stream import Stream


RAISED = threading.Event()
"""Set when Ctrl-C has raised KeyboardInterrupt and nobody has dealt with it."""


@contextmanager
def raised_again() -> Iterator[Callable[[], None]]:
    """Have Ctrl-C raise KeyboardInterrupt, and once more where the function that is given is called afterwards.

    Libraries that look for others by importing them catch whatever comes of that, an interrupt included.
    """
    before = RAISED.is_set()
    RAISED.clear()

    def interrupt(_number: int, _frame: object) -> None:
        RAISED.set()
        raise KeyboardInterrupt

    def check() -> None:
        if RAISED.is_set():
            raise KeyboardInterrupt

    with handling(interrupt):
        yield check
    if before:
        RAISED.set()


def dealt_with() -> None:
    """Say that an interrupt that was raised has had its effect, and is no reason for what comes later."""
    RAISED.clear()


@contextmanager
def handling(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Have a function called at Ctrl-C, unless that is ignored, as in the background."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ending_at_interrupt(stream: Stream) -> Iterator[None]:
    """Have Ctrl-C cancel an answer, and a second one raise KeyboardInterrupt.

    Python runs its own handlers between two of its instructions only, and a long prompt is a single call of many
    seconds. So a thread is woken through a file descriptor (signal.set_wakeup_fd), and ends that call.
    """
    interrupted = False

    def cancel(_number: int, _frame: object) -> None:
        nonlocal interrupted
        if interrupted:
            RAISED.set()
            raise KeyboardInterrupt
        interrupted = True
        stream.cancel()

    def watch() -> None:
        while signals := os.read(ours, 1):
            if signals[0] == signal.SIGINT:
                stream.cancel()

    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    woken = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    try:
        with handling(cancel):
            yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(theirs)
        thread.join()
        os.close(ours)
