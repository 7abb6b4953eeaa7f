"""The sha256 of files. Standard library only: the installer of a kit runs this."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

HASHED = 1 << 20
"""Bytes to hash at a time. With larger buffers the C library's allocator keeps more memory."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file; raises OSError."""
    with path.open("rb", buffering=0) as file:
        return hash_of(file)


def hash_of(file: BinaryIO) -> str:
    """The sha256 of the rest of a file."""
    digest = hashlib.sha256()
    block = bytearray(HASHED)
    while size := file.readinto(block):  # type: ignore[attr-defined]
        digest.update(memoryview(block)[:size])
    return digest.hexdigest()
