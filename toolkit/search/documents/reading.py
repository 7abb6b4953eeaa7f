"""Read a file of a folder, in the format that its content and its name show."""

from __future__ import annotations

from pathlib import PurePosixPath

from ...io.magic_bytes import PDF, ZIP, binary_format_of, compression_of
from ..folder import FoundFile
from .content import content_of, head_of
from .document import Document, Passage, ReadingReport, UnreadableFileError
from .encoding import check_text, decode_text
from .html import declared_encoding, read_html
from .library_process import read_with_library
from .markdown import read_markdown
from .plain_text import paragraphs
from .source_code import SUFFIXES, read_code
from .tables import is_jsonl, read_json, read_table

_MARKDOWN = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd", ".rmd"})
_HTML = frozenset({".html", ".htm", ".xhtml", ".xht"})
_TABLES = frozenset({".csv", ".tsv", ".tab", ".jsonl", ".ndjson"})
_HTML_BEGINNINGS = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_HTML_APART = 1 << 18
"""Bytes from which on HTML is read in a process of its own: Python's parser takes quadratic time for malformed HTML."""
_OFFICE = {
    b"word/document.xml": "",
    b"xl/workbook.xml": "an Excel workbook",
    b"xl/workbook.bin": "an Excel workbook",
    b"ppt/presentation.xml": "a PowerPoint presentation",
    b"mimetypeapplication/vnd.oasis.opendocument": "an OpenDocument file",
    b"mimetypeapplication/epub+zip": "an EPUB book",
}
"""Names of parts of a ZIP archive -> what it is; "" for DOCX."""
_OFFICE_HINTS = {
    "an Excel workbook": "save its sheets as CSV",
    "a PowerPoint presentation": "save it as PDF",
    "an OpenDocument file": "save it as DOCX or PDF",
    "an EPUB book": "convert it to HTML or PDF",
}
_OTHERS = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("is an old or an encrypted Office document", "save it as DOCX, or as PDF"),
    b"{\\rtf": ("is an RTF file", "save it as DOCX, or as PDF"),
    b"\x89PNG": ("is a PNG image", None),
    b"\xff\xd8\xff": ("is a JPEG image", None),
    b"GIF8": ("is a GIF image", None),
    b"\x7fELF": ("is a program", None),
    b"7z\xbc\xaf\x27\x1c": ("is a 7z archive", "unpack it"),
    b"Rar!\x1a\x07": ("is a RAR archive", "unpack it"),
    b"%!PS": ("is a PostScript file", "convert it to PDF: `ps2pdf`"),
}
"""Magic bytes -> why such a file is not read, and what to do."""
_TAR = (257, b"ustar")
"""Offset and magic bytes of a tar archive."""


def read_document(found: FoundFile) -> Document:
    """Read a file; raises UnreadableFileError, also while its passages are read."""
    name = PurePosixPath(found.name).name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    report = ReadingReport()
    title, passages = _read(found, report)
    if passages is None:
        return Document(name, read_table(found, report), report)
    return Document(title or name, passages, report)


def _read(found: FoundFile, report: ReadingReport) -> tuple[str, list[Passage] | None]:
    """The title, or "" without one, and the passages; None for a table, which is read row by row."""
    head = head_of(found)
    suffix = PurePosixPath(found.name).suffix.lower()
    if head.lstrip().startswith(PDF) or (suffix == ".pdf" and PDF in head[:1024]):
        read = read_with_library("pdf", found, report)
        return read.title, read.passages
    if head.startswith(ZIP):
        _refuse_other_archives(found, suffix)
        read = read_with_library("docx", found, report)
        return read.title, read.passages
    _refuse_binary(head)
    if suffix in _HTML or _begins_as_html(head, suffix):
        return _html(found, report)
    if suffix in _TABLES:
        return "", None
    return _text(found, suffix)


def _text(found: FoundFile, suffix: str) -> tuple[str, list[Passage] | None]:
    text = decode_text(content_of(found))
    if suffix in _MARKDOWN:
        return read_markdown(text)
    if suffix == ".json":
        members = read_json(text)
        if members is not None or is_jsonl(text):
            return "", members
    return "", read_code(text, suffix) if suffix in SUFFIXES else paragraphs(text)


def _html(found: FoundFile, report: ReadingReport) -> tuple[str, list[Passage]]:
    if found.size > _HTML_APART:
        read = read_with_library("html", found, report)
        return read.title, read.passages
    content = content_of(found)
    return read_html(decode_text(content, declared=declared_encoding(content)))


def _begins_as_html(head: bytes, suffix: str) -> bool:
    """Whether a file without a suffix that says otherwise is HTML; XML is so only where an `<html` element follows."""
    if suffix in _MARKDOWN or suffix in SUFFIXES or suffix in _TABLES:
        return False
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1024].lower()
    return start.startswith(_HTML_BEGINNINGS) and (not start.startswith(b"<?xml") or b"<html" in start)


def _refuse_other_archives(found: FoundFile, suffix: str) -> None:
    """Raise UnreadableFileError for a ZIP archive that is not DOCX, nor by its name a damaged one."""
    content = content_of(found)
    kind = next((kind for part, kind in _OFFICE.items() if part in content), None)
    if kind is None and suffix != ".docx":
        raise UnreadableFileError("is a ZIP archive", hint="unpack it: `unzip FILE`")
    if kind:
        raise UnreadableFileError(f"is {kind}", hint=_OFFICE_HINTS[kind])


def _refuse_binary(head: bytes) -> None:
    # No hint names the file: files are listed by their reasons.
    compression = compression_of(head)
    if compression is not None:
        hint = f"unpack it: `{compression.command} FILE > ...`"
        raise UnreadableFileError(f"is compressed with {compression.name}", hint=hint)
    for start, (reason, advice) in _OTHERS.items():
        if head.startswith(start):
            raise UnreadableFileError(reason, hint=advice)
    binary = binary_format_of(head)
    if binary is not None:
        raise UnreadableFileError(f"is not text: it is {binary}")
    at, magic = _TAR
    if head[at : at + len(magic)] == magic:
        raise UnreadableFileError("is a tar archive", hint="unpack it: `tar -xf FILE`")
    # Before the whole of a large file is read.
    check_text(head)
