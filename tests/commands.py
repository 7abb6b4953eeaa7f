"""Commands that ran to their end, in this process or one of their own, and what a terminal shows of them."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end."""

    code: int
    out: bytes
    err: str


def on_terminal(
    arguments: Sequence[str],
    *,
    stdin: int | None = None,
    env: dict[str, str] | None = None,
    code: int = 0,
    interrupt_at: str | None = None,
    stdout: bool = False,
) -> str:
    """Run a command whose stderr is a terminal, stdout too if asked, and return what it showed there.

    Where the terminal shows `interrupt_at`, Ctrl-C is pressed, which the terminal shows as well.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        arguments, stdin=stdin, stdout=theirs if stdout else subprocess.DEVNULL, stderr=theirs, env=env
    )
    os.close(theirs)
    shown = b""
    while block := read_terminal(ours):
        shown += block
        if interrupt_at is not None and interrupt_at.encode() in shown:
            shown += b"^C"
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(ours)
    assert process.wait() == code, shown.decode()
    return shown.decode()


def lines_on_terminal(shown: str) -> list[str]:
    """What is left on a terminal, where a carriage return with CLEAR empties one."""
    return [line.rstrip("\r").split("\r\x1b[K")[-1] for line in shown.split("\n")]


def read_terminal(ours: int) -> bytes:
    """What comes next from the other end of a terminal, b"" when that is closed; fails when nothing comes."""
    assert select.select([ours], [], [], 60)[0], "nothing was shown for a minute"
    try:
        return os.read(ours, 4096)
    except OSError:  # Linux's answer when the other end is closed
        return b""
