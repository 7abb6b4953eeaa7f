"""The bytes of a file, as it was when the folder was listed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ..folder import FoundFile
from .document import UnreadableFileError

HEAD = 1 << 16
"""Bytes that are looked at to recognize a format."""


@contextmanager
def opened(found: FoundFile) -> Iterator[BinaryIO]:
    """Open a file; raises UnreadableFileError where that fails, where reading fails, and where the file changed."""
    try:
        # Without O_NONBLOCK, a named pipe that has taken the file's place would block for ever.
        descriptor = os.open(found.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnreadableFileError("vanished after the folder was listed") from error
    except OSError as error:
        raise UnreadableFileError(f"cannot be opened: {error.strerror or error}") from error
    with os.fdopen(descriptor, "rb") as stream:
        _check_unchanged(found, descriptor)
        try:
            yield stream
        except OSError as error:
            raise UnreadableFileError(f"cannot be read: {error.strerror or error}") from error
        _check_unchanged(found, descriptor)


def _check_unchanged(found: FoundFile, descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError("is not a regular file any more")
    if (status.st_size, status.st_mtime_ns) != (found.size, found.modified_ns):
        raise UnreadableFileError("changed while the folder was read", hint="it is read the next time")


def content_of(found: FoundFile) -> bytes:
    """All bytes of a file."""
    with opened(found) as stream:
        return stream.read()


def head_of(found: FoundFile) -> bytes:
    """The first bytes of a file."""
    with opened(found) as stream:
        return stream.read(HEAD)
