"""What ortkit keeps on this machine beside bundles: where it is, how large, and what it is deleted with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..cache_folder import cache_folder, downloads_folder
from ..errors import OutputError
from ..folder_size import bytes_in
from ..output_path import bundles_folder
from .model_cache import CHECKED, COMPILED

_CHECKPOINTS = "checkpoints"
"""The folder that `exporters/checkpoint/wheel.py` downloads to."""
_UNFINISHED = ".*.unfinished"
"""Folders of interrupted exports, beside the bundles (`exporters/workdir.py`)."""


@dataclass(frozen=True)
class Cached:
    """One kind of what is kept."""

    name: str
    what: str
    """For people."""
    folder: Path
    entries: tuple[Path, ...]
    """Files or folders of a bundle each, or of a checkpoint."""
    size: int
    """Bytes."""


def model_caches() -> list[Cached]:
    """What is made again at the next start of a model; empty where nothing is kept."""
    root = cache_folder()
    if root is None:
        return []
    return [
        _cached(COMPILED, "models that CoreML compiled", root / COMPILED),
        _cached(CHECKED, "records of golden texts that were compared on this machine", root / CHECKED),
    ]


def downloads() -> list[Cached]:
    """Checkpoints that came in Python packages; the next export would download them again."""
    root = downloads_folder()
    return [] if root is None else [_cached(_CHECKPOINTS, "downloaded checkpoints", root / _CHECKPOINTS)]


def unfinished_exports() -> Cached:
    """Results of interrupted exports to the bundles' folder, from which the same command resumes."""
    folder = bundles_folder()
    return _measured("unfinished", "interrupted exports, which the same command resumes", folder, _UNFINISHED)


def delete(cached: Cached) -> None:
    """Delete what is kept; raises OutputError. A link is removed, and what it points to stays."""
    for entry in cached.entries:
        try:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"`{error.filename or entry}` cannot be deleted: {error.strerror or error}",
                hint="close what uses it, or delete it as the user who owns it",
            ) from error


def _cached(name: str, what: str, folder: Path) -> Cached:
    return _measured(name, what, folder, "*")


def _measured(name: str, what: str, folder: Path, pattern: str) -> Cached:
    try:
        entries = tuple(sorted(folder.glob(pattern)))
    except OSError:
        entries = ()
    return Cached(name, what, folder, entries, sum(map(_size_of, entries)))


def _size_of(entry: Path) -> int:
    """Bytes of a file, or of the files in a folder; links are not followed."""
    if entry.is_dir() and not entry.is_symlink():
        return bytes_in(entry)
    try:
        return entry.lstat().st_size
    except OSError:
        return 0
