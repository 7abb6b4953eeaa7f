"""Hash each file of a checkpoint once, and notice when one changes between then and the end of the export."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import CheckpointError
from ...runtime.file_hash import HASHED


@dataclass(frozen=True)
class FileState:
    """Which file a path leads to, and when it was last written: while this is the same, so is the content."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The state of a file, through links; raises OSError where there is none."""
        return cls._from_stat(path.stat())

    @classmethod
    def of_open(cls, descriptor: int) -> FileState:
        """The state of an open file."""
        return cls._from_stat(os.fstat(descriptor))

    @classmethod
    def _from_stat(cls, found: os.stat_result) -> FileState:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def same_content(self, later: FileState) -> bool:
        """Whether a file was at most renamed since: renaming it, or linking to it, sets `changed_ns`."""
        return (self.device, self.inode, self.size, self.modified_ns) == (
            later.device,
            later.inode,
            later.size,
            later.modified_ns,
        )


@dataclass(frozen=True)
class HashedFile:
    """The sha256 of a file that was read from beginning to end, and its state then."""

    sha256: str
    state: FileState
    git_sha1: str | None = None
    """Git's name for the content, where that was asked for."""

    def is_current(self, path: Path) -> bool:
        """Whether a path leads to the file that was hashed, as it was then."""
        try:
            return FileState.of(path) == self.state
        except OSError:
            return False


def hash_file(path: Path, *, git: bool = False) -> HashedFile:
    """Hash a file in one pass, with `git` also as git does: sha1 over a header with its length, and the content.

    Raises CheckpointError for a file that something writes to meanwhile.
    """
    with path.open("rb", buffering=0) as file:
        before = FileState.of_open(file.fileno())
        digests = [hashlib.sha256()]
        if git:
            digests.append(hashlib.sha1(b"blob %d\0" % before.size, usedforsecurity=False))
        block = bytearray(HASHED)
        while size := file.readinto(block):
            for digest in digests:
                digest.update(memoryview(block)[:size])
        if FileState.of_open(file.fileno()) != before:
            raise changed_meanwhile(path)
    return HashedFile(digests[0].hexdigest(), before, digests[1].hexdigest() if git else None)


def check_unchanged(files: Mapping[Path, HashedFile]) -> None:
    """Raise CheckpointError for a file whose content is no longer the one that was hashed.

    A file is read again only where its state is another one, as after `touch` or `chmod`.
    """
    for path, hashed in files.items():
        try:
            same = hashed.is_current(path) or hash_file(path).sha256 == hashed.sha256
        except OSError:
            same = False
        if not same:
            raise changed_meanwhile(path)


def changed_meanwhile(path: Path) -> CheckpointError:
    """The error for a file that was changed or removed while it was exported."""
    return CheckpointError(
        f"`{path}` was changed during the export", hint="run the command again when nothing writes to the checkpoint"
    )
