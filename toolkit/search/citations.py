"""Citations such as `[1]` in an answer: which sources it cites, and which of its citations name none."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NUMBERS = r"\^?\s*(?:sources?\s*)?\d{1,4}(?:\s*(?:,|;|-|\u2013|and)\s*(?:sources?\s*)?\d{1,4})*\s*"
_CITATION = re.compile(rf"\[({_NUMBERS})\]", re.IGNORECASE)
_CODE_OR_CITATION = re.compile(rf"```.*?(?:```|\Z)|`[^`\n]*`|\[{_NUMBERS}\]", re.IGNORECASE | re.DOTALL)
_BEGUN = re.compile(r"\[[\^\s\d,;\u2013sourceand-]*\Z", re.IGNORECASE)
"""What may become a citation with the next token."""
_LONGEST = 64
"""Characters of a citation."""
UNKNOWN = "[?]"
"""Stands for citations of sources that there are none of."""


def without_citations(text: str) -> str:
    """A passage with `(3)` for `[3]`, so that a reference of its own is not quoted as a source; code stays."""
    return _CODE_OR_CITATION.sub(lambda found: found[0] if found[0][0] == "`" else f"({found[0][1:-1]})", text)


class CitationReader:
    """Reads the citations of an answer while it is streamed.

    A citation of a source that does not exist becomes UNKNOWN. In code, between backticks, brackets are brackets.
    """

    def __init__(self, sources: int) -> None:
        """`sources` is the number of sources, which are numbered from 1."""
        self.sources = sources
        self.cited: list[int] = []
        """Numbers of the cited sources, in the order of their first citation."""
        self.unknown: list[int] = []
        """Cited numbers of sources that do not exist."""
        self._held = ""
        """A citation that is not complete yet."""
        self._ticks = 0
        """Backticks of the current run."""
        self._code = 0
        """Backticks that opened the code that is being read; 0 outside of code."""

    def push(self, text: str) -> str:
        """The text that is final after this piece."""
        return "".join(map(self._push, text))

    def end(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _push(self, character: str) -> str:
        in_code = self._follow_code(character)
        if in_code:
            return self.end() + character
        if self._held:
            held = self._held + character
            if character == "]":
                self._held = ""
                return _CITATION.sub(self._checked, held)
            if _BEGUN.match(held) and len(held) < _LONGEST:
                self._held = held
                return ""
            before, self._held = self._held, ""
            return before + self._push_plain(character)
        return self._push_plain(character)

    def _push_plain(self, character: str) -> str:
        if character == "[":
            self._held = character
            return ""
        return character

    def _follow_code(self, character: str) -> bool:
        """Whether this character is part of code."""
        if character == "`":
            self._ticks += 1
            return True
        if self._ticks:
            ticks, self._ticks = self._ticks, 0
            if self._code == 0:
                self._code = ticks
            elif ticks == self._code:
                self._code = 0
        # Code of one line ends with it, also where the model forgot to close it.
        if character == "\n" and self._code < 3:
            self._code = 0
        return self._code > 0

    def _checked(self, found: re.Match[str]) -> str:
        numbers = _expanded(found[1])
        known = [number for number in numbers if 1 <= number <= self.sources]
        self.cited += [number for number in dict.fromkeys(known) if number not in self.cited]
        unknown = [number for number in dict.fromkeys(numbers) if number not in known]
        self.unknown += [number for number in unknown if number not in self.unknown]
        return found[0] if not unknown else "".join(f"[{number}]" for number in dict.fromkeys(known)) + UNKNOWN


def citations_of(text: str) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """First and last index (exclusive) of each citation of a complete answer, and the numbers that it cites."""
    for found in _CODE_OR_CITATION.finditer(text):
        if found[0][0] == "[":
            yield found.start(), found.end(), tuple(dict.fromkeys(_expanded(found[0])))


def _expanded(numbers: str) -> list[int]:
    """The numbers of `1, 3-5`; a range that does not rise, or is long, stands for its ends."""
    found: list[int] = []
    previous, ranged = 0, False
    for part in re.findall(r"\d+|-|\u2013", numbers):
        if not part.isdecimal():
            ranged = True
            continue
        number = int(part)
        found += range(previous + 1, number) if ranged and 0 < number - previous <= 100 else []
        found.append(number)
        previous, ranged = number, False
    return found
