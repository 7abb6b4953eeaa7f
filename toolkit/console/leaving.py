"""Ctrl-C that ends the process at once, while nothing is under way that would have to be put in order."""

import os
import signal

INTERRUPTED = 130
"""What a shell reports for a process ended by SIGINT."""


def leave_at_interrupt() -> None:
    """Have Ctrl-C end the process with a word and no traceback, unless it is ignored, as in the background.

    KeyboardInterrupt, which Python raises otherwise, has no one to catch it before `main`, and libraries that are being
    imported make something else of it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


def leave(_number: int, _frame: object) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)
