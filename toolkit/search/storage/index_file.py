"""`index.json`: which files are the newest generation of an index, and what it was built from.

It is replaced by one rename, so a reader sees the old generation or the new one. All other files are written once.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote_to_bytes

from ....runtime.bundle.records import WITHIN, RecordError, read_record, write_record
from ....runtime.errors import BundleError, NotFoundError
from ....runtime.output_path import flush_folder, replacing
from ....runtime.strict_json import unique_keys
from ..chunks import ChunkSettings
from ..folder import FolderRules

INDEX_FILE = "index.json"
LOCK_FILE = ".lock"
FORMAT = 1
"""Version of the format on disk."""
BUILD_AGAIN = "build it again: `ortkit index FOLDER --bundle BUNDLE -o INDEX --restart`"
_LARGEST = 1 << 20
"""Bytes of `index.json`."""
_NAME = re.compile(r"(?:texts-\d{1,9}\.sqlite|(?:vectors|int8|scales|rows)-\d{1,9}\.npy)")
_OWN = re.compile(rf"{_NAME.pattern}|texts-\d{{1,9}}\.sqlite(?:\.new|-journal)")
_COUNT = {WITHIN: range(1 << 53)}
_NUMBER = {WITHIN: range(1_000_000_000)}


def texts_name(generation: int) -> str:
    """Texts and full-text index."""
    return f"texts-{generation}.sqlite"


def rows_name(generation: int) -> str:
    """Chunk and file of each row of the vectors."""
    return f"rows-{generation}.npy"


@dataclass(frozen=True)
class SegmentRecord:
    """Vectors that were written together."""

    number: int = field(metadata=_NUMBER)
    rows: int = field(metadata=_COUNT)
    int8: bool = False
    """Whether there is an int8 copy."""

    @property
    def vectors(self) -> str:
        return f"vectors-{self.number}.npy"

    @property
    def copy(self) -> str:
        """Name of the int8 copy."""
        return f"int8-{self.number}.npy"

    @property
    def scales(self) -> str:
        """Name of the scales of the int8 copy's rows."""
        return f"scales-{self.number}.npy"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.vectors, self.copy, self.scales) if self.int8 else (self.vectors,)


@dataclass(frozen=True)
class BundleRecord:
    """The embedder's bundle."""

    name: str
    digest: str
    path: str
    """Where it was, as a file URI: a path can have bytes that are not UTF-8."""
    dimension: int = field(metadata={WITHIN: range(1, 1 << 20)})


@dataclass(frozen=True)
class Origin:
    """What an index is built from; vectors and chunks of other origins cannot be mixed."""

    bundle: BundleRecord
    chunking: ChunkSettings
    folder: str
    """As a file URI."""

    @property
    def folder_path(self) -> Path:
        return path_of(self.folder)


@dataclass(frozen=True)
class IndexFile:
    """The content of `index.json`."""

    generation: int = field(metadata=_NUMBER)
    built: str
    """ISO 8601, UTC."""
    origin: Origin
    rules: FolderRules
    """Which files of the folder are read; an update may change them."""
    files: int = field(metadata=_COUNT)
    chunks: int = field(metadata=_COUNT)
    segments: tuple[SegmentRecord, ...]
    sizes: dict[str, int]
    """Bytes of each file of this generation."""
    format: int = FORMAT

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def names(self) -> tuple[str, ...]:
        own = (texts_name(self.generation), rows_name(self.generation))
        return (*own, *(name for segment in self.segments for name in segment.names))


def uri_of(path: Path) -> str:
    """The file URI of an absolute path of any bytes."""
    return path.as_uri()


def path_of(uri: str) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))


def read_index_file(folder: Path) -> IndexFile:
    """Read and check `index.json`.

    Raises NotFoundError where there is no index, and BundleError for one that is not valid or of another format.
    """
    path = folder / INDEX_FILE
    try:
        # Without waiting for whoever writes to a named pipe of that name.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            content = file.read(_LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"there is no index at `{folder}`", hint="build one: `ortkit index FOLDER --bundle BUNDLE -o INDEX`"
        ) from error
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST:
        raise BundleError(f"`{path}` has more than {_LARGEST} bytes", hint=BUILD_AGAIN)
    try:
        value = json.loads(content, object_pairs_hook=unique_keys)
        _check_format(folder, value)
        found = read_record(IndexFile, value)
        _check_names(found)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"`{path}` is not valid: {error}", hint=BUILD_AGAIN) from error
    return found


def _check_format(folder: Path, value: object) -> None:
    known = value.get("format") if isinstance(value, dict) else None
    if type(known) is not int:
        raise RecordError("format", "must be an integer")
    if known > FORMAT:
        raise BundleError(
            f"the index `{folder}` has format {known}, of a newer ortkit; this one reads format {FORMAT}",
            hint=f"install a newer ortkit, or {BUILD_AGAIN}",
        )
    if known < FORMAT:
        raise BundleError(
            f"the index `{folder}` has format {known}, of an older ortkit; this one reads format {FORMAT}",
            hint=BUILD_AGAIN,
        )


def _check_names(index: IndexFile) -> None:
    """Refuse names that are not those of an index's files, such as paths, and segments that are named twice."""
    for name, size in index.sizes.items():
        if _NAME.fullmatch(name) is None or size < 0:
            raise RecordError("sizes", f"names `{name}`, which is not a file of an index")
    if sorted(index.names) != sorted(index.sizes):
        raise RecordError("sizes", "does not name the files of this generation")
    try:
        datetime.fromisoformat(index.built)
    except ValueError as error:
        raise RecordError("built", f"is not a time: {error}") from error
    for uri in (index.origin.folder, index.origin.bundle.path):
        if not uri.startswith("file:///"):
            raise RecordError("origin", f"has `{uri}`, which is not a file URI")


def check_sizes(folder: Path, index: IndexFile) -> None:
    """Raise BundleError where a file of this generation is cut or longer; FileNotFoundError where it is missing."""
    for name, size in index.sizes.items():
        check_size(folder / name, (folder / name).stat(), size)


def check_size(path: Path, status: os.stat_result, size: int) -> None:
    """Raise BundleError for a file of an index that is cut or longer, or is not a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"`{path}` is not a regular file: the index is damaged", hint=BUILD_AGAIN)
    if status.st_size != size:
        raise BundleError(
            f"`{path}` has {status.st_size} bytes instead of {size}: the index is damaged", hint=BUILD_AGAIN
        )


def missing(folder: Path, error: FileNotFoundError) -> BundleError:
    """The error for a file of a generation that is not there."""
    return BundleError(f"`{error.filename or folder}` is missing from the index `{folder}`", hint=BUILD_AGAIN)


def write_index_file(folder: Path, index: IndexFile) -> None:
    """Publish a generation, whose other files are on disk; raises OSError."""
    flush_folder(folder)
    with replacing(folder / INDEX_FILE) as file:
        file.write(json.dumps(write_record(index), indent=1).encode())
    flush_folder(folder)


def remove_others(folder: Path, keep: Iterable[str]) -> None:
    """Remove files of older generations and of interrupted runs; files that are not an index's stay."""
    kept = set(keep)
    for path in folder.iterdir():
        if path.name not in kept and _OWN.fullmatch(path.name) is not None:
            path.unlink(missing_ok=True)


def is_own(name: str) -> bool:
    """Whether a name is that of an index's file, or of a run that was interrupted."""
    return _OWN.fullmatch(name) is not None or name in {INDEX_FILE, LOCK_FILE} or name.startswith(f".{INDEX_FILE}.")
