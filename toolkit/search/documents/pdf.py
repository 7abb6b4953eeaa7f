"""PDF by pypdf: the text of each page. Runs in a process of its own (`library_process.py`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from .document import Passage, Place, ReadingReport, UnreadableFileError
from .encoding import clean

_MAX_PAGES = 20_000
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_FULL_LINE = 0.6
"""Length of a line that ends since the page does, by the longest one."""
_HYPHEN = re.compile(r"(?<=[a-zà-öø-ÿ])-\n(?=[a-zà-öø-ÿ])")
"""The end of a line inside a word. Words with a hyphen of their own lose it, as in other extractors."""


def read_pdf(path: Path, report: ReadingReport, titled: Callable[[str], None]) -> Iterator[Passage]:
    """The paragraphs of each page; raises UnreadableFileError. `titled` is called with the title, if there is one."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    with path.open("rb") as stream:
        try:
            reader = PdfReader(stream, strict=False)
            if reader.is_encrypted and not reader.decrypt(""):
                raise UnreadableFileError("is encrypted", hint="save it without a password, for example with `qpdf`")
            pages = len(reader.pages)
        except DependencyError as error:
            raise _needs_cryptography() from error
        # pypdf's own errors, and those that it does not foresee in damaged files.
        except (PyPdfError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            if isinstance(error, UnreadableFileError):
                raise
            raise UnreadableFileError(f"is a damaged PDF: {type(error).__name__}") from error
        if not pages:
            raise UnreadableFileError("is a PDF without pages")
        if pages > _MAX_PAGES:
            raise UnreadableFileError(f"has {pages} pages, and the limit is {_MAX_PAGES}", hint="split it")
        titled(_title_of(reader))
        yield from _pages(reader, pages, report)


def _needs_cryptography() -> UnreadableFileError:
    """The error for AES without its package, which is found out at the password or, with AES-128, at the first page."""
    return UnreadableFileError(
        "is encrypted with AES",
        hint="install `cryptography`, or save the file without encryption, for example with `qpdf`",
    )


def _pages(reader: object, pages: int, report: ReadingReport) -> Iterator[Passage]:
    from pypdf.errors import DependencyError

    found = False
    for number in range(1, pages + 1):
        try:
            text = reader.pages[number - 1].extract_text()  # type: ignore[attr-defined]
        except (MemoryError, KeyboardInterrupt):
            raise
        except DependencyError as error:
            raise _needs_cryptography() from error
        # Whatever a library raises for a damaged page; the others are read.
        except Exception as error:  # noqa: BLE001
            report.skip(f"page {number} is damaged: {type(error).__name__}")
            continue
        for paragraph in _BLANK_LINES.split(clean(text)):
            if paragraph.strip():
                found = True
                yield Passage(_flowing(_HYPHEN.sub("", paragraph.strip())), Place(page=number))
    if not found and report.skipped_records:
        raise UnreadableFileError(f"is a damaged PDF: {report.first_fault}")
    if not found:
        raise UnreadableFileError(
            "has no text layer (scanned?)", hint="add one by text recognition, for example with `ocrmypdf`"
        )


def _flowing(paragraph: str) -> str:
    """Join the lines of a sentence, so that a chunk can end where it does; short lines, as in lists, remain."""
    lines = [line.rstrip() for line in paragraph.split("\n")]
    full = _FULL_LINE * max(map(len, lines))
    text = lines[0]
    for line, following in pairwise(lines):
        joined = len(line) >= full and not line.endswith((".", "!", "?", ":", ";"))
        text += (" " if joined else "\n") + following
    return text


def _title_of(reader: object) -> str:
    try:
        title = reader.metadata.title  # type: ignore[attr-defined]
    except (MemoryError, KeyboardInterrupt):
        raise
    # A title is not worth a file.
    except Exception:  # noqa: BLE001
        return ""
    return clean(title).strip() if isinstance(title, str) else ""
