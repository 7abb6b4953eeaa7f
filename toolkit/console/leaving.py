"""Ctrl-C during start-up: exit at once, since there is nothing to clean up yet."""

import os
import signal

INTERRUPTED = 130
"""Exit code for Ctrl-C, as shells report SIGINT."""


def leave_at_interrupt() -> None:
    """Exit with one word and no traceback at Ctrl-C, unless SIGINT is ignored, as for background jobs.

    Before `main` runs, nothing catches Python's KeyboardInterrupt, and libraries that are being imported may turn it
    into another error.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


def _leave(_number: int, _frame: object) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)
