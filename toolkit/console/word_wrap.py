"""Text wrapped at words while it is streamed to a terminal."""

from __future__ import annotations

import unicodedata

_TAB = 8
_FENCE = "```"
_WIDE = frozenset("WF")
"""East Asian widths (UAX #11) of characters of two columns."""


class WordWrap:
    """Wraps streamed text at words: a word that does not fit is erased and written again on the next line.

    So text is shown without delay. Code between lines of ``` is not wrapped, so that it can be copied.
    """

    def __init__(self, columns: int) -> None:
        # Terminals differ in where the cursor is after a character in the last column.
        self.limit = max(1, columns - 1)
        self._column = 0
        self._word = ""
        self._word_width = 0
        self._line = ""
        """The beginning of the current line of the text."""
        self._in_code = False

    def push(self, text: str) -> str:
        """The output for the next piece of the text."""
        return "".join(map(self._push, text))

    def _push(self, character: str) -> str:
        if character == "\n":
            if self._line.lstrip().startswith(_FENCE):
                self._in_code = not self._in_code
            self._column, self._word, self._word_width, self._line = 0, "", 0, ""
            return character
        if len(self._line) < self.limit:
            self._line += character
        width = _TAB - self._column % _TAB if character == "\t" else width_of(character)
        if self._in_code or self._line.lstrip().startswith(_FENCE):
            return character
        before = "" if self._column + width <= self.limit else self._break(character)
        if character.isspace():
            self._word, self._word_width = "", 0
            if before:
                # The line break replaces the space.
                return before
        elif width > 1:
            # Scripts with wide characters have no spaces: a line may end after any character.
            self._word, self._word_width = "", 0
        else:
            self._word += character
            self._word_width += width
        self._column += width
        return before + character

    def _break(self, character: str) -> str:
        """Begin a new line, with the unfinished word on it where it fits."""
        word, width = self._word, self._word_width
        if character.isspace() or width_of(character) > 1 or width in (0, self._column) or width >= self.limit:
            self._column, self._word, self._word_width = 0, "", 0
            return "\n"
        self._column = width
        return f"\x1b[{width}D\x1b[K\n{word}"


def width_of(character: str) -> int:
    """Columns that a character takes on a terminal."""
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in _WIDE else 1
