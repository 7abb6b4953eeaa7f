"""A bundle: the folder that an export leaves and the runtime opens.

Opening checks the manifest, that no file is missing, added, linked or changed, and that no path leaves the folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runtime.errors import BundleError, NotFoundError
from runtime.manifest import FileRecord, Manifest, manifest_from_json

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
GRAPH_DATA = f"{GRAPH}.data"
"""The weights of decoders, and of others where a graph's own file cannot hold them; the graph says where each lies."""
TOKENIZER = "tokenizer.json"
HASHED = 1 << 20
"""Bytes that are hashed at once. The C library keeps more memory for itself once it has seen larger arrays go."""
LARGEST_MANIFEST = 1 << 20
"""Bytes. The largest part is golden vectors, of 4,096 numbers not 400 KB."""
LARGEST = {GRAPH: (1 << 31) - 1, TOKENIZER: 1 << 26}
"""Bytes of files that a library reads at once: protobuf's own limit, and twice the largest tokenizer published."""
LARGEST_BUNDLE = 1 << 38
"""Bytes of all files, which are read to be hashed."""
DEPTH = 8
"""Folders within one another."""
MOST_FILES = 10_000
"""Of them a manifest of that size could list no more."""
NEW_COPY = "copy the bundle again from the machine that made it, or export it again"
"""A new export is the cure for a file that is not as it was: it cannot be mended."""


@dataclass(frozen=True)
class Bundle:
    """A folder that was opened and found whole."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle and check it; raises NotFoundError when it is not there, BundleError when it is not whole."""
        bundle = cls.listed(path)
        bundle.check_hashes(bundle.manifest.files)
        return bundle

    @classmethod
    def listed(cls, path: str | os.PathLike[str]) -> Bundle:
        """A bundle whose files are those of its manifest, of their sizes; nothing is to come of it before their hashes.

        Raises NotFoundError when it is not there, BundleError when its files are others.
        """
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
        manifest = manifest_from_json(read_manifest(manifest_file))
        check_names(folder, manifest.files)
        for layer in manifest.embedder.dense if manifest.embedder is not None else ():
            if layer.file not in manifest.files:
                raise BundleError(
                    f"the manifest of `{folder}` names a dense layer `{layer.file}` that is none of its files"
                )
        return cls(folder, manifest)

    def check_hashes(self, names: Iterable[str]) -> None:
        """Raise BundleError for the first of these files that was changed."""
        for name in names:
            expected = self.manifest.files[name].sha256
            found = sha256_of(self.path / name)
            if found != expected:
                raise BundleError(
                    f"`{name}` in the bundle `{self.path}` was changed: its sha256 is {found[:16]}..., "
                    f"the manifest says {expected[:16]}...",
                    hint=NEW_COPY,
                )

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


def read_manifest(path: Path) -> str:
    """The text of a manifest, of which no more is read than one may have."""
    try:
        # What is no file was refused; if it became one meanwhile, it is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(LARGEST_MANIFEST + 1)
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST_MANIFEST:
        raise BundleError(f"`{path}` has more than {LARGEST_MANIFEST} bytes, which no manifest has")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"`{MANIFEST}` is no UTF-8 text") from error


def check_names(folder: Path, files: dict[str, FileRecord]) -> None:
    """Compare a folder with the list of its files: names first, then sizes."""
    for name in files:
        check_path(name)
    check_spelling(files)
    check_sizes(folder, files)
    found = set(walk(folder)) - {MANIFEST}
    for name in sorted(found - set(files)):
        raise BundleError(
            f"`{folder}` holds `{name}`, which its manifest does not list",
            hint=f"remove `{folder / name}` if it is yours",
        )
    for name in sorted(set(files) - found):
        raise BundleError(f"`{name}` is missing from the bundle `{folder}`", hint=NEW_COPY)
    for name, record in files.items():
        path = folder / name
        if not is_regular(path):
            raise BundleError(f"`{name}` in the bundle `{folder}` is a link or no regular file", hint=NEW_COPY)
        size = path.stat().st_size
        if size != record.size:
            raise BundleError(
                f"`{name}` in the bundle `{folder}` has {size} bytes instead of {record.size}", hint=NEW_COPY
            )


def check_path(name: str) -> None:
    """Refuse a path that is absolute, leaves the folder or is not written in the plain way."""
    parts = PurePosixPath(name).parts
    plain = name == "/".join(parts) and name.isprintable() and len(parts) <= DEPTH
    if not parts or not plain or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise BundleError(f"the path `{name}` leaves the folder or is not written plainly")


def check_spelling(files: Iterable[str]) -> None:
    """Refuse names that are one file where case or the form of accents does not count, as on macOS."""
    known: dict[str, str] = {}
    for name in (*files, MANIFEST):
        other = known.setdefault(unicodedata.normalize("NFC", name.casefold()), name)
        if other != name:
            raise BundleError(f"the manifest lists `{other}` and `{name}`, which are the same file on some systems")


def check_sizes(folder: Path, files: dict[str, FileRecord]) -> None:
    """Refuse what would be read for hours, or takes all memory, before anything of it is read."""
    for name, record in files.items():
        most = LARGEST.get(name, LARGEST_BUNDLE)
        if not 0 <= record.size <= most:
            raise BundleError(f"`{name}` in the bundle `{folder}` has {record.size} bytes, and {most} are allowed")
    total = sum(record.size for record in files.values())
    if total > LARGEST_BUNDLE:
        raise BundleError(f"the files of `{folder}` have {total} bytes, and {LARGEST_BUNDLE} are allowed")


def walk(folder: Path) -> Iterator[str]:
    """Relative paths of everything below a folder that is not itself a folder; links are not followed.

    Raises BundleError where folders nest deeper, or hold more, than those of a bundle.
    """
    pending = [""]
    count = 0
    while pending:
        prefix = pending.pop()
        if prefix.count("/") > DEPTH:
            raise BundleError(f"the folders in `{folder}` are more than {DEPTH} deep")
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    count += 1
                    if count > MOST_FILES:
                        raise BundleError(f"`{folder}` holds more than {MOST_FILES} files, and is no bundle")
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{prefix}{entry.name}/")
                    else:
                        yield f"{prefix}{entry.name}"
        except OSError as error:
            raise BundleError(f"`{folder / prefix}` cannot be read: {error.strerror or error}") from error


def is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    block = bytearray(HASHED)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()
