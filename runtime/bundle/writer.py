"""Write a bundle atomically: in a folder beside the target that is renamed at the end."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import InputError
from ..file_hash import sha256_of
from ..output_path import flush_folder
from .bundle import Bundle, is_regular, walk
from .folder import MANIFEST
from .manifest import FileRecord, Manifest
from .manifest_json import manifest_to_json
from .staging import StagingFolder


class FolderWriter:
    """Context manager that writes a folder beside its target; `replace_target` renames it.

    Everything in `staging` is removed at the end of the block. Without `replace_target`, or where the block raises, an
    existing folder at the target stays.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.path = Path(target)
        self.target = self.path.absolute()
        self._staging = StagingFolder(self.target)
        self.staging = self._staging.path
        self.scratch = self.staging / "scratch"
        """For temporary files."""

    def __enter__(self) -> Self:
        self._staging.__enter__()
        self.scratch.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._staging.__exit__(kind, error, traceback)

    def replace_target(self, folder: Path, names: Iterable[str]) -> None:
        """Flush the files of these names in a folder within `staging` to disk, and rename it to the target."""
        for name in [*names, "."]:
            flush_folder(folder / name)
        _move_into_place(folder, self.target)
        flush_folder(self.target.parent)


class BundleWriter(FolderWriter):
    """Context manager that writes a bundle beside its target and renames it.

    The contents of `folder` at `commit` become the bundle. Without `commit`, or where the block raises, everything is
    removed and an existing bundle at the target stays.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        super().__init__(target)
        self.folder = self.staging / "bundle"

    def __enter__(self) -> Self:
        if self.target.is_symlink() or (self.target.exists() and not is_regular(self.target / MANIFEST)):
            raise InputError(
                f"`{self.target}` exists and is not a bundle, so it is not replaced",
                hint="choose another folder with `--out`",
            )
        super().__enter__()
        self.folder.mkdir()
        return self

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash the files, write the manifest, flush all to disk and rename; returns the bundle.

        Raises BundleError for a bundle that cannot be opened, such as one whose manifest has NaN.
        """
        files = {}
        for name in sorted(walk(self.folder)):
            path = self.folder / name
            files[name] = FileRecord(path.stat().st_size, sha256_of(path))
        manifest = dataclasses.replace(manifest, files=files)
        (self.folder / MANIFEST).write_text(manifest_to_json(manifest), encoding="utf-8")
        # Never replace a bundle with one that cannot be opened.
        Bundle.unsigned(self.folder)
        self.replace_target(self.folder, [*files, MANIFEST])
        return Bundle(self.path, manifest)


def _move_into_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`; a folder that was there before ends up at `new`."""
    if not target.exists():
        os.rename(new, target)
    elif not exchange(new, target):
        # Without an atomic exchange there is a moment with no bundle at the target; the old one is beside it then.
        old = new.with_name("replaced")
        try:
            os.rename(target, old)
            os.rename(new, target)
        # Ctrl-C too: the staging folder, which both bundles are in, is removed at the end.
        except BaseException:
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically with Linux's renameat2(2); False where it is not supported."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_fdcwd, rename_exchange = -100, 2
    if libc.renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))
