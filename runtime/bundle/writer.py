"""Write a bundle atomically: in a folder beside the target that is renamed at the end."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
from pathlib import Path
from types import TracebackType

from ..errors import InputError
from .blob_store import flush
from .bundle import Bundle, is_regular, sha256_of, walk
from .folder import MANIFEST
from .manifest import FileRecord, Manifest, manifest_to_json
from .staging import StagingFolder


class BundleWriter:
    """Context manager that writes a bundle beside its target and renames it.

    The contents of `folder` at `commit` become the bundle. Without `commit`, or where the block raises, everything is
    removed and an existing bundle at the target stays.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.path = Path(target)
        self.target = self.path.absolute()
        self._staging = StagingFolder(self.target)
        self.staging = self._staging.path
        self.folder = self.staging / "bundle"
        self.scratch = self.staging / "scratch"
        """For temporary files of the export."""

    def __enter__(self) -> BundleWriter:  # noqa: PYI034 - Self came with Python 3.11
        if self.target.is_symlink() or (self.target.exists() and not is_regular(self.target / MANIFEST)):
            raise InputError(
                f"`{self.target}` exists and is not a bundle, so it is not replaced",
                hint="choose another folder with `--out`",
            )
        self._staging.__enter__()
        self.folder.mkdir()
        self.scratch.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._staging.__exit__(kind, error, traceback)

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
        for name in [*files, MANIFEST, "."]:
            flush(self.folder / name)
        _move_into_place(self.folder, self.target)
        flush(self.target.parent)
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
