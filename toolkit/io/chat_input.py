"""Read the messages of a chat from a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import click

from ..console.interrupts import interrupt_handled
from ..console.terminal import styled
from .input_format import as_typed, decode

_PROMPT, _MORE = "> ", ". "
"""Prompts for the first line of a message and for the next ones."""
_QUOTES = '"""'

Read = Callable[[str], str]
"""Prompts for a line and returns it; raises EOFError after the last."""


def turns_of(read: Read) -> Iterator[str]:
    r"""Yield messages and commands as they are typed.

    A line that ends with `\` continues on the next one; three quotes at the beginning of a line open a message that
    three quotes at the end of a line close. Blank lines are skipped. Ctrl-C discards what was typed.
    """
    while True:
        try:
            turn = _read_turn(read)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            interrupt_handled()
            click.echo("\nnote: Ctrl-D or `/exit` leaves", err=True)
            continue
        if turn.strip():
            yield turn


def _read_turn(read: Read) -> str:
    line = read(_PROMPT)
    if line.startswith(_QUOTES):
        lines = [line.removeprefix(_QUOTES)]
        # The end of the input ends a message too.
        with suppress(EOFError):
            while not lines[-1].endswith(_QUOTES):
                lines.append(read(_MORE))
        return "\n".join(lines).removesuffix(_QUOTES).strip("\n")
    lines = [line]
    with suppress(EOFError):
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read(_MORE))
    return "\n".join(lines)


def from_pipe(lines: Iterable[bytes]) -> Read:
    """Read lines from a pipe; raises InputError with the line number for what is not text."""
    numbered = enumerate(lines, start=1)

    def read(_prompt: str) -> str:
        for number, raw in numbered:
            return decode(raw, number)
        raise EOFError

    return read


def from_terminal() -> Read:
    """Read lines that a person types, with history and editing if Python has readline."""
    if not sys.stdout.isatty():
        # `input` would write its prompt to stdout, which is redirected.
        return _from_typed_lines
    edited = False
    with suppress(ImportError):
        import readline  # noqa: F401 - makes `input` use it

        edited = True

    def read(prompt: str) -> str:
        try:
            return as_typed(input(_colored(prompt, edited=edited)))
        except UnicodeDecodeError:
            click.echo("error: the input is not valid UTF-8\n\nhint: set the terminal to UTF-8", err=True)
            return read(prompt)

    return read


def _colored(prompt: str, *, edited: bool) -> str:
    """A prompt in color, with its escape sequences marked as invisible for readline."""
    shown = styled(prompt, err=False, fg="green", bold=True)
    if shown == prompt or not edited:
        return shown
    before, _, after = shown.partition(prompt)
    return f"\x01{before}\x02{prompt}\x01{after}\x02"


def _from_typed_lines(prompt: str) -> str:
    click.echo(prompt, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return as_typed(line.rstrip("\n"))
