"""Paths: files to be written, known before anything is computed for them, and names as libraries need them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from runtime.errors import OutputError


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file that a path names, behind its symlinks, so that what replaces it does not replace a link.

    A device or a pipe stays as it is named. Raises OutputError for an empty name, a folder, and a place where no file
    can be.
    """
    if not os.fspath(path):
        raise OutputError("the name of the file to write is empty", hint="name a file")
    named = Path(path)
    try:
        mode = mode_of(named)
        # The end of the links behind /dev/stdout is the name of a pipe, by which nothing can be opened.
        special = mode is not None and not stat.S_ISREG(mode)
        target = Path(os.path.realpath(named)) if named.is_symlink() and not special else named
        target.parent.stat()
    except OSError as error:
        raise OutputError(f"`{path}` cannot be written: {error.strerror or error}") from error
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"`{path}` cannot be written: it is a folder")
    return target


def regular_target_of(path: str | os.PathLike[str], *, hint: str | None = None) -> Path:
    """The same, for what can only be a file; raises OutputError for a device or a pipe too."""
    target = target_of(path)
    if is_special(target):
        raise OutputError(f"`{path}` cannot be written: it is no regular file", hint=hint)
    return target


def is_special(target: Path) -> bool:
    """Whether something is there that is written to, not replaced: a device or a pipe."""
    return target.exists() and not target.is_file()


def mode_of(path: Path) -> int | None:
    """Type and permissions of what is there, None where nothing is."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


class NameInBytes:
    """A path that gives its bytes, for libraries that would write its characters in UTF-8 whatever the locale has."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


def native(path: Path) -> str | NameInBytes:
    """A path for onnxruntime, which takes a string for UTF-8; names on a disk may be any bytes (PEP 383)."""
    return str(path) if is_utf8(path) else NameInBytes(path)


def is_utf8(path: Path) -> bool:
    """Whether the bytes of a path are those of its characters in UTF-8."""
    try:
        return os.fsencode(path) == str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
