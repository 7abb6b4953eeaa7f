"""The hashes of files that were verified before: a large file that is unchanged since then is not read again.

A file is the same if its device, inode, size, mtime and ctime are: no program can set a ctime, so whoever changes the
file changes it too. But for a mapping of the file into memory this is so for the first change alone, until the page is
written to disk, and in a tmpfs not even for that. So a file that another user can write to is always read. What this
cannot see is a medium that returns other data than was written, for which `ortkit verify` reads everything. The record
lies in the user's cache folder, and is used only if no other user can change it. The policy's `always_hash` does
without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from pathlib import Path
from typing import BinaryIO

from ..cache_folder import cache_folder, usable_folder
from ..file_hash import hash_of
from ..output_path import replacing
from ..trust.ownership import is_open_to_others

NAME = "verified-files.json"
_SMALLEST = 1 << 20
"""Bytes of a file that is worth a record; a smaller one is hashed in a millisecond."""
_MOST = 1000
_LARGEST_FILE = 1 << 20
_SETTLED = 2_000_000_000
"""Nanoseconds after which a change is sure to have another time, whatever the file system's resolution."""

Identity = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime in nanoseconds."""


class VerifiedFiles:
    """Hash files, or take the hashes of unchanged ones from the record in the user's cache folder."""

    def __init__(self) -> None:
        folder = cache_folder()
        self._path = folder / NAME if folder is not None else None
        self._known = {} if self._path is None else _read(self._path)
        self._new: dict[Identity, str] = {}

    def sha256_of(self, path: Path) -> str:
        """The sha256 of a file; raises OSError."""
        with path.open("rb", buffering=0) as file:
            before = _identity_of(file)
            # Whoever has it mapped into memory can change it again and again, with one change of the times.
            if is_open_to_others(os.fstat(file.fileno())):
                return hash_of(file)
            if before in self._known:
                return self._known[before]
            begun = time.time_ns()
            digest = hash_of(file)
            # A file that changes right now could change again without another time.
            settled = begun - max(before[3:]) > _SETTLED
            if before[2] >= _SMALLEST and settled and before == _identity_of(file):
                self._new[before] = digest
            return digest

    def save(self) -> None:
        """Add the new hashes to the record; without a folder that can be written, nothing is kept."""
        if not self._new or self._path is None or usable_folder(self._path.parent) is None:
            return
        # Another process may have written meanwhile; should it write now, its hashes are computed again.
        known = _read(self._path) | self._new
        entries = [[*identity, digest] for identity, digest in [*known.items()][-_MOST:]]
        with contextlib.suppress(OSError), replacing(self._path) as file:
            file.write(json.dumps({"files": entries}).encode("ascii"))
        self._new = {}


def _identity_of(file: BinaryIO) -> Identity:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> dict[Identity, str]:
    """The record; empty if there is none, it is damaged, or another user can change it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            for status in (os.fstat(file.fileno()), path.parent.stat()):
                if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    return {}
            content = file.read(_LARGEST_FILE + 1)
        entries = json.loads(content)["files"] if len(content) <= _LARGEST_FILE else []
        return {_identity(entry): str(entry[5]) for entry in entries}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _identity(entry: list[int]) -> Identity:
    device, inode, size, mtime, ctime = (int(number) for number in entry[:5])
    return device, inode, size, mtime, ctime
