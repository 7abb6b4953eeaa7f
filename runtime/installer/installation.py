"""An installation: releases side by side in one folder, the link `current` to one of them, and a lock.

    PREFIX/bin/ortkit, ortkit-install   commands that stay the same
    PREFIX/current -> releases/3        the only thing that an update changes
    PREFIX/releases/2, 3                whole releases; `.new-*` and `.old-*` are leftovers of an interrupted run
    PREFIX/keys/*.pem                   keys that kits must be signed with
    PREFIX/state.json                   the highest release of each kit that was installed

A release appears by one rename when it is complete and checked, and `current` is replaced by another, so a process that
is killed at any moment leaves `current` at a whole release.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..bundle.records import read_record
from ..errors import BundleError, InputError, NotFoundError, OrtkitError, OutputError
from ..output_path import flush_folder
from ..trust.ownership import check_ownership
from .environment import COMMANDS, ENVIRONMENT, Environment, is_own_command
from .files import FOLDER_MODE, flush_all, remove_tree, write_text

CURRENT, RELEASES, BIN, KEYS, STATE, LOCK = "current", "releases", "bin", "keys", "state.json", ".lock"
RECORD = "release.json"
BUNDLES = "bundles"
_NEW, _OLD = ".new-", ".old-"


def _lock(descriptor: int, path: Path) -> bool:
    """Lock an open file; False where another process has the lock, or has removed the installation with it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


@dataclass(frozen=True)
class ReleaseRecord:
    """What a release is made of, in its `release.json`."""

    kit: str
    """Name of the kit."""
    digest: str
    """That of the kit."""
    release: int
    """The kit's counter."""
    ortkit: str
    previous: int | None
    """Number of the release that was current before."""
    signer: str | None
    bundles: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name -> relative path of each file -> sha256."""
    wheels: dict[str, str] = field(default_factory=dict)
    """File name -> sha256."""


@dataclass(frozen=True)
class _State:
    """What is in STATE."""

    releases: dict[str, int]


class Installation:
    """A folder with releases."""

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = Path(os.path.abspath(prefix))  # noqa: PTH100 - links stay as they are named
        self.link = self.prefix / CURRENT
        self.releases = self.prefix / RELEASES

    def folder(self, number: int) -> Path:
        return self.releases / str(number)

    def bundles(self, number: int) -> list[Path]:
        """The folders of a release's bundles."""
        return sorted((self.folder(number) / BUNDLES).iterdir())

    def environment(self, number: int) -> Environment:
        return Environment(self.folder(number) / ENVIRONMENT)

    def check_owner(self) -> None:
        """Raise OutputError where root would run, and write to, what another user can change."""
        if os.geteuid() != 0:
            return
        releases = [self.folder(number) for number in self.numbers()]
        try:
            # After the first, those are checked that somebody may have installed before root took the folder over.
            for folder in (self.prefix, self.prefix / BIN, self.prefix / KEYS, self.releases, *releases):
                check_ownership(folder, "the folder")
        except InputError as error:
            raise OutputError(
                error.message, hint="run the installer as that user, or choose another folder with `--prefix`"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folder; raises OutputError where another process has it."""
        self.check_owner()
        path = self.prefix / LOCK
        try:
            # Of this user alone: everybody can lock what they can read, and keep updates away.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutputError(f"`{self.prefix}` cannot be opened: {error.strerror or error}") from error
        try:
            if not _lock(descriptor, path):
                raise OutputError(
                    f"another installer is working in `{self.prefix}`", hint="wait until it has finished, and try again"
                )
            yield
        finally:
            os.close(descriptor)

    def numbers(self) -> list[int]:
        """Numbers of the whole releases, in ascending order."""
        try:
            names = [path.name for path in self.releases.iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isdecimal() and (self.releases / name / RECORD).is_file())

    def current(self) -> int | None:
        """The number of the current release; None where nothing is installed.

        Raises BundleError where `current` is not what the installer made.
        """
        try:
            target = str(self.link.readlink())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BundleError(
                f"`{self.link}` was changed: it is not the link that the installer made",
                hint=f"move it away, then {self._way_back()}",
            ) from error
        folder, _, name = target.rpartition("/")
        if folder == RELEASES and name.isdecimal() and int(name) in self.numbers():
            return int(name)
        raise BundleError(
            f"`{self.link}` was changed: it leads to `{target}`, which is not a whole release of this folder",
            hint=self._way_back(),
        )

    def _way_back(self) -> str:
        numbers = self.numbers()
        if not numbers:
            return f"remove the link, then install a kit: `rm {self.link}`"
        return f"choose a release: `{self.prefix}/bin/ortkit-install rollback --to {numbers[-1]}`"

    def record(self, number: int) -> ReleaseRecord:
        """Raises NotFoundError for a release that is not there, BundleError for a damaged record."""
        path = self.folder(number) / RECORD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            # A later edition of the installer may have written more.
            return read_record(ReleaseRecord, {entry.name: content[entry.name] for entry in fields(ReleaseRecord)})
        except FileNotFoundError as error:
            numbers = ", ".join(map(str, self.numbers())) or "none"
            raise NotFoundError(f"there is no release {number} in `{self.prefix}`; there are: {numbers}") from error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise BundleError(
                f"`{path}` was changed, and cannot be read: {error}",
                hint=f"`rm -r {path.parent}`, then install a kit that leaves nothing out",
            ) from error

    def check_prefix(self) -> None:
        """Raise OutputError where the folder holds something else under the names that the installer uses."""
        foreign = [self.prefix / BIN / name for name in COMMANDS]
        found = next((path for path in foreign if os.path.lexists(path) and not is_own_command(path)), None)
        if found is None and self.releases.exists():
            ours = (_NEW, _OLD)
            names = (path for path in self.releases.iterdir() if not path.name.isdecimal())
            found = next((path for path in names if not path.name.startswith(ours)), None)
        if found is not None:
            raise OutputError(
                f"`{found}` was not made by the installer, so `{self.prefix}` is not used",
                hint="choose another folder with `--prefix`",
            )

    def highest(self, kit: str) -> int:
        """The highest counter of a kit of this name that was installed here; raises BundleError where that is lost."""
        return self._highest_of(kit, self._remembered())

    def _highest_of(self, kit: str, remembered: dict[str, int]) -> int:
        found = [remembered.get(kit, 0)]
        for number in self.numbers():
            with suppress(OrtkitError):
                record = self.record(number)
                found.append(record.release if record.kit == kit else 0)
        return max(found)

    def _remembered(self) -> dict[str, int]:
        """The counters in STATE, by the names of kits; raises BundleError where it is damaged."""
        path = self.prefix / STATE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return dict(read_record(_State, content).releases)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(
                f"`{path}`, which has the highest releases that were installed, was changed and cannot be read: "
                f"{error}",
                hint=f"restore it from a backup; or remove it (`rm {path}`), and a kit that is older than the "
                "releases in `status` is refused, but not one that is older than those before",
            ) from error

    def remember(self, kit: str, release: int) -> None:
        """Keep the counter of a kit that is installed now, also for when its release is removed."""
        remembered = self._remembered()
        highest = max(release, self._highest_of(kit, remembered))
        if remembered.get(kit) != highest:
            releases = dict(sorted({**remembered, kit: highest}.items()))
            write_text(self.prefix / STATE, json.dumps({"releases": releases}) + "\n")

    def prepare(self) -> Path:
        """Make the folder for a new release, in which it is put together."""
        self.releases.mkdir(exist_ok=True, mode=FOLDER_MODE)
        folder = self.releases / f"{_NEW}{secrets.token_hex(4)}"
        folder.mkdir(mode=FOLDER_MODE)
        return folder

    def add(self, prepared: Path, record: ReleaseRecord) -> int:
        """Make a folder that is complete a release; returns its number."""
        text = json.dumps(asdict(record), indent=1, sort_keys=True) + "\n"
        (prepared / RECORD).write_text(text, encoding="utf-8")
        flush_all(prepared)
        number = max(self.numbers(), default=0) + 1
        while self.folder(number).exists():
            number += 1
        os.rename(prepared, self.folder(number))
        flush_folder(self.releases)
        return number

    def switch(self, number: int) -> None:
        """Have `current` lead to a release, by one rename."""
        new = self.prefix / f".{CURRENT}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(Path(RELEASES) / str(number))
        try:
            os.replace(new, self.link)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise BundleError(
                f"`{self.link}` was changed: it is not the link that the installer made ({error.strerror})",
                hint=f"move it away, then {self._way_back()}",
            ) from error
        flush_folder(self.prefix)

    def remove(self, number: int) -> None:
        """Remove a release; it is not one any more before its first file goes."""
        old = self.releases / f"{_OLD}{number}-{secrets.token_hex(4)}"
        os.rename(self.folder(number), old)
        flush_folder(self.releases)
        remove_tree(old)

    def keep(self, *kept: int | None) -> None:
        """Remove all other releases."""
        for number in self.numbers():
            if number not in kept:
                self.remove(number)

    def remove_leftovers(self) -> list[str]:
        """Remove what interrupted runs left; returns the names."""
        leftovers = [self.prefix / f".{CURRENT}.new"]
        leftovers += [self.prefix / BIN / f".{name}.new" for name in COMMANDS]
        leftovers.append(self.prefix / f".{STATE}.new")
        if self.releases.is_dir():
            leftovers += [path for path in self.releases.iterdir() if path.name.startswith((_NEW, _OLD))]
        found = [path for path in leftovers if os.path.lexists(path)]
        for path in found:
            remove_tree(path)
        return [path.name for path in found]

    def uninstall(self) -> list[str]:
        """Remove everything that the installer made, `current` first; returns the names of what others left."""
        if self.link.is_symlink():
            self.link.unlink()
            flush_folder(self.prefix)
        self.remove_leftovers()
        self.keep()
        for name in COMMANDS:
            path = self.prefix / BIN / name
            if is_own_command(path):
                path.unlink()
        for path in sorted((self.prefix / KEYS).glob("*.pem")):
            path.unlink()
        for name in (STATE, LOCK):
            # A folder in the place of one is somebody else's.
            with suppress(FileNotFoundError, IsADirectoryError):
                (self.prefix / name).unlink()
        for name in (RELEASES, KEYS, BIN):
            with suppress(OSError):
                (self.prefix / name).rmdir()
        left = sorted(path.name for path in self.prefix.iterdir())
        if not left:
            with suppress(OSError):
                self.prefix.rmdir()
        return left
