"""The user's cache folder."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def cache_folder() -> Path | None:
    """The folder for caches: ORTKIT_CACHE, or the user's; None where that is empty or unknown: nothing is kept."""
    return None if os.environ.get("ORTKIT_CACHE") == "" else downloads_folder()


def downloads_folder() -> Path | None:
    """The folder for downloads, which must lie somewhere: ORTKIT_CACHE, or the user's where that is empty or not set.

    None where the user has no home folder.
    """
    if named := os.environ.get("ORTKIT_CACHE"):
        return Path(named).absolute()
    if sys.platform != "darwin" and (base := os.environ.get("XDG_CACHE_HOME")):
        return Path(base) / "ortkit"
    try:
        home = Path.home()
    # Without HOME, for a user whom the system does not know, as in containers.
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "ortkit"


def usable_folder(folder: Path) -> Path | None:
    """Make the folder; None where it cannot be written, or others can write it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    others = status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return None if others or not os.access(folder, os.W_OK | os.X_OK) else folder
