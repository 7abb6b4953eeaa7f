"""Open the input and output of a command: a file, or stdin and stdout."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from ...runtime.errors import InputError, NotFoundError
from ...runtime.output_path import is_special, target_of
from ..console.progress import fresh_line
from .writers import output_errors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Input(io.RawIOBase):
    """A stream whose read errors are InputErrors, so that they are not taken for errors of the output."""

    def __init__(self, stream: BinaryIO, source: str) -> None:
        self.stream = cast("io.BufferedReader", stream)
        self.source = source

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        try:
            # One read at most, so that a pipe is not waited for longer than needed.
            return self.stream.readinto1(buffer)
        except OSError as error:
            raise InputError(f"{self.source} cannot be read: {error.strerror or error}") from error


@contextmanager
def open_input(source: str | None) -> Iterator[BinaryIO]:
    """Open a file, or stdin; raises InputError if it cannot be opened or, later, read."""
    if source is None or source == "-":
        yield io.BufferedReader(Input(sys.stdin.buffer, "stdin"))
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{source}`") from error
    except OSError as error:
        raise InputError(f"`{source}` cannot be read: {error.strerror}") from error
    with file:
        yield io.BufferedReader(Input(file, f"`{source}`"))


@contextmanager
def open_output(output: str | None, *, keeps: bool = False) -> Iterator[BinaryIO]:
    """Open stdout, a device or pipe, or a temporary file that replaces `output` when all is written.

    With `keeps`, partial output after an error or Ctrl-C is kept in a file beside it, and a note names that. Raises
    OutputError for an output that cannot be written.
    """
    if output is None:
        yield sys.stdout.buffer
        return
    target = target_of(output)
    if is_special(target):
        with output_errors(target, target), target.open("wb") as file:
            yield file
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with output_errors(target, partial):
        try:
            # Left by a killed process with the same PID; a link must not be followed.
            partial.unlink(missing_ok=True)
            with partial.open("xb") as file:
                yield file
            partial.replace(target)
        except BaseException:
            if keeps and partial.exists() and partial.stat().st_size:
                incomplete = target.with_name(f"{target.name}.incomplete")
                partial.replace(incomplete)
                click.echo(f"{fresh_line()}note: the partial output is in `{incomplete}`", err=True)
            raise
        finally:
            partial.unlink(missing_ok=True)


def refuse_input(stream: BinaryIO, output: str | None, *, option: str = "--output") -> None:
    """Raises InputError if the output is the file that is read, since it would be replaced."""
    if output is None:
        return
    try:
        read, there = os.fstat(stream.fileno()), Path(output).stat()
    except OSError:
        # The stream is not a file, or the output does not exist yet.
        return
    if stat.S_ISREG(read.st_mode) and os.path.samestat(read, there):
        raise InputError(
            f"`{output}` is also the input, and would be replaced", hint=f"choose another file with `{option}`"
        )
