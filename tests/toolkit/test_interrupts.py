from __future__ import annotations

import hashlib
import os
import signal
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from toolkit.interrupts import ending_at_interrupt, raised_again
from toolkit.progress import StageProgress


def test_an_interrupt_cancels_and_a_second_one_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    cancelled = threading.Event()

    with ending_at_interrupt(SimpleNamespace(cancel=cancelled.set)):
        signal.raise_signal(signal.SIGINT)
        assert cancelled.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_call_that_takes_long_is_cancelled_while_it_runs() -> None:
    """As that of a long prompt: no Python code runs in the main thread until it ends."""
    cancelled, calling, during = threading.Event(), threading.Event(), []

    def interrupt() -> None:
        calling.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        during.append(cancelled.wait(10))
        during.append(not ended.is_set())

    ended = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with ending_at_interrupt(SimpleNamespace(cancel=cancelled.set)):
        calling.set()
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 5_000_000)
        ended.set()
    thread.join()

    assert during == [True, True]


def test_an_interrupt_that_a_library_swallows_ends_an_export_before_its_next_stage() -> None:
    before = signal.getsignal(signal.SIGINT)
    with raised_again() as check:
        progress = StageProgress(check)
        progress.begin("trace with Optimum")
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            progress.begin("write the bundle")
    assert signal.getsignal(signal.SIGINT) is before
