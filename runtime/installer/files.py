"""Files of an installation: copied with their hashes checked, shared between releases by hard links, flushed."""

from __future__ import annotations

import ctypes
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..errors import BundleError
from ..file_hash import hash_of, sha256_of
from ..output_path import flush_folder
from ..trust.ownership import is_open_to_others

FILE_MODE, FOLDER_MODE = 0o444, 0o755
"""Nobody writes into a file that two releases may share."""
_COPIED = 1 << 20
"""Bytes to copy at a time."""


def share(source: Path, target: Path, sha256: str) -> bool:
    """Give an earlier release's file a second name, or copy it, if it still has this hash; False where it has not."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if hash_of(file) != sha256:
            return False
        # Not everywhere: FAT has no links, and a file of another user may not be linked.
        with suppress(OSError):
            os.link(source, target, follow_symlinks=False)
            linked = target.lstat()
            # What another user can write to is copied.
            if os.path.samestat(os.fstat(file.fileno()), linked) and not is_open_to_others(linked):
                return True
            target.unlink()
        file.seek(0)
        with target.open("xb") as copy:
            shutil.copyfileobj(file, copy, _COPIED)
    if sha256_of(target) != sha256:
        raise BundleError(f"`{source}` changed while it was copied", hint="run the installer again")
    target.chmod(FILE_MODE)
    return True


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a small file atomically: a file beside it is flushed and renamed."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with partial.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.chmod(mode)
    os.replace(partial, path)
    flush_folder(path.parent)


def flush_all(folder: Path) -> None:
    """Flush a folder's file system to disk, which for thousands of files is faster than one by one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None).syncfs(descriptor) == 0:
            return
    except (AttributeError, OSError):
        pass
    finally:
        os.close(descriptor)
    os.sync()


def remove_tree(path: Path) -> None:
    """Remove a folder or what else is there; folders that somebody made read-only too."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(path)
