"""Hyperlinks to files on a terminal (OSC 8), as `ls --hyperlink` and ripgrep write them."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from pathlib import Path
from urllib.parse import quote

from .terminal import escaped

_BEGIN, _END = "\x1b]8;;{}\x1b\\", "\x1b]8;;\x1b\\"
LINK_VARIABLE = "ORTKIT_LINK"
"""Environment variable with the form of links, such as `vscode://file{path}:{line}`."""
_PLAIN = "file://{host}{path}"
_FORMS = {"vscode": "vscode://file{path}:{line}"}
"""TERM_PROGRAM -> the form of links that opens the line. Others open the file: a fragment with the line would keep
GLib's terminals from opening it at all."""
_KITTY = "file://{host}{path}#{line}"


def links_are_shown() -> bool:
    """Whether stdout is a terminal that is not `dumb`, and NO_COLOR (no-color.org) is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")


def linked(text: str, path: Path, *, line: int | None = None) -> str:
    """A text, with its control characters escaped, that opens a file when it is clicked, on a terminal."""
    shown = escaped(text)
    return f"{_BEGIN.format(_url(path, line or 1))}{shown}{_END}" if links_are_shown() else shown


def _url(path: Path, line: int) -> str:
    form = os.environ.get(LINK_VARIABLE) or _form_of_terminal()
    # Percent-encoded, so that no name of a file can end the sequence.
    values = {"host": quote(_host()), "path": quote(os.fsencode(path)), "line": str(line)}
    for name, value in values.items():
        form = form.replace(f"{{{name}}}", value)
    return "".join(character for character in form if character.isprintable())


def _form_of_terminal() -> str:
    if os.environ.get("TERM") == "xterm-kitty":
        return _KITTY
    return _FORMS.get(os.environ.get("TERM_PROGRAM", ""), _PLAIN)


@cache
def _host() -> str:
    return socket.gethostname()
