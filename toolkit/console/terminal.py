"""What people read: nothing that comes from a bundle, a checkpoint or the Hub moves the cursor or forges a line."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

OBEYED = re.compile(
    # Control characters, of which terminals take C1's for escape sequences too, and half characters.
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff"
    # What changes the direction of all that follows, ends a line, or is not seen (Unicode's Cf, without the joiners
    # that scripts and emoji are written with).
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""The same in longer texts, which have lines and tabs, and marks of direction where they are written from the right."""
PROGRAM = "ortkit"
NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
MOST = 2000
"""Characters of a line that are shown: no name and no sentence has more."""
KEPT = 400
"""Of what is longer, so many at its end."""


def escaped(text: str) -> str:
    """A text on one line, with what a terminal would obey written as in Python: backslash, `x1b`."""
    if len(text) > MOST:
        left_out = len(text) - MOST
        text = f"{text[: MOST - KEPT]} [{left_out} more characters] {text[-KEPT:]}"
    # What Python calls printable holds none of them.
    return text if text.isprintable() else OBEYED.sub(lambda found: escape(found[0]), text)


def escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return NAMED.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escaped_json(text: str) -> str:
    """JSON whose texts hold nothing that a terminal obeys, and mean the same; its own lines stay."""
    return text if text.isascii() and "\x7f" not in text else OBEYED.sub(lambda found: escape_json(found[0]), text)


def escape_json(character: str) -> str:
    code = ord(character)
    if character in NAMED:
        return character
    if code < 0x10000:
        return f"\\u{code:04x}"
    # Above that, JSON has two halves (RFC 8259, section 7).
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def without_controls(text: str) -> str:
    """A text with its lines and tabs as they are, and U+FFFD for what moves the cursor or turns text around."""
    return STEERING.sub("\ufffd", text)


def has_colors(*, err: bool = True) -> bool:
    """Whether stderr, or stdout, is a terminal with colors, and NO_COLOR (no-color.org) is not set."""
    stream = sys.stderr if err else sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")


def styled(text: str, *, err: bool = True, **style: Any) -> str:
    """A text in colors, where stderr, or stdout, has them."""
    return click.style(text, **style) if has_colors(err=err) else text


def say(text: str, *, err: bool = False) -> None:
    """Print a line for people."""
    click.echo(escaped(text), err=err)


def program_name() -> str:
    """What a person types for `ortkit`: its path, as they typed it, where the name alone would not find it."""
    typed = sys.argv[0]
    if Path(typed).name != PROGRAM or ((found := shutil.which(PROGRAM)) is not None and Path(found).samefile(typed)):
        return PROGRAM
    return shlex.quote(typed)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows for people, in columns as wide as their longest cell."""
    shown = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
