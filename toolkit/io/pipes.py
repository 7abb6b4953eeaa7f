"""Whether stdin carries input for this command, where the command line does not say so.

Who types `cat notes | ortkit generate BUNDLE "question"` means the pipe. Many commands that run elsewhere have a stdin
that nobody meant: /dev/null (cron, xargs, ssh -n, systemd), a pipe that nobody writes to, the rest of a list in
`while read line; do ortkit ...; done < list`, or the script that a shell reads from there (CI). Reading the last two
would swallow what is another's. They are known by whose stdin it is: when the program that started this one has the
same one as its own, it is not read, and where something is in it, a note says so.
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
"""Seconds in which nothing comes through a pipe before that is told."""
_WRAPPERS = {
    *("timeout", "sudo", "doas", "time", "nice", "ionice", "setsid", "nohup", "env", "stdbuf", "strace", "ltrace"),
    *(
        "perf",
        "flock",
        "chrt",
        "taskset",
        "numactl",
        "uv",
        "uvx",
        "poetry",
        "pdm",
        "hatch",
        "pipenv",
        "srun",
        "catchsegv",
    ),
}
"""Programs that run one other and read nothing themselves: what they have as stdin is meant for that one."""
_PROC = Path("/proc")


def carries_input(stream: BinaryIO, *, wanted: bool = True) -> bool:
    """Whether stdin, open as `stream`, has bytes that are meant for this command; may wait for another program.

    Where it is `wanted`, a note says what is not read.
    """
    try:
        number = stream.fileno()
        status = os.fstat(number)
    except OSError:
        # No stream of the system's, or one that is closed.
        return _holds_something(stream)
    left = _left_in(number, status)
    if left == 0:
        return False
    if _is_callers_own(status) or (left is not None and left < status.st_size):
        if wanted and (left or _waiting_bytes(number)):
            _tell_unread()
        return False
    return (left is not None or _comes_in_time(number, status, wanted=wanted)) and _holds_something(stream)


def _left_in(number: int, status: os.stat_result) -> int | None:
    """The bytes of a file that were not read yet, none for a terminal or another device; None for a pipe or a socket.

    Where some were read before, as in a loop over the lines of a file, the rest is for whoever read them.
    """
    if stat.S_ISREG(status.st_mode):
        return max(0, status.st_size - os.lseek(number, 0, os.SEEK_CUR))
    return None if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode) else 0


def _comes_in_time(number: int, status: os.stat_result, *, wanted: bool) -> bool:
    """Wait for the first byte or the end; False where nothing comes and nobody but the caller could send it."""
    if stat.S_ISSOCK(status.st_mode) or _is_held_by_caller(status):
        comes = _is_ready(number, PATIENCE if wanted else 0)
        if wanted and not comes:
            click.echo(
                f"note: nothing came through stdin in {PATIENCE:.0f} seconds, so it is not read; "
                "`--input -` waits for it",
                err=True,
            )
        return comes
    if _is_ready(number, PATIENCE):
        return True
    click.echo("note: waiting for what comes through the pipe; without one, add `< /dev/null`", err=True)
    return True


def _is_ready(number: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(seconds * 1000))


def _waiting_bytes(number: int) -> int:
    """How many bytes a pipe or a socket holds now."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(number, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


def _holds_something(stream: BinaryIO) -> bool:
    """Whether something comes before the end that is more than space."""
    try:
        return bool(cast("BufferedReader", stream).peek(1).strip())
    except InputError:
        # A stdin that was closed, or a folder; who names it with `--input -` is told.
        return False


def _is_callers_own(status: os.stat_result) -> bool:
    """Whether the program that started this one has the same stdin, so that what is in it may be for that program."""
    caller: int | None = os.getppid()
    while caller is not None and _same(_PROC / str(caller) / "fd" / "0", status):
        name, above = _name_and_caller(caller)
        if name not in _WRAPPERS:
            return True
        caller = above
    return False


def _name_and_caller(process: int) -> tuple[str, int | None]:
    """What a process runs, and what started it; "" and None where that is not told."""
    try:
        content = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", None
    # `12 (name) S 11 ...`; a name may have parentheses and spaces in it.
    before, _, after = content.rpartition(") ")
    return before.partition(" (")[2], int(after.split()[1])


def _is_held_by_caller(status: os.stat_result) -> bool:
    """Whether the program that started this one holds an end of the pipe, as one does that made it for this."""
    try:
        files = list((_PROC / str(os.getppid()) / "fd").iterdir())
    except OSError:
        return False
    return any(_same(file, status) for file in files)


def _same(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:
        return False


def _tell_unread() -> None:
    click.echo(
        "note: stdin is that of the program which runs ortkit as well, so what is in it was not read; "
        "`--input -` reads it, `< /dev/null` says that it is not meant",
        err=True,
    )


def refuse_pipe_beside(what: str, source: str | None = None) -> None:
    """Raises InputError where something comes through stdin beside what the command line gives.

    `source` is a file that is read; it may be stdin under another name.
    """
    if source == "-":
        return
    with open_input(None) as stream:
        try:
            is_source = source is not None and _same(Path(source), os.fstat(stream.fileno()))
        except OSError:
            is_source = False
        if is_source or not carries_input(stream, wanted=False):
            return
    raise InputError(
        f"{what}, and something comes through stdin as well: one of the two would be dropped",
        hint="leave one out: `--input -` reads stdin alone, and `< /dev/null` gives it nothing",
    )


def check_inputs(arguments: Sequence[str], source: str | None, *, noun: str, field: str | None, literal: bool) -> None:
    """Raises InputError where arguments, a file and a pipe come together, and for arguments that are names of files.

    `noun` is what is read, a text or a document.
    """
    if arguments and source is not None:
        raise InputError(f"{noun}s came as arguments and with `--input`: give one of the two")
    if arguments and field is not None:
        raise InputError(f"`--field` is for what is read, and {noun}s came as arguments", hint="leave out `--field`")
    for argument in () if literal else arguments:
        refuse_file_name(argument, noun)
    if arguments:
        refuse_pipe_beside(f"{noun}s came as arguments")
    elif source is not None:
        refuse_pipe_beside(f"{noun}s come from `{source}`", source)
