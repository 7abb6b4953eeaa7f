"""Commands that ran to their end, in this process or one of their own, and what a terminal shows of them."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end."""

    code: int
    out: bytes
    err: str


def on_terminal(arguments: Sequence[str], *, stdin: int | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command whose stderr is a terminal, and return what it showed there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, stdin=stdin, stdout=subprocess.DEVNULL, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    while block := read_terminal(ours):
        shown += block
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


def read_terminal(ours: int) -> bytes:
    """What comes next from the other end of a terminal, b"" when that is closed; fails when nothing comes."""
    assert select.select([ours], [], [], 60)[0], "nothing was shown for a minute"
    try:
        return os.read(ours, 4096)
    except OSError:  # Linux's answer when the other end is closed
        return b""
