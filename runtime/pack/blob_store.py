"""The files of an OCI image layout, in a tar or in a folder, and copying them with their hashes.

Standard library only: the installer of a kit runs this.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path
from typing import NoReturn, Protocol

from ..errors import BundleError, NotFoundError
from .strict_tar import Entry, TarError, read_entries

INDEX = "index.json"
MARKER = "oci-layout"
"""The file that makes a folder an OCI image layout."""
BLOBS = "blobs/sha256"
MOST_FILES = 10_000
"""Files in a layout."""
NEW_COPY = "copy it again from where it was made, and compare their sha256"
"""The hint for a damaged pack."""
_BLOB_FILE = re.compile(r"blobs/sha256/[0-9a-f]{64}")
_FOLDERS = ("", "blobs", BLOBS)
_PACKS = (".tar", ".kit")
"""Suffixes of the files that a hint lists."""
_LISTED = 5
_COPIED = 1 << 20
"""Bytes to copy or hash at a time."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

Progress = Callable[[int], None]
"""Called with the number of bytes that were copied or hashed since the last call."""
Range = tuple[int, int, int]
"""A descriptor, and the offset and the size of a file behind it."""


class Store(Protocol):
    """Where the files of a layout are."""

    def size_of(self, name: str) -> int | None:
        """Bytes of a file; None where it is missing."""

    def blobs(self) -> set[str]:
        """The names of the blobs that the index must list."""

    def opened(self, name: str) -> AbstractContextManager[Range]:
        """Open a file; raises FileNotFoundError."""

    def close(self) -> None: ...


class TarStore:
    """A tar, from an offset of a file to its end."""

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        self.file = opened_file(path)
        try:
            self.entries = self._scan(offset)
        except BaseException:
            self.file.close()
            raise

    def _scan(self, offset: int) -> dict[str, tuple[int, int]]:
        """Name -> offset and size; raises BundleError for any file that is not part of a layout."""
        end = os.fstat(self.file.fileno()).st_size
        begin = os.pread(self.file.fileno(), 4, offset)
        if begin[:2] == _GZIP or begin == _ZSTD:
            raise BundleError(f"`{self.path}` is compressed", hint="decompress it first, with `gunzip` or `unzstd`")
        entries: dict[str, tuple[int, int]] = {}
        try:
            # As many folders and pax headers as files.
            for entry in read_entries(self.file.fileno(), offset, end, most=3 * MOST_FILES):
                name = _name_of(entry)
                if name in entries:
                    self._refuse(f"it contains `{name}` twice")
                if len(entries) >= MOST_FILES:
                    self._refuse(f"it has more than {MOST_FILES} files")
                if not entry.is_folder:
                    entries[name] = (entry.start, entry.size)
        except TarError as error:
            # A kit was recognized by its beginning.
            if not entries and not offset:
                hint = "`ortkit pack BUNDLE... -o FILE` makes one"
                raise BundleError(f"`{self.path}` is not a pack: {error}", hint=hint) from error
            self._refuse(f"{error}")
        except OSError as error:
            raise BundleError(f"`{self.path}` cannot be read: {error.strerror or error}") from error
        return entries

    def _refuse(self, problem: str) -> NoReturn:
        raise BundleError(f"the pack `{self.path}` is not valid: {problem}", hint=NEW_COPY)

    def size_of(self, name: str) -> int | None:
        found = self.entries.get(name)
        return None if found is None else found[1]

    def blobs(self) -> set[str]:
        return {name for name in self.entries if name.startswith(BLOBS)}

    @contextmanager
    def opened(self, name: str) -> Iterator[Range]:
        if name not in self.entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        start, size = self.entries[name]
        yield self.file.fileno(), start, size

    def close(self) -> None:
        self.file.close()


def _name_of(entry: Entry) -> str:
    """The name of an entry, or TarError for a file or folder that is not part of a layout."""
    # As `tar -C FOLDER .` has it.
    name = entry.name.removeprefix("./")
    if entry.is_folder:
        name = name.rstrip("/").removeprefix(".")
    if name in _FOLDERS if entry.is_folder else name in (INDEX, MARKER) or _BLOB_FILE.fullmatch(name):
        return name
    raise TarError(f"it contains `{entry.name}`, which is not part of a pack")


class FolderStore:
    """A folder. Files that its index does not list are ignored: systems leave their own on a stick."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / MARKER).exists():
            hint = "`ortkit pack BUNDLE... -o FOLDER --folder` makes one"
            raise BundleError(f"`{path}` is not a pack: it has no `{MARKER}`", hint=hint)

    def size_of(self, name: str) -> int | None:
        path = self.path / name
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"`{path}` in a pack is a link or not a regular file")
        return status.st_size

    def blobs(self) -> set[str]:
        return set()

    @contextmanager
    def opened(self, name: str) -> Iterator[Range]:
        with opened_file(self.path / name) as file:
            yield file.fileno(), 0, os.fstat(file.fileno()).st_size

    def close(self) -> None: ...


def not_found(path: Path, what: str) -> NotFoundError:
    """The error for a pack or kit (`what`) that is not there; the hint lists those in its folder."""
    folder = path.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _PACKS)
    except OSError:
        return NotFoundError(f"there is no {what} at `{path}`", hint=f"there is no folder `{folder}`")
    if names:
        listed = ", ".join(f"`{name}`" for name in names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        hint = f"`{folder.absolute()}` has {listed}"
    else:
        hint = f"`{folder.absolute()}` has no file that ends with {' or '.join(_PACKS)}; `ortkit {what}` writes one"
    return NotFoundError(f"there is no {what} at `{path}`", hint=hint)


def opened_file(path: Path) -> FileIO:
    """Open a regular file; raises FileNotFoundError, and BundleError for anything else."""
    try:
        # Without waiting for a pipe.
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BundleError(f"`{path}` is not a regular file")
    return file


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """Create a read-only file and open it for writing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def copy_range(found: Range, path: Path, out: int | None, progress: Progress | None) -> str:
    """Hash a range of a file and copy it to `out`; returns the sha256 of what is there, which may be less.

    Raises BundleError where the file, which is named `path`, cannot be read, and OSError where `out` cannot be written.
    """
    source, start, size = found
    digest = hashlib.sha256()
    block = memoryview(bytearray(min(_COPIED, max(size, 1))))
    end = start + size
    while start < end:
        try:
            count = os.preadv(source, [block[: min(_COPIED, end - start)]], start)
        except OSError as error:
            # A worn stick, for example.
            raise BundleError(f"`{path}` cannot be read: {error.strerror or error}", hint=NEW_COPY) from error
        if count == 0:
            break
        digest.update(block[:count])
        if out is not None:
            write_all(out, block[:count])
        start += count
        if progress is not None:
            progress(count)
    return digest.hexdigest()


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write everything: `os.write` may write a part."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
