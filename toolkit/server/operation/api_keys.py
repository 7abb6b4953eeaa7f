"""API keys: a file that is read again when it changes.

A line is `name: sha256:HEX`, `name: KEY` or `KEY`; lines that begin with `#` are comments. The log has the names, never
a key. A file that has keys themselves must be readable for its owner alone; hashes of random keys may be public.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ....runtime.errors import InputError, NotFoundError
from ....runtime.trust.ownership import check_ownership

_LARGEST_FILE = 1 << 20
_MOST_KEYS = 10_000
_SHORTEST_KEY = 16
_LONGEST_KEY = 512
_HASH = "sha256:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_KEY = re.compile(r"[\x21-\x7e]+")
_READABLE = stat.S_IRGRP | stat.S_IROTH
MAKE_ONE = "`openssl rand -hex 32` makes one"


@dataclass(frozen=True)
class ApiKey:
    """A key as it is kept: its name and its SHA-256."""

    name: str
    digest: bytes


class ApiKeys:
    """The keys of a file. `reload` replaces them at once; a file that cannot be used leaves them as they were."""

    def __init__(self, path: Path) -> None:
        """Read the file; raises NotFoundError and InputError."""
        self.path = path
        self._seen = _version_of(path)
        self._keys = read_keys(path)

    def __len__(self) -> int:
        return len(self._keys)

    def name_of(self, key: str | None) -> str | None:
        """The name of a key, None for one that is not in the file.

        Every key of the file is compared, each in constant time, so that the time is the same for all wrong ones.
        """
        if key is None or len(key) > _LONGEST_KEY:
            return None
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known.name
        return found

    def has_changed(self) -> bool:
        """Whether the file is another one than at the last look."""
        return _version_of(self.path) != self._seen

    def reload(self) -> int:
        """Read the file again, and return the number of keys; raises OrtkitError, and the old keys stay."""
        self._seen = _version_of(self.path)
        self._keys = read_keys(self.path)
        return len(self._keys)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a file of keys; raises NotFoundError and InputError. No message has a key."""
    check_ownership(path, "the file of API keys")
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file of API keys `{path}`") from error
    except OSError as error:
        raise InputError(f"the file of API keys `{path}` cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST_FILE:
        raise InputError(f"the file of API keys `{path}` has more than {_LARGEST_FILE} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the file of API keys `{path}` is not UTF-8") from error
    keys: list[ApiKey] = []
    has_plain = False
    for number, line in _lines_of(text):
        key, is_plain = _parse(line, f"line {number} of `{path}`", len(keys) + 1)
        keys.append(key)
        has_plain |= is_plain
    if not keys:
        raise InputError(f"the file of API keys `{path}` has no keys", hint=f"one a line, `name: KEY`; {MAKE_ONE}")
    if len(keys) > _MOST_KEYS:
        raise InputError(f"the file of API keys `{path}` has more than {_MOST_KEYS} keys")
    names = [key.name for key in keys]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise InputError(f"the file of API keys `{path}` has two keys of the name `{twice}`")
    if has_plain and mode & _READABLE:
        raise InputError(
            f"the file of API keys `{path}` is readable for other users, and has keys that are not hashed",
            hint=f"`chmod 600 {path}`, or write `name: sha256:HEX` (`printf %s KEY | sha256sum`)",
        )
    return tuple(keys)


def _lines_of(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def _parse(line: str, where: str, place: int) -> tuple[ApiKey, bool]:
    """A line, and whether it has the key itself."""
    name, separator, value = line.partition(":")
    if not separator or line.startswith(_HASH):
        name, value = f"key-{place}", line
    name, value = name.strip(), value.strip()
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{where} is not an API key: its name must have letters, digits and `._@-`, and at most 64 of them",
            hint="a line is `name: KEY`, `name: sha256:HEX` or `KEY`",
        )
    if value.startswith(_HASH):
        try:
            digest = bytes.fromhex(value.removeprefix(_HASH))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise InputError(f"{where} is not an API key: `sha256:` must be followed by 64 hexadecimal digits")
        return ApiKey(name, digest), False
    if not _KEY.fullmatch(value) or not _SHORTEST_KEY <= len(value) <= _LONGEST_KEY:
        raise InputError(
            f"{where} is not an API key: a key has {_SHORTEST_KEY} to {_LONGEST_KEY} ASCII characters without spaces",
            hint=MAKE_ONE,
        )
    return ApiKey(name, hashlib.sha256(value.encode("ascii")).digest()), True


def _version_of(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode
