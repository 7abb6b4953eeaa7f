"""DOCX by python-docx: paragraphs and table rows in their order, headings by style.

Runs in a process of its own (`library_process.py`).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ....runtime.sizes import as_option
from .document import Passage, Place, ReadingReport, UnreadableFileError
from .encoding import clean
from .headings import Headings

_MAX_PARTS = 20_000
_MAX_UNPACKED = 512 << 20
"""Bytes of all parts, images included; python-docx reads them into memory."""
_MAX_XML = 128 << 20
"""Bytes of all XML parts; parsed, they take several times as much."""
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
"""The same content again, for older readers."""
_HEADING = re.compile(r"heading ([1-9])$", re.IGNORECASE)
_MAX_STYLES = 16
"""Styles based on one another that are searched for a heading."""
_MAX_DEPTH = 50
"""Tables and controls inside of one another."""
_CELLS = " | "


def read_docx(path: Path, report: ReadingReport, titled: Callable[[str], None]) -> Iterator[Passage]:
    """The passages; raises UnreadableFileError. `titled` is called with the title, if there is one."""
    _check_sizes(path)
    import docx
    from docx.opc.exceptions import OpcError
    from lxml.etree import LxmlError  # type: ignore[import-untyped]

    try:
        document = docx.Document(str(path))
    except (OpcError, LxmlError, LookupError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UnreadableFileError(f"is a damaged DOCX file: {type(error).__name__}") from error
    # python-docx raises it for other types of content: templates, and documents with macros.
    except ValueError as error:
        raise UnreadableFileError("is not a Word document of type DOCX", hint="save it as .docx") from error
    reader = _Reader(document)
    titled(reader.document_title())
    yield from reader.read(report)


def _check_sizes(path: Path) -> None:
    """Refuse a ZIP bomb before it is unpacked: nothing more than the declared size is read of a part."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnreadableFileError(f"is a damaged DOCX file: {type(error).__name__}") from error
    if any(part.flag_bits & 1 for part in parts):
        raise UnreadableFileError("is encrypted", hint="save it without a password")
    total = sum(part.file_size for part in parts)
    xml = sum(part.file_size for part in parts if part.filename.lower().endswith((".xml", ".rels")))
    if len(parts) > _MAX_PARTS or total > _MAX_UNPACKED or xml > _MAX_XML:
        raise UnreadableFileError(
            f"unpacks to {len(parts):,} parts and {as_option(total)}, {as_option(xml)} of them XML; the limits are "
            f"{_MAX_PARTS:,} parts, {as_option(_MAX_UNPACKED)} and {as_option(_MAX_XML)}"
        )


class _Reader:
    def __init__(self, document: Any) -> None:
        self.document = document
        self.levels: dict[str | None, int | None] = {}
        """Level of the heading by the id of the style, 0 for the title's."""
        self.headings = Headings()
        self.ready: list[Passage] = []

    def document_title(self) -> str:
        title = self.document.core_properties.title
        if title and title.strip():
            return clean(title).strip()
        for paragraph in self.document.element.body.iterchildren(f"{_W}p"):
            if self.level_of(paragraph) in (0, 1):
                return " ".join(_text_of(paragraph).split())
        return ""

    def read(self, report: ReadingReport) -> Iterator[Passage]:
        for block in self.blocks(self.document.element.body, 0, report):
            if block.tag == f"{_W}tbl":
                for row in block.iter(f"{_W}tr"):
                    if next(row.iterancestors(f"{_W}tbl"), None) is block:
                        self.add(_row_text(row))
            else:
                self.paragraph(block)
            yield from self.taken()
        self.headings.end()
        yield from self.taken()

    def taken(self) -> list[Passage]:
        ready, self.ready = self.ready, []
        return ready

    def blocks(self, parent: Any, depth: int, report: ReadingReport) -> Iterator[Any]:
        """Paragraphs and tables in order, those of content controls too, which python-docx leaves out."""
        if depth > _MAX_DEPTH:
            report.skip(f"content controls more than {_MAX_DEPTH} deep")
            return
        for child in parent.iterchildren():
            if child.tag in (f"{_W}p", f"{_W}tbl"):
                yield child
            elif child.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}customXml", f"{_W}ins", f"{_W}smartTag"):
                yield from self.blocks(child, depth + 1, report)

    def paragraph(self, paragraph: Any) -> None:
        text = _text_of(paragraph).strip()
        level = self.level_of(paragraph)
        if not level or not text:
            self.add(text)
            return
        name = " ".join(text.split())
        self.headings.begin(level, name, lambda above: self.ready.append(Passage(name, Place(headings=above))))

    def add(self, text: str) -> None:
        if text:
            self.headings.used()
            self.ready.append(Passage(text, Place(headings=self.headings.names)))

    def level_of(self, paragraph: Any) -> int | None:
        """The level of a heading, 0 for the document's title, None for text."""
        properties = paragraph.find(f"{_W}pPr")
        if properties is None:
            return None
        level = _outline_level(properties)
        if level is not None:
            return level
        style = properties.find(f"{_W}pStyle")
        identity = None if style is None else style.get(f"{_W}val")
        if identity not in self.levels:
            self.levels[identity] = self.level_of_style(identity)
        return self.levels[identity]

    def level_of_style(self, identity: str | None) -> int | None:
        found = next((style for style in self.document.styles if style.style_id == identity), None)
        for _ in range(_MAX_STYLES):
            if found is None:
                break
            name = found.name or ""
            heading = _HEADING.match(name)
            if heading is not None:
                return int(heading[1])
            if name.lower() == "title":
                return 0
            properties = found.element.find(f"{_W}pPr")
            level = None if properties is None else _outline_level(properties)
            if level is not None:
                return level
            found = getattr(found, "base_style", None)
        return None


def _outline_level(properties: Any) -> int | None:
    outline = properties.find(f"{_W}outlineLvl")
    value = "" if outline is None else outline.get(f"{_W}val", "")
    return int(value) + 1 if value in set("012345678") else None


def _text_of(element: Any) -> str:
    """The text of a paragraph or cell, with insertions and without deletions."""
    pieces: list[str] = []
    stack = [element]
    while stack:
        part = stack.pop()
        if part.tag == f"{_W}t":
            pieces.append(part.text or "")
        elif part.tag in (f"{_W}tab", f"{_W}noBreakHyphen"):
            pieces.append("\t" if part.tag == f"{_W}tab" else "-")
        elif part.tag in (f"{_W}br", f"{_W}cr") or (part.tag == f"{_W}p" and pieces):
            pieces.append("\n")
        if part.tag not in (_FALLBACK, f"{_W}pPr", f"{_W}rPr"):
            stack.extend(reversed(list(part.iterchildren())))
    return clean("".join(pieces))


def _row_text(row: Any) -> str:
    cells = (" ".join(_text_of(cell).split()) for cell in row.iter(f"{_W}tc") if _row_of(cell) is row)
    return _CELLS.join(filter(None, cells))


def _row_of(cell: Any) -> Any:
    return next(cell.iterancestors(f"{_W}tr"), None)
