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
from ..runtime.folder_size import bytes_in
from ..runtime.output_path import is_locked

KEY, _LOCK = "key", "lock"
_ENDING = ".unfinished"


def work_folder_of(target: Path) -> Path:
    """The work folder of an export to `target`."""
    return target.parent / f".{target.name}{_ENDING}"


@dataclass(frozen=True)
class InterruptedExport:
    """The work folder of an export that was interrupted and has not been resumed."""

    target: Path
    folder: Path
    size: int
    """Bytes."""


def interrupted_exports(target: Path) -> list[InterruptedExport]:
    """Find interrupted exports to other targets in the same folder, without those that are running."""
    found = []
    for folder in sorted(target.parent.glob(f".*{_ENDING}")):
        other = target.with_name(folder.name[1:].removesuffix(_ENDING))
        if other != target and folder.is_dir() and not _is_locked(folder / _LOCK):
            found.append(InterruptedExport(other, folder, bytes_in(folder)))
    return found


def _is_locked(path: Path) -> bool:
    """Whether another process has locked the file; False where there is none."""
    try:
        return path.is_file() and is_locked(path)
    except OSError:
        return False


class ResumableFolder:
    """Context manager of a work folder, which may hold results of the same export from before it was interrupted.

    The folder outlives a process that is killed or interrupted. It is deleted when the export succeeds or fails, and
    emptied when the next export to the same target is a different one.
    """

    def __init__(self, target: Path, key: str, note: Callable[[str], None] | None = None) -> None:
        """`key` identifies the export; `note` is called with a message where results are deleted or kept."""
        self.target = target
        self.folder = work_folder_of(target)
        self.key = key
        self.note = note
        self.lock: FileLock | None = None

    def __enter__(self) -> ResumableFolder:  # noqa: PYI034 - Self came with Python 3.11
        while self.lock is None:
            self._refuse_link()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = self._acquire()
        if self._read_key() != self.key.encode():
            if self.note is not None and any(path.name not in (KEY, _LOCK) for path in self.folder.iterdir()):
                self.note(f"deleted the results of a different export in `{self.folder}`")
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != _LOCK:
                    path.unlink()
            with (self.folder / KEY).open("xb") as file:
                file.write(self.key.encode())
        return self

    def _refuse_link(self) -> None:
        """Raise OutputError for a link, which could lead to a folder that must not be emptied, and for a file."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise OutputError(
                f"`{self.folder}` is a link or not a folder, where unfinished results would be kept",
                hint=f"remove it: `rm {shlex.quote(str(self.folder))}`",
            )

    def _read_key(self) -> bytes | None:
        """The key of the results in the folder; None where it cannot be read, and the results are deleted."""
        path = self.folder / KEY
        try:
            return path.read_bytes() if path.is_file() and not path.is_symlink() else None
        except OSError:
            return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        begun = {path.name for path in self.folder.iterdir()} - {KEY, _LOCK}
        if kind is None or issubclass(kind, Exception) or not begun:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.note is not None:
            self.note(f"results are kept in `{self.folder}`; the same command resumes from there")
        if self.lock is not None:
            self.lock.release()

    def _acquire(self) -> FileLock | None:
        """The lock, held until it is released or the process ends; None where the folder was removed meanwhile."""
        path = self.folder / _LOCK
        # ortkit creates neither a link nor a folder there.
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
