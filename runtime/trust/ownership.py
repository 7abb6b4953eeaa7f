"""Who can change a bundle, or a file that decides what is trusted: only root and this user may."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import BundleError, InputError, NotTrustedError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40
"""Links on the way to a file, as Linux has it."""
_OVERFLOW, _UID_MAP = Path("/proc/sys/kernel/overflowuid"), Path("/proc/self/uid_map")
"""What the owners of files are in a user namespace that does not have them, and whom it has."""
_ALL_UIDS = ["0", "0", str((1 << 32) - 1)]
"""The content of the latter outside of user namespaces."""


def check_ownership(path: Path, what: str) -> None:
    """Raise InputError where another user than root and this one can change a file, or replace it, as ssh does.

    The folders above it count too, apart from those in which users can only replace their own files (/tmp), and so do
    the links on the way with the folders that they are in. Of a file that is not there, the folders above it count.
    """
    try:
        found = _first_problem(path)
    except OSError as error:
        raise InputError(f"{what} `{path}` cannot be read: {error.strerror or error}") from error
    if found is not None:
        place, problem = found
        raise InputError(
            f"{what} `{path}` is not used, because other users can change it: `{place}` {problem}",
            hint=_remedy(place, problem),
        )


def check_bundle_ownership(folder: Path, names: Iterable[str], why: str) -> None:
    """Raise NotTrustedError where another user can change one of a bundle's files, or replace it, or a folder above.

    They could change what was verified before it is opened. `why` says what forbids that.
    """
    inside = {folder / name for name in names}
    inside |= {parent for path in inside for parent in path.parents if folder in parent.parents}
    try:
        found = _first_problem(folder)
        is_inside = found is not None and found[0] == folder.absolute() and not folder.is_symlink()
        for path in sorted(inside) if found is None else ():
            problem = _problem_of(path.lstat(), is_above=False)
            if problem is not None:
                found, is_inside = (path, problem), True
                break
    except OSError as error:
        raise BundleError(f"`{error.filename or folder}` cannot be read: {error.strerror or error}") from error
    if found is not None:
        place, problem = found
        raise NotTrustedError(
            f"other users can change the bundle `{folder}` after it was verified: `{place}` {problem}, and {why}",
            # Neither command follows a link that it is given with -R.
            hint=_remedy(folder.resolve() if folder.is_symlink() else folder, problem, "-R ")
            if is_inside
            else _remedy(place, problem),
        )


def _first_problem(path: Path) -> tuple[Path, str] | None:
    """The first file, folder or link by which another user can change what a path leads to, and how; raises OSError."""
    for place, status, is_above in _places_of(path):
        problem = _problem_of(status, is_above=is_above)
        if problem is not None:
            return place, problem
    return None


def _remedy(place: Path, problem: str, option: str = "") -> str:
    if "writable" in problem:
        return f"`chmod {option}go-w {place}`, as its owner"
    if _is_unmapped(place):
        return (
            "this process runs in a user namespace that does not have the owner of "
            f"`{place}`: run it outside, or map root into it"
        )
    # Without -h, the owner of what a link leads to is changed.
    return f"`chown {'-h ' if place.is_symlink() else option}root {place}`"


def _is_unmapped(path: Path) -> bool:
    """Whether the owner may be a user that the user namespace of this process does not have."""
    try:
        return path.lstat().st_uid == int(_OVERFLOW.read_text()) and _UID_MAP.read_text().split() != _ALL_UIDS
    # Not Linux, or the file is gone by now.
    except (OSError, ValueError):
        return False


def is_open_to_others(status: os.stat_result) -> bool:
    """Whether another user than root and this one can write to a file; who can replace it is not asked."""
    return _problem_of(status, is_above=False) is not None


def _places_of(path: Path) -> Iterator[tuple[Path, os.stat_result, bool]]:
    """All that decides what a path leads to, from the root on, and whether it is above the file: folders and links."""
    place, left, links = Path("/"), list(reversed(path.absolute().parts[1:])), 0
    yield place, place.stat(), bool(left)
    while left:
        part = left.pop()
        found = place.parent if part == ".." else place / part
        try:
            status = found.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISLNK(status.st_mode):
            yield found, status, bool(left)
            place = found
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        # Who owns it can replace it in a folder such as /tmp.
        yield found, status, True
        target = found.readlink()
        place = Path("/") if target.is_absolute() else place
        left += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _problem_of(status: os.stat_result, *, is_above: bool) -> str | None:
    if status.st_uid not in {0, os.geteuid()}:
        return f"belongs to the user {status.st_uid}"
    # A link's own permissions are never used.
    kept_apart = is_above and (status.st_mode & stat.S_ISVTX or stat.S_ISLNK(status.st_mode))
    if status.st_mode & _OTHERS and not kept_apart:
        return "is writable for its group or for all users"
    return None
