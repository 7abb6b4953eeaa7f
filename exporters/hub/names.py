"""Strict forms for everything that the Hub names: nothing else becomes a path, a request or text on a terminal."""

from __future__ import annotations

import re

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""SHA-1 or SHA-256, as git and the large file storage write them."""
_REPO_PART = r"(?=[A-Za-z0-9_])[A-Za-z0-9_.-]{1,96}(?<=[A-Za-z0-9_])"
_REPO = re.compile(rf"(?:{_REPO_PART}/)?{_REPO_PART}")
_MAX_PART = 255
"""Bytes of a file's or folder's name that file systems take."""
LONGEST_TEXT = 200
"""Characters of a text of the Hub in a message."""


def is_hash(text: object) -> bool:
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


def is_repo_id(text: object) -> bool:
    """Whether a text reads `owner/name` (or `name`, as the Hub's oldest repositories) and can be a folder's name."""
    return isinstance(text, str) and _REPO.fullmatch(text) is not None and "--" not in text and ".." not in text


def is_file_name(text: object) -> bool:
    """Whether a text is a path that stays within its folder on every file system."""
    return isinstance(text, str) and all(_is_part(part) for part in text.split("/"))


def _is_part(part: str) -> bool:
    if not part.isprintable() or "\\" in part or part in ("", ".", ".."):
        return False
    return len(part.encode("utf-8", errors="replace")) <= _MAX_PART


def hash_in(tag: str | None) -> str | None:
    """The hash that an `ETag` header holds; None where it holds anything else."""
    found = (tag or "").removeprefix("W/").strip('"')
    return found if is_hash(found) else None
