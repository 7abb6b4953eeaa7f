"""The work folder of a resumable export: kept beside its target until the export ends, so that a killed one resumes."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from ..runtime.errors import OutputError

KEY, LOCK = "key", "lock"
ENDING = ".unfinished"


def folder_of(target: Path) -> Path:
    return target.parent / f".{target.name}{ENDING}"


@dataclass(frozen=True)
class Left:
    """The work of an export that was broken off and not begun again."""

    target: Path
    folder: Path
    size: int
    """Bytes."""


def left_by_others(target: Path) -> list[Left]:
    """What exports to other targets in the same folder have left, those that run now not counted."""
    found = []
    for folder in sorted(target.parent.glob(f".*{ENDING}")):
        other = target.with_name(folder.name[1:].removesuffix(ENDING))
        if other != target and folder.is_dir() and not is_locked(folder / LOCK):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
            found.append(Left(other, folder, size))
    return found


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock; the file is not created."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


class Unfinished:
    """The folder of an export that may have been begun before; used as a context manager.

    Work is kept when the process is killed or interrupted. It is removed when the export ends, well or with an error,
    and when the next one to the same target is another one.
    """

    def __init__(self, target: Path, key: str, note: Callable[[str], None] | None = None) -> None:
        """`key` tells exports apart: it holds all that decides what is kept; `note` is told of work that is removed."""
        self.target = target
        self.folder = folder_of(target)
        self.key = key
        self.note = note
        self.lock: FileLock | None = None

    def __enter__(self) -> Unfinished:  # noqa: PYI034 - Self came with Python 3.11
        while self.lock is None:
            self.refuse_link()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = self.locked()
        if self.said() != self.key.encode():
            if self.note is not None and any(path.name not in (KEY, LOCK) for path in self.folder.iterdir()):
                self.note(f"what an earlier export left in `{self.folder}` is not for this one, and is removed")
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
            with (self.folder / KEY).open("xb") as file:
                file.write(self.key.encode())
        return self

    def refuse_link(self) -> None:
        """Raise OutputError for something else under the folder's name, such as a link to what would be emptied."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise OutputError(
                f"`{self.folder}` is a link or no folder, and what is done would be kept there",
                hint=f"remove it: `rm {shlex.quote(str(self.folder))}`",
            )

    def said(self) -> bytes | None:
        """The key of what is there; None for one that cannot be read, whose work is removed as that of another is."""
        path = self.folder / KEY
        try:
            return path.read_bytes() if path.is_file() and not path.is_symlink() else None
        except OSError:
            return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        begun = {path.name for path in self.folder.iterdir()} - {KEY, LOCK}
        if kind is None or issubclass(kind, Exception) or not begun:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.note is not None:
            self.note(f"what is done is kept in `{self.folder}`; the same command resumes from there")
        if self.lock is not None:
            self.lock.release()

    def locked(self) -> FileLock | None:
        """The lock, held until it is released or the process ends; None where the folder was removed meanwhile."""
        path = self.folder / LOCK
        # A link or a folder there is none of ours.
        if path.is_symlink() or path.is_dir():
            raise OutputError(
                f"`{path}` is a link or a folder, where a file is locked",
                hint=f"remove what is in the way: `rm -r {shlex.quote(str(self.folder))}`",
            )
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except FileNotFoundError:
            return None
        except Timeout as error:
            if not path.exists():
                return None
            raise OutputError(
                f"`{self.target}` is being written by another process",
                hint="wait for it, or choose another folder with `--out`",
            ) from error
        if not path.exists():
            lock.release()
            return None
        return lock
