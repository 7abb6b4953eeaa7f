"""A process that kills itself before one of its changes of the file system, counted by Python's audit events."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def kill_before(count: int, events: Collection[str]) -> list[int]:
    """Arm this process, and return a list whose only entry is the number of changes so far.

    Changes are `events`, and files that are opened to write; with `count` 0 they are only counted.
    """
    changes = [0]

    def look(event: str, arguments: tuple) -> None:
        if event in events or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            changes[0] += 1
            if changes[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return changes
