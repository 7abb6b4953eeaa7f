"""Markdown (CommonMark's blocks and GitHub's tables): headings, paragraphs, list items, table rows, code blocks."""

from __future__ import annotations

import re

from .document import Passage
from .headings import Headings
from .plain_text import passage_of

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_CLOSING = re.compile(r"(?:^|[ \t]+)#+[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r"[ \t]*(?:[-*+][ \t]+|\d{1,9}[.)][ \t]+)?(`{3,}(?=[^`]*$)|~{3,})")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_TABLE_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
_ANCHOR = re.compile(r"[ \t]*\{#[^{}]*\}[ \t]*$")
_EMPHASIS = re.compile(r"(\*{1,3}|`+|~~)(\S(?:.*?\S)?)\1")
_TITLE = re.compile(r"title[ \t]*[:=][ \t]*(.+)$")
_MARKS = {"---": ("---", "..."), "+++": ("+++",)}
"""First line of front matter (YAML, TOML) -> its last line."""
_FRONT_LINES = 1000


def read_markdown(text: str) -> tuple[str, list[Passage]]:
    """The title, or "" without one, and the passages. Front matter is read for the title alone."""
    lines = text.split("\n")
    title, first = _front_matter(lines)
    reader = _Reader(lines)
    reader.read(first)
    return title or reader.title, reader.passages


def _front_matter(lines: list[str]) -> tuple[str, int]:
    """The title in the front matter, and the first line after it."""
    ends = _MARKS.get(lines[0].rstrip())
    if ends is None:
        return "", 0
    title = ""
    for number, line in enumerate(lines[1:_FRONT_LINES], start=1):
        if line.rstrip() in ends:
            return title, number + 1
        found = _TITLE.match(line)
        if found is not None and not title:
            title = found[1].strip().strip("\"'")
    return "", 0


class _Reader:
    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.passages: list[Passage] = []
        self.headings = Headings()
        self.title = ""
        """The first heading of level 1."""
        self.begun: int | None = None
        """First line of the paragraph that has begun."""

    def read(self, number: int) -> None:
        while number < len(self.lines):
            number = self.block(number)
        self.finish(len(self.lines))
        self.headings.end()

    def block(self, number: int) -> int:
        """Read what begins in a line; returns the line after it."""
        line = self.lines[number]
        fence = _FENCE.match(line)
        if not line.strip():
            self.finish(number)
        elif fence is not None:
            return self.code(number, fence[1])
        elif line.lstrip().startswith("<!--") and self.begun is None:
            return self.comment(number)
        elif (heading := _ATX.match(line)) is not None:
            self.finish(number)
            self.heading(len(heading[1]), _CLOSING.sub("", heading[2] or ""), number, number)
        elif self.begun is not None and (under := _UNDERLINE.match(line)) is not None and self.may_be_heading():
            begun, self.begun = self.begun, None
            self.heading(1 if under[1][0] == "=" else 2, " ".join(self.lines[begun:number]), begun, number)
        elif _RULE.match(line):
            self.finish(number)
        elif self.is_table(number):
            return self.table(number)
        elif self.begun is None or _LIST_ITEM.match(line):
            self.finish(number)
            self.begun = number
        return number + 1

    def may_be_heading(self) -> bool:
        """Whether the paragraph above an underline is a heading: not a list item, quote or table."""
        first = self.lines[self.begun or 0]
        return not (_LIST_ITEM.match(first) or first.lstrip().startswith((">", "|")) or first.startswith("    "))

    def heading(self, level: int, name: str, first: int, last: int) -> None:
        plain = _plain(name)
        if level == 1 and not self.title:
            self.title = plain
        self.headings.begin(
            level, plain, lambda above: self.passages.append(passage_of(self.lines, first, last, above))
        )

    def code(self, number: int, fence: str) -> int:
        """A fenced code block; without an end it goes to the end of the file, as CommonMark says."""
        self.finish(number)
        closing = re.compile(rf"\s*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$")
        last = number + 1
        while last < len(self.lines) and not closing.match(self.lines[last]):
            last += 1
        last = min(last, len(self.lines) - 1)
        self.add(number, last)
        return last + 1

    def comment(self, number: int) -> int:
        self.finish(number)
        for last in range(number, len(self.lines)):
            if "-->" in self.lines[last]:
                return last + 1
        self.begun = number
        return number + 1

    def is_table(self, number: int) -> bool:
        """Whether a table begins: a row with `|`, and a line of dashes with `|` below it."""
        if "|" not in self.lines[number] or number + 1 == len(self.lines):
            return False
        return "|" in self.lines[number + 1] and _TABLE_RULE.match(self.lines[number + 1]) is not None

    def table(self, number: int) -> int:
        """The rows of a table; the first one together with the line of dashes."""
        self.finish(number)
        self.add(number, number + 1)
        number += 2
        while number < len(self.lines) and "|" in self.lines[number]:
            self.add(number, number)
            number += 1
        return number

    def finish(self, number: int) -> None:
        """End the paragraph before a line."""
        if self.begun is not None:
            first, self.begun = self.begun, None
            self.add(first, number - 1)

    def add(self, first: int, last: int) -> None:
        self.headings.used()
        self.passages.append(passage_of(self.lines, first, last, self.headings.names))


def _plain(name: str) -> str:
    """A heading without links, emphasis and its anchor."""
    name = _LINK.sub(r"\1", _ANCHOR.sub("", name))
    return " ".join(_EMPHASIS.sub(r"\2", name).split())
