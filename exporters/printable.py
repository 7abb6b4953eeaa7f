"""Texts from files and servers in a message: short, on one line, without control characters."""

from __future__ import annotations

_LONGEST = 80


def printable(value: object, longest: int = _LONGEST) -> str:
    """A value as a terminal may get it: its beginning where it is long, and other characters escaped."""
    text = str(value)
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
