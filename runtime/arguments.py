"""Checks of the arguments of the public API: an error names the argument and the type or value that was passed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import SupportsIndex

from .errors import InputError


def checked_integer(value: object, name: str, *, least: int | None = 1) -> int:
    """Return any integer, such as numpy's, as an int; raises InputError for anything else, and below `least`.

    Without `least`, callers check the range, and say where it comes from.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise InputError(f"`{name}` must be an integer, not {type(value).__name__}")
    number = value.__index__()
    if least is not None and number < least:
        raise InputError(f"`{name}` must be at least {least}, not {number}")
    return number


def checked_flag(value: object, name: str) -> bool:
    """Return a bool; raises InputError for anything else, such as the string "no", which counts as true."""
    if not isinstance(value, bool):
        raise InputError(f"`{name}` must be True or False, not {type(value).__name__}")
    return value


def checked_path(path: object, name: str) -> Path:
    """Return a path; raises InputError for anything but a str or a path of str."""
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise InputError(f"`{name}` must be a path, not {type(path).__name__}")
    if not os.fspath(path):
        raise InputError(f"`{name}` is an empty path")
    return Path(path)


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_of(text: str, name: str) -> int:
    """Return the bytes of a size such as `500M` or `4G`; raises InputError for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)([KMGT]?)(?:I?B)?", text.strip().upper(), re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2]]) if found is not None else 0
    if not 0 < size < 1 << 63:
        raise InputError(f"`{name}` must be a size such as 500M or 4G, not `{text}`")
    return size
