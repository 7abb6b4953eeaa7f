"""Which files of a folder are read: patterns, ignore files, sizes."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import InputError, MissingPartError, NotFoundError
from ...runtime.sizes import as_option
from .globs import Globs

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

MAX_FILE_BYTES = 64 << 20
"""Larger files are left out, unless `FolderRules.max_file_bytes` says otherwise."""
_MAX_MANIFEST = 16 << 20
"""Bytes of a `manifest.json` or `index.json` that is looked into."""
_MAX_DEPTH = 100
"""Folders inside of one another: more are a loop that links cannot show, such as a bind mount."""
_MAX_IGNORE_FILE = 1 << 20
_CACHES = frozenset({"__pycache__", "node_modules"})
_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"
"""How the file CACHEDIR.TAG begins (https://bford.info/cachedir/)."""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class FolderRules:
    """Which files of a folder are read."""

    include: tuple[str, ...] = ()
    """Patterns (`globs.py`); a file must match one. Empty: all files."""
    exclude: tuple[str, ...] = ()
    """Patterns; files and folders that match one are left out."""
    max_file_bytes: int = MAX_FILE_BYTES
    hidden: bool = False
    """Whether names that begin with a dot are read, and caches (`__pycache__`, folders with a CACHEDIR.TAG)."""
    ignore_file: str | None = ".ortkitignore"
    """Name of the files with patterns of .gitignore syntax, in any folder; None: none are read."""
    follow_links: bool = False
    """Whether symbolic links that lead out of the folder are followed."""


@dataclass(frozen=True)
class FoundFile:
    """A regular file of a folder."""

    name: str
    """Path relative to the folder, with `/`; bytes that are not UTF-8 as surrogates (`os.fsdecode`)."""
    path: Path
    size: int
    """Bytes."""
    modified_ns: int


@dataclass(frozen=True)
class SkippedFile:
    """A file or folder that is not read, and why."""

    name: str
    reason: str
    """A predicate, such as `is a link out of the folder`."""


def walk(folder: Path, rules: FolderRules) -> Iterator[FoundFile | SkippedFile]:
    """The files of a folder, sorted by name; the names of folders end with `/`.

    Ignored, hidden and excluded files and caches are left out silently; whatever else is not read is a SkippedFile. A
    link to a file in the folder is not read: the file is, under its own name. Raises NotFoundError where there is no
    such folder, InputError for an index, a bundle and patterns that are not valid; and, when it gets there,
    MissingPartError for an ignore file without `pathspec`.
    """
    check_folder(folder)
    try:
        found = sorted(os.scandir(folder), key=_sort_key)
    except OSError as error:
        raise InputError(f"the folder `{folder}` cannot be listed: {error.strerror or error}") from error
    return _Walk(folder, rules).entries(found, "", ())


def check_folder(folder: Path) -> None:
    """Raise NotFoundError where there is no such folder, and InputError for an index or a bundle."""
    if not folder.exists():
        raise NotFoundError(f"there is no folder `{folder}`")
    if not folder.is_dir():
        raise InputError(
            f"`{folder}` is not a folder", hint="give the folder that the file is in, and `--include NAME`"
        )
    own = _own_folder(folder)
    if own is not None:
        raise InputError(f"`{folder}` is {own}, not a folder of documents")


def check_rules(rules: FolderRules) -> None:
    """Raise InputError for patterns that are not valid."""
    _Walk(Path(), rules)


def _sort_key(entry: os.DirEntry[str]) -> str:
    """Folders sort as their files do, so that the names of a walk are sorted as strings."""
    try:
        folder = entry.is_dir()
    except OSError:
        folder = False
    return entry.name + "/" if folder else entry.name


@dataclass(frozen=True)
class _IgnoreFile:
    """The patterns of an ignore file, and the folder that they are relative to."""

    prefix: str
    patterns: GitIgnoreSpec


class _Walk:
    """One walk over a folder."""

    def __init__(self, folder: Path, rules: FolderRules) -> None:
        self.folder = folder
        self.root = os.path.realpath(folder)
        self.rules = rules
        self.include = Globs(rules.include, "include pattern")
        self.exclude = Globs(rules.exclude, "exclude pattern")
        self.linked: set[tuple[int, int]] = set()
        """Device and inode of the folders that links out of this one led to."""
        self.read: set[tuple[int, int]] = set()
        """Those of files, which such links can lead to by several names."""

    def entries(
        self, found: list[os.DirEntry[str]], prefix: str, ignoring: tuple[_IgnoreFile, ...]
    ) -> Iterator[FoundFile | SkippedFile]:
        ignoring = (*ignoring, *self._ignore_file(found, prefix))
        for entry in found:
            name = prefix + entry.name
            if entry.name == self.rules.ignore_file or (entry.name.startswith(".") and not self.rules.hidden):
                continue
            try:
                yield from self._entry(entry, name, ignoring)
            except FileNotFoundError:
                yield SkippedFile(name, "vanished while the folder was read")
            except OSError as error:
                yield SkippedFile(name, f"cannot be read: {error.strerror or error}")

    def _entry(
        self, entry: os.DirEntry[str], name: str, ignoring: tuple[_IgnoreFile, ...]
    ) -> Iterator[FoundFile | SkippedFile]:
        try:
            folder = entry.is_dir()
        except OSError:
            folder = False
        if self._is_left_out(name + "/" if folder else name, ignoring):
            return
        if entry.is_symlink():
            skipped = self._skipped_link(entry, name)
            if skipped is not None:
                if folder or not self.include or self.include.match(name):
                    yield skipped
                return
        if folder:
            yield from self._folder(Path(entry.path), name + "/", ignoring)
        elif not self.include or self.include.match(name):
            yield self._file(entry, name)

    def _is_left_out(self, name: str, ignoring: tuple[_IgnoreFile, ...]) -> bool:
        if self.exclude.match(name):
            return True
        # The last pattern decides, and those of inner folders come last.
        for ignore_file in reversed(ignoring):
            ignored = ignore_file.patterns.check_file(name[len(ignore_file.prefix) :]).include
            if ignored is not None:
                return ignored
        return False

    def _skipped_link(self, entry: os.DirEntry[str], name: str) -> SkippedFile | None:
        """Why a link is not followed; None where it is."""
        try:
            # Not `realpath(strict=True)`, which reports a loop by another error on other systems.
            status = Path(entry.path).stat()
        except FileNotFoundError:
            return SkippedFile(name, "is a link to a file that does not exist")
        except OSError as error:
            return SkippedFile(name, f"is a link that cannot be followed: {error.strerror or error}")
        identity = (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None
        reason = self._reason_not_to_follow(os.path.realpath(entry.path), identity)
        return None if reason is None else SkippedFile(name, reason)

    def _reason_not_to_follow(self, target: str, identity: tuple[int, int] | None) -> str | None:
        if target == self.root:
            return "is a link to the folder itself"
        if target.startswith(self.root.rstrip("/") + "/"):
            return f"is a link to `{os.path.relpath(target, self.root)}`, which is read by that name"
        if not self.rules.follow_links:
            return "is a link out of the folder"
        if self.root.startswith(target.rstrip("/") + "/"):
            return "is a link to a folder that this one is in"
        if identity in self.linked:
            return f"is a link to `{target}`, as an earlier one"
        if identity is not None:
            self.linked.add(identity)
        return None

    def _folder(self, path: Path, name: str, ignoring: tuple[_IgnoreFile, ...]) -> Iterator[FoundFile | SkippedFile]:
        if not self.rules.hidden and _is_cache(path):
            return
        own = _own_folder(path)
        if own is not None:
            yield SkippedFile(name, f"is {own}")
            return
        if name.count("/") > _MAX_DEPTH:
            yield SkippedFile(name, f"is more than {_MAX_DEPTH} folders deep")
            return
        try:
            found = sorted(os.scandir(path), key=_sort_key)
        except OSError as error:
            yield SkippedFile(name, f"cannot be listed: {error.strerror or error}")
            return
        yield from self.entries(found, name, ignoring)

    def _file(self, entry: os.DirEntry[str], name: str) -> FoundFile | SkippedFile:
        status = entry.stat()
        if not stat.S_ISREG(status.st_mode):
            return SkippedFile(name, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'not a regular file')}")
        if self.rules.follow_links and (status.st_dev, status.st_ino) in self.read:
            return SkippedFile(name, "is a file that is read by an earlier name")
        self.read.add((status.st_dev, status.st_ino))
        if status.st_size > self.rules.max_file_bytes:
            return SkippedFile(name, f"is larger than the limit of {as_option(self.rules.max_file_bytes)}")
        return FoundFile(name, self.folder / name, status.st_size, status.st_mtime_ns)

    def _ignore_file(self, found: list[os.DirEntry[str]], prefix: str) -> list[_IgnoreFile]:
        """The patterns of this folder's ignore file, if it has one; raises InputError where it cannot be read."""
        for entry in found:
            if entry.name == self.rules.ignore_file and entry.is_file():
                lines = _ignore_lines(Path(entry.path))
                return [_IgnoreFile(prefix, _ignore_patterns(Path(entry.path), lines))]
        return []


def _ignore_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_IGNORE_FILE + 1)
        if len(content) > _MAX_IGNORE_FILE:
            raise InputError(f"the ignore file `{path}` has more than {as_option(_MAX_IGNORE_FILE)}")
        return content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"the ignore file `{path}` cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the ignore file `{path}` is not valid UTF-8 at byte {error.start + 1}") from error


def _ignore_patterns(path: Path, lines: list[str]) -> GitIgnoreSpec:
    try:
        from pathspec import GitIgnoreSpec
    except ImportError as error:
        raise MissingPartError(
            f"the ignore file `{path}` cannot be followed: the Python package `pathspec` is not installed",
            hint="install the extra `docs`: `pip install 'ortkit[docs]'`; or use `--exclude` and remove the file",
        ) from error
    try:
        # The package tries compiled engines first, whose rules differ in corners, if they happen to be installed.
        return GitIgnoreSpec.from_lines(lines, backend="simple")
    except (ValueError, re.error) as error:
        raise InputError(f"the ignore file `{path}` has a pattern that is not valid: {error}") from error


def _is_cache(path: Path) -> bool:
    """Whether programs keep files here that they can make again: by its name, or the tag that many of them write."""
    if path.name in _CACHES:
        return True
    tag = path / "CACHEDIR.TAG"
    try:
        with os.fdopen(os.open(tag, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            return file.read(len(_CACHE_TAG)) == _CACHE_TAG
    except OSError:
        return False


def _own_folder(path: Path) -> str | None:
    """What a folder is if ortkit made it: `an ortkit index` or `an ortkit bundle`; else None."""
    manifest = _json_object(path / "manifest.json")
    if {"schema", "kind", "files"} <= manifest.keys():
        return "an ortkit bundle"
    return "an ortkit index" if _is_index(path, _json_object(path / "index.json")) else None


def _is_index(path: Path, content: dict[str, Any]) -> bool:
    return "generation" in content and "format" in content and any(path.glob("*.sqlite"))


def _json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) or path.stat().st_size > _MAX_MANIFEST:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
