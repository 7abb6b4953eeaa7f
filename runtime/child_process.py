"""Start this Python again for work in a process of its own."""

from __future__ import annotations

import contextlib
import resource
import sys


def python_command(*arguments: str) -> list[str]:
    """The command that runs this Python with these arguments, without the current folder among its modules.

    `-c` and `-m` put that folder first, so that a `json.py` beside a bundle from elsewhere would be executed.
    """
    return [sys.executable, "-I" if sys.flags.isolated else "-P", *arguments]


def limit_memory(size: int) -> None:
    """Limit the memory of this process (RLIMIT_DATA), where the system supports it."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
