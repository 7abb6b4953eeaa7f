"""A staging folder beside a target: what is written there is renamed to the target when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from ..output_path import is_locked, try_lock

_STAGING = re.compile(r"\..+\.(?P<pid>[0-9]{1,10})\.[0-9a-f]{8}\.partial")
"""Names of staging folders."""
_LONGEST_UNLOCKED = 3600.0
"""Seconds after which an unlocked staging folder is abandoned, whatever process has its PID."""


class StagingFolder:
    """Context manager that creates a folder beside `target`, and removes it with all that is left in it.

    The target's parents are created, and removed again where nothing came into them. Staging folders that killed
    processes left beside the target are removed.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.absolute()
        self.path = self.target.parent / f".{self.target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
        self.lock: int | None = None
        self._made: list[Path] = []
        """The parents that were created, from the innermost on."""

    def __enter__(self) -> Path:
        try:
            self._make_parents()
            remove_abandoned(self.target.parent)
            try:
                self.path.mkdir()
            except FileNotFoundError:
                # Another process created a parent too, and has removed it again.
                self._make_parents()
                self.path.mkdir()
            # Locked while the process lives, so that no other process removes this folder as abandoned.
            self.lock = os.open(self.path, os.O_RDONLY)
        except BaseException:
            self._remove_empty_parents()
            raise
        try_lock(self.lock, wait=True)
        return self.path

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)
        self._remove_empty_parents()

    def _make_parents(self) -> None:
        parent = self.target.parent
        self._made += [folder for folder in (parent, *parent.parents) if not os.path.lexists(folder)]
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            # What Python makes of a file in the place of the folder.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from error

    def _remove_empty_parents(self) -> None:
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def remove_abandoned(folder: Path) -> None:
    """Remove the staging folders that killed processes left in a folder."""
    for path in folder.glob(".*.partial"):
        found = _STAGING.fullmatch(path.name)
        if found is not None and _is_abandoned(path, int(found["pid"])):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(staging: Path, pid: int) -> bool:
    """Whether no process writes to a staging folder any more.

    A writer holds a lock, but only after it has created the folder, so its process must have ended too. PIDs are
    reused, in containers always the same, so an old unlocked folder is abandoned whatever its PID.
    """
    try:
        old = time.time() - staging.lstat().st_mtime > _LONGEST_UNLOCKED
        return staging.is_dir() and not is_locked(staging) and (old or pid == os.getpid() or not _is_running(pid))
    except OSError:
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
