"""The user's cache folder."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def cache_folder() -> Path | None:
    """The folder for caches: ORTKIT_CACHE, or the user's; None where that is empty or unknown: nothing is kept."""
    named = os.environ.get("ORTKIT_CACHE")
    if named is not None:
        return Path(named).absolute() if named else None
    try:
        home = Path.home()
    # Without HOME, for a user whom the system does not know, as in containers.
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "ortkit"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "ortkit"


def usable_folder(folder: Path) -> Path | None:
    """Make the folder; None where it cannot be written, or others can write it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    others = status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return None if others or not os.access(folder, os.W_OK | os.X_OK) else folder
