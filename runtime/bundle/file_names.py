"""Names of files and folders that mean the same on every system: for bundles and packs. Standard library only."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

DEPTH = 8
"""Largest depth of nested folders."""
LONGEST_PART = 255
"""Bytes of a file name, as file systems have it."""
_LONGEST_PATH = 1024


def path_problem(name: str) -> str | None:
    """What is wrong with the relative path of a file; None for one that every system has."""
    parts = PurePosixPath(name).parts
    plain = name == "/".join(parts) and name.isprintable() and 0 < len(parts) <= DEPTH
    if not plain or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        return "leaves its folder or is not normalized"
    if len(name.encode()) > _LONGEST_PATH or any(len(part.encode()) > LONGEST_PART for part in parts):
        return "is too long"
    return None


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a folder."""
    if "/" in name or name.startswith("."):
        return "is not a plain file name"
    return path_problem(name)


def folded(name: str) -> str:
    """Equal for names that are one file on systems that ignore case or Unicode normalization, such as macOS."""
    return unicodedata.normalize("NFC", name.casefold())
