"""A document: its title, its passages, and where each stands in the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ....runtime.errors import InputError


class UnreadableFileError(InputError):
    """A file whose text cannot be read. It is listed with the message, and the run continues with other files.

    The message is the reason without the file's name, such as `is encrypted`.
    """


@dataclass(frozen=True)
class Place:
    """Where a passage stands in its file."""

    lines: tuple[int, int] | None = None
    """First and last line, from 1, as an editor counts them; None for PDF and DOCX."""
    page: int | None = None
    """From 1; PDF only."""
    headings: tuple[str, ...] = ()
    """The headings above the passage, outermost first."""


@dataclass(frozen=True)
class Passage:
    """A paragraph, list item, table row or code block; it never crosses a heading."""

    text: str
    place: Place = Place()
    line_by_line: bool = False
    """Whether the lines of `text` are those of the file, from `place.lines[0]` to `place.lines[1]`."""


@dataclass
class ReadingReport:
    """What was left out of a document; complete once its passages have been read."""

    skipped_records: int = 0
    """Rows or records that are not valid."""
    first_fault: str | None = None
    """Why the first of them was skipped, with its line."""

    def skip(self, fault: str) -> None:
        """Count a record, or a passage, that is left out."""
        self.skipped_records += 1
        self.first_fault = self.first_fault or fault


@dataclass(frozen=True)
class Document:
    """A file's text. Iterating over `passages` raises UnreadableFileError where the file turns out to be unreadable."""

    title: str
    """The document's own title, else the name of its file."""
    passages: Iterable[Passage]
    """Can be read once; files that can be large are read lazily."""
    report: ReadingReport = field(default_factory=ReadingReport)
