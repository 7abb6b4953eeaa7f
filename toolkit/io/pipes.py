"""Decide whether stdin has input for this command if the command line does not say.

With `cat notes | ortkit generate BUNDLE "question"`, the pipe is meant as input. But many processes have a stdin that
is not: /dev/null (cron, xargs, ssh -n, systemd), a pipe that nobody writes to, the rest of a list in
`while read line; do ortkit ...; done < list`, or the script that a shell reads from stdin (CI). Reading the last two
would consume what another program reads. So stdin is not read if the parent process has the same one; if it is not
empty, a note says so.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import stat
import termios
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ...runtime.errors import InputError
from .streams import open_input
from .texts import refuse_file_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader
    from typing import BinaryIO

PATIENCE = 2.0
"""Seconds without data from a pipe before a note says so."""
_WRAPPERS = {
    *("timeout", "sudo", "doas", "time", "nice", "ionice", "setsid", "nohup", "env", "stdbuf", "strace", "ltrace"),
    *("perf", "flock", "chrt", "taskset", "numactl", "uv", "uvx", "poetry", "pdm", "hatch", "pipenv", "srun"),
}
"""Programs that run another one and do not read stdin themselves."""
_PROC = Path("/proc")


def carries_input(stream: BinaryIO, *, wanted: bool = True) -> bool:
    """Whether stdin, open as `stream`, has input for this command; may wait for the program that writes it.

    If input is `wanted`, a note says what is not read.
    """
    try:
        number = stream.fileno()
        status = os.fstat(number)
    except OSError:
        # No file descriptor, or a closed one.
        return _holds_something(stream)
    left = _left_in(number, status)
    if left == 0:
        return False
    # A partly read file belongs to the program that read it, such as a loop over its lines.
    if _is_callers_own(status) or (left is not None and left < status.st_size):
        if wanted and (left or _waiting_bytes(number)):
            _note_unread()
        return False
    return (left is not None or _comes_in_time(number, status, wanted=wanted)) and _holds_something(stream)


def _left_in(number: int, status: os.stat_result) -> int | None:
    """Unread bytes of a file, 0 for a terminal or another device, None for a pipe or a socket."""
    if stat.S_ISREG(status.st_mode):
        return max(0, status.st_size - os.lseek(number, 0, os.SEEK_CUR))
    return None if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode) else 0


def _comes_in_time(number: int, status: os.stat_result, *, wanted: bool) -> bool:
    """Wait for data or the end; False if nothing comes and only the parent process could send it."""
    if stat.S_ISSOCK(status.st_mode) or _is_held_by_caller(status):
        comes = _is_ready(number, PATIENCE if wanted else 0)
        if wanted and not comes:
            click.echo(
                f"note: no data on stdin for {PATIENCE:.0f} seconds, so it is not read; `--input -` waits for it",
                err=True,
            )
        return comes
    if _is_ready(number, PATIENCE):
        return True
    click.echo("note: waiting for data from the pipe; add `< /dev/null` if there is none", err=True)
    return True


def _is_ready(number: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(seconds * 1000))


def _waiting_bytes(number: int) -> int:
    """Bytes that a pipe or a socket holds now."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(number, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


def _holds_something(stream: BinaryIO) -> bool:
    """Whether the stream has something other than whitespace; may wait for the first byte."""
    try:
        return bool(cast("BufferedReader", stream).peek(1).strip())
    except InputError:
        # A closed stdin, or a folder; with `--input -` this is an error.
        return False


def _is_callers_own(status: os.stat_result) -> bool:
    """Whether the parent process has the same stdin, so that its content may be for that process."""
    caller: int | None = os.getppid()
    while caller is not None and _is_same_file(_PROC / str(caller) / "fd" / "0", status):
        name, above = _name_and_caller(caller)
        if name not in _WRAPPERS:
            return True
        caller = above
    return False


def _name_and_caller(process: int) -> tuple[str, int | None]:
    """Name and parent of a process; "" and None if unknown."""
    try:
        content = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", None
    # `12 (name) S 11 ...`; the name may contain parentheses and spaces.
    before, _, after = content.rpartition(") ")
    return before.partition(" (")[2], int(after.split()[1])


def _is_held_by_caller(status: os.stat_result) -> bool:
    """Whether the parent process holds an end of the pipe, as one that created it does."""
    try:
        files = list((_PROC / str(os.getppid()) / "fd").iterdir())
    except OSError:
        return False
    return any(_is_same_file(file, status) for file in files)


def _is_same_file(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:
        return False


def _note_unread() -> None:
    click.echo(
        "note: stdin was not read, since the program that started ortkit has the same stdin; "
        "`--input -` reads it, `< /dev/null` leaves it out",
        err=True,
    )


def refuse_pipe_beside(what: str, source: str | None = None) -> None:
    """Raises InputError if stdin has input besides what the command line gives.

    `source` is a file that is read; it may be stdin under another name.
    """
    if source == "-":
        return
    with open_input(None) as stream:
        try:
            is_source = source is not None and _is_same_file(Path(source), os.fstat(stream.fileno()))
        except OSError:
            is_source = False
        if is_source or not carries_input(stream, wanted=False):
            return
    raise InputError(
        f"{what}, and stdin has input too: one of the two would be ignored",
        hint="leave one out: `--input -` reads stdin alone, `< /dev/null` leaves it out",
    )


def check_inputs(arguments: Sequence[str], source: str | None, *, noun: str, field: str | None, literal: bool) -> None:
    """Raises InputError for arguments together with a file or a pipe, and for arguments that are file names.

    `noun` is what is read, "text" or "document".
    """
    if arguments and source is not None:
        raise InputError(f"{noun}s are given as arguments and with `--input`: give one of the two")
    if arguments and field is not None:
        raise InputError(f"`--field` is for an input, and {noun}s are given as arguments", hint="leave out `--field`")
    for argument in () if literal else arguments:
        refuse_file_name(argument, noun)
    if arguments:
        refuse_pipe_beside(f"{noun}s are given as arguments")
    elif source is not None:
        refuse_pipe_beside(f"{noun}s are read from `{source}`", source)
