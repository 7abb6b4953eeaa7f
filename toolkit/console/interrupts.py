"""Ctrl-C: cancel an answer but not the program, and detect interrupts that a library swallowed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...runtime.decoder.stream import Stream


_RAISED = threading.Event()
"""Set when Ctrl-C raised a KeyboardInterrupt that has not been handled yet."""
_RETRY_SECONDS = 0.01
"""Time after which an interrupt that Python discarded is sent again."""


@contextmanager
def reraised_interrupts() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt at Ctrl-C, and again in the yielded function if a library swallowed the first.

    Libraries that probe for optional packages catch every error of the import, also an interrupt; importing torch and
    transformers takes seconds, in which people press Ctrl-C.

    An interrupt that Python itself discards is sent again.
    """
    before = _RAISED.is_set()
    _RAISED.clear()

    def interrupt(_number: int, _frame: object) -> None:
        _RAISED.set()
        raise KeyboardInterrupt

    def check() -> None:
        if _RAISED.is_set():
            raise KeyboardInterrupt

    with _sigint_handler(interrupt), called_if_discarded(KeyboardInterrupt, _interrupt_again):
        yield check
    if before:
        _RAISED.set()


def interrupt_handled() -> None:
    """Mark the last interrupt as handled."""
    _RAISED.clear()


@contextmanager
def called_if_discarded(kind: type[BaseException], function: Callable[[], None]) -> Iterator[None]:
    """Call a function, instead of printing a traceback, if Python discards an error of this kind.

    Python discards what is raised in a finalizer or a weak reference's callback (`sys.unraisablehook`), and imports run
    such callbacks for each module. What `function` raises is discarded too.
    """
    before = sys.unraisablehook

    def discarded(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, kind):
            function()
        else:
            before(unraisable)

    sys.unraisablehook = discarded
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt_again() -> None:
    """Send SIGINT from a thread, and later: raised now, the error would be discarded too."""

    def send() -> None:
        time.sleep(_RETRY_SECONDS)
        if (main := threading.main_thread().ident) is not None:
            signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


@contextmanager
def _sigint_handler(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Call a function at Ctrl-C, unless SIGINT is ignored, as for background jobs."""
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
def cancelling_at_interrupt(stream: Stream) -> Iterator[None]:
    """Cancel an answer at Ctrl-C; a second Ctrl-C raises KeyboardInterrupt.

    Python runs signal handlers between bytecode instructions only, and the prefill of a long prompt is a single call of
    many seconds. So a thread, woken through a file descriptor (signal.set_wakeup_fd), cancels that call.
    """
    interrupted = False

    def cancel(_number: int, _frame: object) -> None:
        nonlocal interrupted
        if interrupted:
            _RAISED.set()
            raise KeyboardInterrupt
        interrupted = True
        stream.cancel()

    def watch() -> None:
        while signals := os.read(reader, 1):
            if signals[0] == signal.SIGINT:
                stream.cancel()

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        with _sigint_handler(cancel):
            yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)
        thread.join()
        os.close(reader)
