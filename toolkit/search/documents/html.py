"""HTML: headings, paragraphs, list items, table rows and preformatted text, without scripts, styles and navigation."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from .document import Passage, Place
from .headings import Headings

_LEFT_OUT = frozenset({"iframe", "nav", "noscript", "object", "script", "select", "style", "svg", "template"})
_RAW = frozenset({"script", "style"})
_BLOCKS = frozenset(
    [
        *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div"),
        *("dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4"),
        *("h5", "h6", "head", "header", "hr", "html", "iframe", "legend", "li", "main", "menu"),
        *("nav", "noscript", "object", "ol", "p", "pre", "section", "summary", "table", "tbody", "template"),
        *("tfoot", "thead", "title", "tr", "ul"),
    ]
)
_IN_CELLS = frozenset({"address", "center", "div", "p", "section"})
"""Blocks that do not end a table's row."""
_HEADING = re.compile(r"h([1-6])$")
_VOID = frozenset(
    [
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"),
        *("track", "wbr"),
    ]
)
_CHARSET = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([A-Za-z0-9._:-]{1,40})", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9._:-]{1,40})")
_HEAD = 4096
"""Bytes that name the encoding, four times those of the standard."""
_CELLS = " | "


def declared_encoding(content: bytes) -> str | None:
    """The encoding that an HTML file names."""
    found = _CHARSET.search(content, 0, _HEAD) or _XML_ENCODING.match(content, 0, _HEAD)
    return None if found is None else found[1].decode("ascii")


def read_html(text: str) -> tuple[str, list[Passage]]:
    """The title, or "" without one, and the passages. Malformed HTML is read as far as it goes."""
    reader = _parsed(text, _LEFT_OUT)
    if reader.inside is not None:
        # An element that never ends would hide the rest of the file.
        reader = _parsed(text, _RAW)
    return reader.title or reader.heading, reader.passages


def _parsed(text: str, left_out: frozenset[str]) -> _Reader:
    reader = _Reader(left_out)
    reader.feed(text)
    reader.close()
    reader.finish()
    reader.headings.end()
    return reader


class _Reader(HTMLParser):
    def __init__(self, left_out: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.left_out = left_out
        self.passages: list[Passage] = []
        self.headings = Headings()
        self.title = ""
        self.heading = ""
        """The first heading of level 1."""
        self.inside: str | None = None
        """The element that is left out, while inside of it."""
        self.depth = 0
        """How many elements of that name are open."""
        self.block = ""
        """The block whose text is read where that matters: `title`, a heading or `pre`."""
        self.pieces: list[str] = []
        self.lines: tuple[int, int] | None = None
        """First and last line of these pieces."""
        self.cells = 0
        """Cells of the row that have begun; 0 outside of rows."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.inside is not None:
            self.depth += tag == self.inside
            return
        given = dict(attrs)
        if tag in self.left_out or (self.left_out > _RAW and tag not in _VOID and _is_hidden(given)):
            self.inside, self.depth = tag, 1
            return
        if tag in _BLOCKS and not (self.cells and tag in _IN_CELLS):
            self.finish()
            self.block = tag if tag in {"title", "pre"} or _HEADING.match(tag) else ""
        elif tag in {"td", "th"}:
            self.cells += 1
            self.add(_CELLS if self.cells > 1 else "", placed=False)
        elif tag == "br":
            self.add("\n", placed=False)
        elif tag == "img" and given.get("alt"):
            self.add(f" {given['alt']} ")
        elif tag in _IN_CELLS:
            self.add(" ", placed=False)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # HTML ignores the slash of elements that are not void, and XHTML does not.
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside is not None:
            self.depth -= tag == self.inside
            if not self.depth:
                self.inside = None
        elif tag in _BLOCKS and not (self.cells and tag in _IN_CELLS):
            self.finish()

    def handle_data(self, data: str) -> None:
        if self.inside is None:
            self.add(data)

    def parse_marked_section(self, i: int, report: int = 1) -> int:  # noqa: ARG002 - of the base class
        """Read `<![...` as a comment, as browsers do; the base class raises AssertionError for unknown ones."""
        return int(self.parse_bogus_comment(i))

    def add(self, data: str, *, placed: bool = True) -> None:
        """Add to the text of the block; `placed` text stands at the current line of the file."""
        words = data.strip()
        if placed and words:
            first = self.getpos()[0] + data.count("\n", 0, data.index(words[0]))
            last = first + words.count("\n")
            self.lines = (first, last) if self.lines is None else (self.lines[0], max(self.lines[1], last))
        self.pieces.append(data)

    def finish(self) -> None:
        """End the block."""
        raw, block, lines = "".join(self.pieces), self.block, self.lines
        self.pieces, self.block, self.lines, self.cells = [], "", None, 0
        text = _trimmed_lines(raw) if block == "pre" else _collapsed(raw)
        if lines is None or not text.strip(_CELLS):
            return
        found = _HEADING.match(block)
        if block == "title":
            self.title = self.title or " ".join(text.split())
        elif found is not None:
            self.begin(int(found[1]), " ".join(text.split()), lines)
        else:
            self.headings.used()
            # Tags with line breaks in them, and references to line breaks, would make these lines others.
            exact = block == "pre" and text.count("\n") == lines[1] - lines[0]
            self.passages.append(Passage(text, Place(lines, headings=self.headings.names), line_by_line=exact))

    def begin(self, level: int, name: str, lines: tuple[int, int]) -> None:
        if level == 1:
            self.heading = self.heading or name
        self.headings.begin(
            level, name, lambda above: self.passages.append(Passage(name, Place(lines, headings=above)))
        )


def _is_hidden(given: dict[str, str | None]) -> bool:
    return "hidden" in given or given.get("role") == "navigation"


def _collapsed(text: str) -> str:
    """The text with single spaces; a line for each `<br>` would not be a line of the file."""
    return " ".join(text.split())


def _trimmed_lines(text: str) -> str:
    lines = text.split("\n")
    while lines and not lines[0].strip():
        del lines[0]
    while lines and not lines[-1].strip():
        del lines[-1]
    return "\n".join(lines)
