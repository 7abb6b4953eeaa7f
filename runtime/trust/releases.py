"""The highest release of each bundle that this machine has trusted, so that an older one cannot replace it unseen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, NotTrustedError, OutputError
from ..output_path import replacing, try_lock
from .ownership import check_ownership

_LARGEST_FILE = 1 << 20
_MOST_NAMES = 10_000
_KEY = "releases"
_WHAT = "the record of trusted releases"
_MODE = 0o644
"""Everyone who opens bundles reads it, whatever the umask of who writes it."""


def counter_of(name: str, precision: str, provider: str) -> str:
    """The name under which the releases of a bundle are counted, from its manifest.

    Bundles of one model for another precision or provider have the same name in their manifests, and counters of
    their own: which number each has says nothing about the others.
    """
    return f"{name} ({precision}, {provider})"


@dataclass(frozen=True)
class Releases:
    """A file with the highest trusted release of each counter (`counter_of`); a bundle without one counts as 0."""

    path: Path

    def highest(self, name: str) -> int:
        """The highest release that was recorded; 0 where there is none."""
        return self._read().get(name, 0)

    def check(self, name: str, release: int | None) -> None:
        """Raise NotTrustedError for a release that is older than a recorded one."""
        _check(name, release, self.highest(name))

    def record(self, name: str, release: int | None, *, allow_downgrade: bool = False) -> None:
        """Record a release that is trusted, where it is another than the highest.

        Raises NotTrustedError for an older one, unless `allow_downgrade`, and OutputError where the file cannot be
        written; a release that is recorded already needs no writing.
        """
        number = release or 0
        if number == self.highest(name):
            return
        try:
            with self._locked():
                known = self._read()
                if not allow_downgrade:
                    _check(name, release, known.get(name, 0))
                known[name] = number
                content = json.dumps({_KEY: dict(sorted(known.items()))}, indent=2, ensure_ascii=False)
                with replacing(self.path) as file:
                    os.fchmod(file.fileno(), _MODE)
                    file.write(f"{content}\n".encode())
        except OSError as error:
            # NotTrustedError is not an OSError.
            raise OutputError(
                f"release {number} of `{name}` cannot be recorded in `{self.path}`: {error.strerror or error}",
                hint="run `ortkit verify BUNDLE` once as a user who can write this file, or name another one as "
                "`state` in the policy",
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock beside the file; the file itself is replaced."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try_lock(lock, wait=True)
            yield
        finally:
            os.close(lock)

    def _read(self) -> dict[str, int]:
        """The recorded releases; raises InputError for a file that is damaged or that others can write."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_LARGEST_FILE + 1)
        except FileNotFoundError:
            # Whoever can remove the file could have older releases accepted.
            check_ownership(self.path, _WHAT)
            return {}
        except OSError as error:
            raise InputError(f"`{self.path}` cannot be read: {error.strerror or error}", hint=_READABLE) from error
        check_ownership(self.path, _WHAT)
        known = _parsed(content)
        if known is None:
            raise InputError(
                f"`{self.path}` is not a record of trusted releases",
                hint="restore it from a backup; without it, older releases are accepted again",
            )
        return known


_READABLE = "it must be readable by everyone who opens bundles: `chmod 644`"


def _parsed(content: bytes) -> dict[str, int] | None:
    """The releases in a record; None for one that is damaged."""
    try:
        found = json.loads(content.decode("utf-8"))[_KEY] if len(content) <= _LARGEST_FILE else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(found, dict) or len(found) > _MOST_NAMES:
        return None
    return found if all(type(release) is int and release >= 0 for release in found.values()) else None


def _check(name: str, release: int | None, highest: int) -> None:
    if (release or 0) >= highest:
        return
    this = f"release {release}" if release is not None else "no release"
    raise NotTrustedError(
        f"`{name}` has {this}, and release {highest} was trusted on this machine before",
        hint="install the newer one, or run `ortkit verify BUNDLE --allow-downgrade` to go back",
    )
