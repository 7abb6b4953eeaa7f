"""Output files: check the path first, write atomically, and lock what is being written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .arguments import checked_path
from .errors import OutputError


def bundles_folder() -> Path:
    """The folder where exports go by default and bundles are found by name: `bundles`, or ORTKIT_BUNDLES."""
    return Path(os.environ.get("ORTKIT_BUNDLES") or "bundles")


def target_of(path: str | os.PathLike[str]) -> Path:
    """Resolve an output path's symbolic links, so that replacing the file does not replace a link.

    A device or a pipe stays as it is named. Raises InputError for anything but a path, and OutputError for an empty
    name, a folder, and where no file can be created.
    """
    if path == "":
        raise OutputError("the name of the file to write is empty", hint="name a file")
    named = checked_path(path, "path")
    try:
        mode = _mode_of(named)
        # /dev/stdout resolves to the name of a pipe, which cannot be opened.
        special = mode is not None and not stat.S_ISREG(mode)
        target = Path(os.path.realpath(named)) if named.is_symlink() and not special else named
        target.parent.stat()
    except OSError as error:
        raise OutputError(f"`{path}` cannot be written: {error.strerror or error}") from error
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"`{path}` cannot be written: it is a folder")
    return target


def regular_target_of(path: str | os.PathLike[str], *, hint: str | None = None) -> Path:
    """As `target_of`; raises OutputError for a device or a pipe too."""
    target = target_of(path)
    if is_special(target):
        raise OutputError(f"`{path}` cannot be written: it is not a regular file", hint=hint)
    return target


def is_special(target: Path) -> bool:
    """Whether the target is a device or a pipe, which is written to and not replaced."""
    return target.exists() and not target.is_file()


def _mode_of(path: Path) -> int | None:
    """File type and permissions; None where there is no file."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


@contextmanager
def replacing(target: Path, *, beside: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file beside the target that replaces it at the end of the block, and is removed where the block raises.

    With `beside`, it lies beside another path of the same file system. Partial files of killed processes are removed.
    Raises OSError.
    """
    place = target if beside is None else beside
    remove_abandoned(place)
    partial, file = _new_partial(place)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(error: OSError, path: Path) -> OutputError:
    """The error for a file or folder, with what to do about it."""
    hint = _WAYS_ON.get(error.errno or 0)
    return OutputError(f"`{path}` cannot be written: {error.strerror or error}", hint=hint)


_MAKE_ROOM = "make room, or name a folder on another disk; what was there is unchanged"
_ANOTHER_FOLDER = "name a folder that you can write to"
_WAYS_ON = {
    errno.EFBIG: "FAT32 takes files up to 4 GiB: format the stick as exFAT",
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EROFS: _ANOTHER_FOLDER,
    errno.EACCES: _ANOTHER_FOLDER,
    errno.EPERM: _ANOTHER_FOLDER,
}


def _new_partial(target: Path) -> tuple[Path, BinaryIO]:
    """Create a file beside a target, locked while it is open, so that other processes do not remove it."""
    while True:
        partial = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
        file = partial.open("xb")
        # On a file system without locks, nothing is ever removed.
        try_lock(file)
        # Before it was locked, another process may have removed it as abandoned.
        if partial.exists():
            return partial, file
        file.close()


def remove_abandoned(target: Path) -> None:
    """Remove the partial files beside a target that no process has locked; their PIDs may be reused by now."""
    known = re.compile(rf"\.{re.escape(target.name)}\.\d+\.[0-9a-f]{{8}}\.partial")
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if known.fullmatch(path.name) is None:
            continue
        # One that is a link, in use or another user's stays.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                # Removed while locked: whoever has just made it locks it next, and looks whether it is still there.
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and try_lock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another process has locked a file or folder; raises OSError for a link and for what cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(file: int | BinaryIO, *, wait: bool = False) -> bool:
    """Lock a file or folder until it is closed (flock(2)); False where another process has the lock, unless `wait`.

    Also False on a file system without locks. The file itself is locked, so a killed process leaves no lock file.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lock_holder(descriptor: int) -> str:
    """Which process has locked a file or folder (proc_locks(5)), for messages."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        pid = next(int(line.split()[4]) for line in lines if "FLOCK" in line and place in line.split())
        return f"the process {pid} of the user {Path(f'/proc/{pid}').stat().st_uid}"
    # Not on Linux, released by now, or a process of another PID namespace.
    except (OSError, LookupError, ValueError, StopIteration):
        return "another process"


class NameInBytes:
    """A path as bytes, for libraries that always encode strings in UTF-8."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


def native(path: Path) -> str | NameInBytes:
    """A path for onnxruntime, which encodes strings in UTF-8; file names may be any bytes (PEP 383)."""
    return str(path) if is_utf8(path) else NameInBytes(path)


def is_utf8(path: Path) -> bool:
    """Whether a path's bytes are UTF-8."""
    try:
        return os.fsencode(path) == str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
