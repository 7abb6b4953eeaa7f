"""The size of a folder that other processes may be writing to."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder, without those that links lead to; what is gone meanwhile does not count."""
    size = 0
    # Unlike `Path.rglob`, it passes over folders that are gone by the time they are looked into.
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(OSError):
                size += 0 if path.is_symlink() else path.stat().st_size
    return size
