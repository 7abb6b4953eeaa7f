"""Print to a terminal safely: escape control characters in text from bundles, checkpoints and the Hub."""

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

_CONTROLS = re.compile(
    # Control characters, C1 too, which terminals take for escape sequences, and lone surrogates.
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff"
    # Bidirectional controls, line separators and invisible characters (Unicode Cf, without the joiners of scripts and
    # emoji).
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_CURSOR_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""The same for longer texts, which may have lines, tabs and direction marks."""
_PROGRAM = "ortkit"
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_MAX_LINE = 2000
"""Characters that are shown of a line; of a longer one, its beginning and its last _LINE_END characters."""
_LINE_END = 400


def escaped(text: str) -> str:
    """A text on one line, with control characters escaped as in Python, such as backslash, `x1b`."""
    if len(text) > _MAX_LINE:
        left_out = len(text) - _MAX_LINE
        text = f"{text[: _MAX_LINE - _LINE_END]} [{left_out} more characters] {text[-_LINE_END:]}"
    # A text that Python calls printable has no such characters.
    return text if text.isprintable() else _CONTROLS.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return _NAMED.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escaped_json(text: str) -> str:
    """Equivalent JSON with control characters in strings escaped; line breaks between values stay."""
    return text if text.isascii() and "\x7f" not in text else _CONTROLS.sub(lambda found: _escape_json(found[0]), text)


def _escape_json(character: str) -> str:
    code = ord(character)
    if character in _NAMED:
        return character
    if code < 0x10000:
        return f"\\u{code:04x}"
    # A surrogate pair (RFC 8259, section 7).
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def without_controls(text: str) -> str:
    """A text with its lines and tabs, and U+FFFD for characters that move the cursor or change the text direction."""
    return _CURSOR_CONTROLS.sub("\ufffd", text)


def _has_colors(*, err: bool = True) -> bool:
    """Whether stderr, or stdout, is a terminal with colors and NO_COLOR (no-color.org) is not set."""
    stream = sys.stderr if err else sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")


def styled(text: str, *, err: bool = True, **style: Any) -> str:
    """A text in colors, if stderr, or stdout, has them."""
    return click.style(text, **style) if _has_colors(err=err) else text


def say(text: str, *, err: bool = False) -> None:
    """Print a line for a person, with control characters escaped."""
    click.echo(escaped(text), err=err)


def program_name() -> str:
    """The command to type for ortkit: its name, or the typed path if the name would not find it."""
    typed = sys.argv[0]
    if Path(typed).name != _PROGRAM or ((found := shutil.which(_PROGRAM)) is not None and Path(found).samefile(typed)):
        return _PROGRAM
    return shlex.quote(typed)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as their longest cell."""
    shown = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
