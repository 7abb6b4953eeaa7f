"""Plain text: paragraphs between blank lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .document import Passage, Place


def paragraphs(text: str) -> list[Passage]:
    """The paragraphs of a text."""
    lines = text.split("\n")
    return [passage_of(lines, first, last) for first, last in blocks(lines)]


def blocks(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last line, from 0, of the blocks between blank lines."""
    first = None
    for number, line in enumerate(lines):
        if line and not line.isspace():
            first = number if first is None else first
        elif first is not None:
            yield first, number - 1
            first = None
    if first is not None:
        yield first, len(lines) - 1


def passage_of(lines: Sequence[str], first: int, last: int, headings: tuple[str, ...] = ()) -> Passage:
    """The passage of some lines, counted from 0."""
    text = "\n".join(lines[first : last + 1])
    return Passage(text, Place((first + 1, last + 1), headings=headings), line_by_line=True)
