"""The policy of a machine: which signatures bundles need, by whom, and which releases are too old.

A TOML file, `/etc/ortkit/policy.toml` or the one that ORTKIT_POLICY names:

    trusted_keys = ["/etc/ortkit/keys"]         # public keys in PEM, or folders of them (*.pem, *.pub)
    trusted_certificates = ["ca.pem"]           # of authorities or signers; relative to the policy's folder
    require_signature = true                    # refuse bundles that are not signed by one of these
    state = "/var/lib/ortkit/releases.json"     # the highest trusted release of each bundle
    always_hash = true                          # hash all files at each opening

Without the file nothing is required. A file that cannot be read, has a mistake, or that other users can change is an
error, and never ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BundleError, InputError, NotTrustedError, OrtkitError
from .names import LARGEST_SIGNATURE, SIGNATURE
from .ownership import check_bundle_ownership, check_ownership
from .releases import Releases

if TYPE_CHECKING:
    from .public_key import TrustedKey
    from .signature import Signer
    from .x509 import Certificate

VARIABLE = "ORTKIT_POLICY"
SYSTEM_POLICY = Path("/etc/ortkit/policy.toml")
DEFAULT_STATE = Path("/var/lib/ortkit/releases.json")
_LARGEST_POLICY = 1 << 16
_MOST_KEYS = 100
_SUFFIXES = (".pem", ".pub")
_TYPES: dict[str, type[object]] = {
    "trusted_keys": list,
    "trusted_certificates": list,
    "require_signature": bool,
    "state": str,
    "always_hash": bool,
}
_NOUNS = {list: "a list of paths", bool: "true or false", str: "a path"}


@dataclass(frozen=True)
class Policy:
    """What a machine requires of the bundles that it opens."""

    path: Path | None = None
    """The file; None where there is none."""
    trusted: tuple[TrustedKey | Certificate, ...] = ()
    """The keys and certificates that may sign."""
    require_signature: bool = False
    releases: Releases = field(default_factory=lambda: Releases(DEFAULT_STATE))
    always_hash: bool = False
    """Whether every file is hashed at each opening, even if it was verified before and is unchanged since."""

    @classmethod
    def current(cls) -> Policy:
        """The policy in force; raises InputError for a file that cannot be used."""
        named = os.environ.get(VARIABLE)
        if named:
            return cls.read(Path(named))
        return cls.read(SYSTEM_POLICY) if _is_there(SYSTEM_POLICY) else cls()

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read a policy, and the keys and certificates that it names; raises InputError."""
        # Not at the top: most machines have no policy, and opening a bundle there needs neither keys nor certificates.
        from .public_key import TrustedKey  # noqa: PLC0415
        from .x509 import read_certificates  # noqa: PLC0415

        settings = _read_toml(path)
        folder = path.absolute().parent
        trusted: list[TrustedKey | Certificate] = []
        try:
            for file in _files_of(settings.get("trusted_keys", []), folder):
                check_ownership(file, "the trusted key")
                trusted.append(TrustedKey.read(file))
            for file in _files_of(settings.get("trusted_certificates", []), folder):
                check_ownership(file, "the trusted certificate")
                trusted += read_certificates(file)
        except OrtkitError as error:
            raise InputError(f"the policy `{path}` cannot be used: {error.message}", hint=error.hint) from error
        except OSError as error:
            problem = f"`{error.filename}` cannot be read: {error.strerror or error}"
            raise InputError(f"the policy `{path}` cannot be used: {problem}") from error
        require = settings.get("require_signature", False)
        if require and not trusted:
            raise InputError(
                f"the policy `{path}` requires signatures, but trusts no key",
                hint="add public keys to `trusted_keys`, or certificates to `trusted_certificates`",
            )
        state = folder / settings["state"] if "state" in settings else DEFAULT_STATE
        return cls(path, tuple(trusted), require, Releases(state), settings.get("always_hash", False))

    def verify(self, folder: Path, files: Mapping[str, str]) -> Signer:
        """Verify a bundle's signature by the trusted keys and certificates; raises NotTrustedError."""
        return verify_bundle(folder, files, self.trusted, why=f"the policy `{self.path}` requires a signature")

    def check_ownership(self, folder: Path, files: Iterable[str]) -> None:
        """Raise NotTrustedError for a bundle that other users can change, where signatures are required.

        Whoever can write to its folder can replace a file after it was hashed, and before it is opened.
        """
        if self.require_signature:
            check_bundle_ownership(folder, files, f"the policy `{self.path}` requires a signature")

    def accept(self, counter: str, release: int | None, *, allow_downgrade: bool = False) -> None:
        """Record the release of a bundle that was verified, so that older ones are refused from now on."""
        if self.require_signature:
            self.releases.record(counter, release, allow_downgrade=allow_downgrade)


def verify_bundle(
    folder: Path,
    files: Mapping[str, str],
    keys: tuple[TrustedKey | Certificate, ...],
    *,
    why: str = "a signature is required",
) -> Signer:
    """Verify the signature in a bundle's folder; `why` says why one is needed. Raises NotTrustedError."""
    # Not at the top: opening a bundle needs it where the policy requires signatures.
    from .signature import verify_signature  # noqa: PLC0415

    signature = read_signature(folder / SIGNATURE)
    if signature is None:
        raise NotTrustedError(
            f"`{folder}` is not signed, and {why}",
            hint=f"sign it where it is made: `ortkit sign {folder.name} --key key.pem`",
        )
    return verify_signature(files, signature, keys, where=f"`{folder / SIGNATURE}`")


def read_signature(path: Path) -> bytes | None:
    """The content of a signature file, None where there is none; raises BundleError."""
    try:
        # Do not wait for a pipe, and follow no link.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    try:
        with os.fdopen(descriptor, "rb") as file:
            # One byte more than `verify_signature` accepts.
            return file.read(LARGEST_SIGNATURE + 1)
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error


def _is_there(path: Path) -> bool:
    """Whether there is a file or a link; True where that cannot be told, so that reading it says why."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    # `os.path.lexists` takes a folder that this user may not look into for an empty one.
    except OSError:
        return True
    return True


def _read_toml(path: Path) -> dict[str, Any]:
    # Not at the top: without a policy, opening a bundle does not need it.
    import tomllib  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_POLICY + 1)
    except OSError as error:
        raise InputError(
            f"the policy `{path}` cannot be read: {error.strerror or error}",
            hint=f"{VARIABLE} names it: set it to a policy file, or unset it" if os.environ.get(VARIABLE) else None,
        ) from error
    check_ownership(path, "the policy")
    if len(content) > _LARGEST_POLICY:
        raise InputError(f"the policy `{path}` has more than {_LARGEST_POLICY} bytes")
    try:
        settings = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the policy `{path}` is not valid TOML: {error}") from error
    for name, value in settings.items():
        if name not in _TYPES:
            raise InputError(f"the policy `{path}` has the unknown setting `{name}`; known: {', '.join(_TYPES)}")
        kind = _TYPES[name]
        # Not `isinstance`: a boolean is an integer, too.
        valid = type(value) is kind
        if isinstance(value, list):
            valid = valid and all(isinstance(item, str) and item for item in value)
        if not valid:
            raise InputError(f"the policy `{path}` is not valid: `{name}` must be {_NOUNS[kind]}")
    if not settings.get("state", "state"):
        raise InputError(f"the policy `{path}` is not valid: `state` must be a path")
    return settings


def _files_of(names: list[str], folder: Path) -> Iterator[Path]:
    """The files that are named, and those in the folders that are named."""
    count = 0
    for name in names:
        path = folder / name
        found = [path]
        if path.is_dir():
            found = sorted(one for one in path.iterdir() if one.suffix in _SUFFIXES)
            if not found:
                raise InputError(f"the folder `{path}` has no keys (files that end with {' or '.join(_SUFFIXES)})")
        count += len(found)
        if count > _MOST_KEYS:
            raise InputError(f"more than {_MOST_KEYS} keys or certificates are named")
        yield from found
