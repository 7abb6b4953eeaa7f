"""Open a session and a tokenizer at once: onnxruntime opens a graph without Python's lock (GIL)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Opened = TypeVar("Opened")


def open_in_parallel(
    open_session: Callable[[Callable[[], None]], Opened], open_tokenizer: Callable[[], None], *, parallel: bool = True
) -> Opened:
    """Return what `open_session` opens; `open_tokenizer` runs in a thread meanwhile, or before it without `parallel`.

    `open_session` gets a function to call once it needs no more GIL. The tokenizer waits for that: `tokenizers` keeps
    the GIL while it parses, and would keep the session from starting. Whatever either raises is raised here, once both
    have ended; if both fail, the session's error is.
    """
    if not parallel:
        open_tokenizer()
        return open_session(_nothing)
    released = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        released.wait()
        try:
            open_tokenizer()
        # Also panics of `tokenizers`, which derive from BaseException; all are raised in the caller's thread.
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=run, name="ortkit-tokenizer")
    # An interruption may come as soon as there is a thread, which Python waits for when it exits.
    try:
        try:
            thread.start()
        # There is a limit on threads. onnxruntime says what is wrong if it needs one more, too.
        except RuntimeError:
            return open_in_parallel(open_session, open_tokenizer, parallel=False)
        session = open_session(released.set)
    finally:
        # Where the session was open already, or failed before onnxruntime began.
        released.set()
        if thread.ident is not None:
            thread.join()
    if failures:
        raise failures[0]
    return session


def _nothing() -> None:
    """There is no thread that waits."""
