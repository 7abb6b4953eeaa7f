"""Which files of a folder are read: patterns, ignore files, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 64 << 20
"""Larger files are left out, unless `FolderRules.max_file_bytes` says otherwise."""


@dataclass(frozen=True)
class FolderRules:
    """Which files of a folder are read."""

    include: tuple[str, ...] = ()
    """Patterns of .gitignore syntax; a file must match one. Empty: all files."""
    exclude: tuple[str, ...] = ()
    """Patterns of .gitignore syntax; files and folders that match one are left out."""
    max_file_bytes: int = MAX_FILE_BYTES
    hidden: bool = False
    """Whether names that begin with a dot are read."""
    ignore_file: str | None = ".ortkitignore"
    """Name of the files with patterns of .gitignore syntax, in any folder; None: none are read."""
    follow_links: bool = False
    """Whether symbolic links that lead out of the folder are followed."""


@dataclass(frozen=True)
class FoundFile:
    """A regular file of a folder."""

    name: str
    """Path relative to the folder, with `/`; bytes that are not UTF-8 as surrogates (`os.fsdecode`)."""
    path: Path
    size: int
    """Bytes."""
    modified_ns: int


@dataclass(frozen=True)
class SkippedFile:
    """A file or folder that is not read, and why."""

    name: str
    reason: str


def walk(folder: Path, rules: FolderRules) -> Iterator[FoundFile | SkippedFile]:
    """The files of a folder, sorted by name; raises NotFoundError where there is no such folder.

    Ignored and hidden files are left out silently. Whatever else is not read is a SkippedFile.
    """
    raise NotImplementedError(folder, rules)
