"""A bundle: the folder that an export leaves and the runtime opens.

Opening checks the manifest, that no file is missing, added, linked or changed, and that no path leaves the folder.
Writing happens in a folder beside the target that is renamed at the end, so that a reader sees the old bundle or the
new one, never half of one.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import glob
import hashlib
import os
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType

from runtime.errors import BundleError, InputError, NotFoundError
from runtime.manifest import FileRecord, Manifest, manifest_from_json, manifest_to_json

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Bundle:
    """A folder that was opened and found whole."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle and check it; raises NotFoundError when it is not there, BundleError when it is not whole."""
        folder = Path(path)
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no bundle at `{folder}`", hint="`edgekit export MODEL` makes one, and names the folder"
            )
        manifest_file = folder / MANIFEST
        if not is_regular(manifest_file):
            raise BundleError(
                f"`{folder}` is no bundle: it holds no `{MANIFEST}`",
                hint=f"if it is a checkpoint, run `edgekit export {folder}`"
                if (folder / "config.json").exists()
                else None,
            )
        try:
            text = manifest_file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"`{MANIFEST}` is no UTF-8 text") from error
        manifest = manifest_from_json(text)
        check_files(folder, manifest.files)
        return cls(folder, manifest)

    def file(self, name: str) -> Path:
        """The path of a file of the bundle; raises BundleError when there is no such file."""
        path = self.path / name
        if not path.exists():
            raise BundleError(f"the bundle `{self.path}` has no `{name}`")
        return path

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(record.size for record in self.manifest.files.values())


def check_files(folder: Path, files: dict[str, FileRecord]) -> None:
    """Compare a folder with the list of its files: names first, then sizes, then hashes."""
    for name in files:
        check_path(name)
    # A new export is the cure for all that follows; the file itself cannot be mended.
    hint = "copy the bundle again from the machine that made it, or export it again"
    found = set(walk(folder)) - {MANIFEST}
    for name in sorted(found - set(files)):
        raise BundleError(
            f"`{folder}` holds `{name}`, which its manifest does not list",
            hint=f"remove `{folder / name}` if it is yours",
        )
    for name in sorted(set(files) - found):
        raise BundleError(f"`{name}` is missing from the bundle `{folder}`", hint=hint)
    for name, record in files.items():
        path = folder / name
        if not is_regular(path):
            raise BundleError(f"`{name}` in the bundle `{folder}` is a link or no regular file", hint=hint)
        size = path.stat().st_size
        if size != record.size:
            raise BundleError(f"`{name}` in the bundle `{folder}` has {size} bytes instead of {record.size}", hint=hint)
    for name, record in files.items():
        found_hash = sha256_of(folder / name)
        if found_hash != record.sha256:
            raise BundleError(
                f"`{name}` in the bundle `{folder}` was changed: its sha256 is {found_hash[:16]}..., "
                f"the manifest says {record.sha256[:16]}...",
                hint=hint,
            )


def check_path(name: str) -> None:
    """Refuse a path that is absolute, leaves the folder or is not written in the plain way."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise BundleError(f"the path `{name}` leaves the folder or is not written plainly")


def walk(folder: Path, prefix: str = "") -> list[str]:
    """Relative paths of everything below a folder that is not itself a folder; links are not followed."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                names += walk(Path(entry.path), f"{name}/")
            else:
                names.append(name)
    return names


def is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class BundleWriter:
    """Builds a bundle beside its target and puts it there in one step.

    Used as a context manager: what is in `folder` when `commit` is called becomes the bundle; without `commit`, or when
    the block raises, nothing is left and an older bundle at the target stays as it was.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.path = Path(target)
        self.target = self.path.absolute()
        self.staging = self.target.parent / f".{self.target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
        self.folder = self.staging / "bundle"
        self.scratch = self.staging / "scratch"
        """For files that the export needs on its way and that are not part of the bundle."""

    def __enter__(self) -> BundleWriter:  # noqa: PYI034 - Self came with Python 3.11
        if self.target.is_symlink() or (self.target.exists() and not is_regular(self.target / MANIFEST)):
            raise InputError(
                f"`{self.target}` exists and is no bundle, so it will not be replaced",
                hint="choose another folder with `--out`",
            )
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.remove_abandoned()
        self.staging.mkdir()
        self.folder.mkdir()
        self.scratch.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash the files, write the manifest, flush all to disk and rename; returns the finished bundle."""
        files = {}
        for name in sorted(walk(self.folder)):
            path = self.folder / name
            files[name] = FileRecord(path.stat().st_size, sha256_of(path))
        manifest = dataclasses.replace(manifest, files=files)
        (self.folder / MANIFEST).write_text(manifest_to_json(manifest), encoding="utf-8")
        for name in [*files, MANIFEST, "."]:
            flush(self.folder / name)
        move_into_place(self.folder, self.target)
        flush(self.target.parent)
        return Bundle(self.path, manifest)

    def remove_abandoned(self) -> None:
        """Remove what an export to the same target left when it was killed."""
        for path in self.target.parent.glob(f".{glob.escape(self.target.name)}.*.*.partial"):
            pid = path.name.split(".")[-3]
            if pid.isdigit() and not is_running(int(pid)):
                shutil.rmtree(path, ignore_errors=True)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flush(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`; a folder that was there before ends up at `new`."""
    if not target.exists():
        os.rename(new, target)
    elif not exchange(new, target):
        # Without an exchange there is an instant with no bundle at the target; the old one is beside it then.
        old = new.with_name("replaced")
        os.rename(target, old)
        os.rename(new, target)


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, by Linux's renameat2(2); False where the system cannot."""
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
