"""What a person says in a conversation: from a terminal or a pipe, line by line, and messages of several lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import click

from toolkit.inputs import as_typed, decode
from toolkit.interrupts import dealt_with

PROMPT, MORE = "> ", ". "
"""What stands before the line that a person types, and before a line that goes on with a message."""
QUOTES = '"""'

Read = Callable[[str], str]
"""Asks for a line with this prompt, and returns it; raises EOFError after the last."""


def turns_of(read: Read) -> Iterator[str]:
    r"""Messages and commands, each when it is asked for.

    A line that ends with `\` goes on in the next one; one that begins with three quotes opens a message that goes on to
    three quotes at the end of a line. Lines of nothing are passed over. An interrupt while a line is typed forgets the
    turn.
    """
    while True:
        try:
            turn = read_turn(read)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            dealt_with()
            click.echo("\nnote: Ctrl-D or `/exit` leaves", err=True)
            continue
        if turn.strip():
            yield turn


def read_turn(read: Read) -> str:
    line = read(PROMPT)
    if line.startswith(QUOTES):
        lines = [line.removeprefix(QUOTES)]
        # The end of the input ends a message too.
        with suppress(EOFError):
            while not lines[-1].endswith(QUOTES):
                lines.append(read(MORE))
        return "\n".join(lines).removesuffix(QUOTES).strip("\n")
    lines = [line]
    with suppress(EOFError):
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read(MORE))
    return "\n".join(lines)


def from_pipe(lines: Iterable[bytes]) -> Read:
    """Lines of a pipe; raises InputError that names the line for what is no text."""
    numbered = enumerate(lines, start=1)

    def read(_prompt: str) -> str:
        for number, raw in numbered:
            return decode(raw, number)
        raise EOFError

    return read


def from_terminal() -> Read:
    """Lines that a person types, with history and editing where Python was built with readline."""
    if not sys.stdout.isatty():
        # Without a terminal to edit on, `input` would write its prompt to stdout, where answers go.
        return from_typed_lines
    with suppress(ImportError):
        import readline  # noqa: F401 - makes `input` use it

    def read(prompt: str) -> str:
        try:
            return as_typed(input(prompt))
        except UnicodeDecodeError:
            click.echo("error: what was typed is not valid UTF-8\n\nhint: set the terminal to UTF-8", err=True)
            return read(prompt)

    return read


def from_typed_lines(prompt: str) -> str:
    click.echo(prompt, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return as_typed(line.rstrip("\n"))
