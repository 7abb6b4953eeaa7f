"""Paths: files to be written, known before anything is computed for them, and names as libraries need them."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A file beside the target that takes its place when the block is done, and is gone when it raises.

    What a process that was killed left of another try is removed. Raises OSError.
    """
    remove_abandoned(target)
    partial, file = new_partial(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def new_partial(target: Path) -> tuple[Path, BinaryIO]:
    """A new file beside a target, locked as long as it is open, by which others see that it is in use."""
    while True:
        partial = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
        file = partial.open("xb")
        # Some file systems know no locks; there, nothing is ever removed.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Before it was locked, someone may have taken it for abandoned.
        if partial.exists():
            return partial, file
        file.close()


def remove_abandoned(target: Path) -> None:
    """Remove the files beside a target that no process holds any more; their numbers may be those of others by now."""
    known = re.compile(rf"\.{re.escape(target.name)}\.\d+\.[0-9a-f]{{8}}\.partial")
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if known.fullmatch(path.name) is None:
            continue
        # One that is a link, is in use or belongs to someone else stays.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            finally:
                os.close(descriptor)


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
