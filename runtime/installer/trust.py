"""Which keys a kit must be signed with: those that the user names, of the policy, and of the installation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundle.ownership import check_ownership
from ..bundle.policy import Policy
from ..bundle.public_key import CERTIFICATE, TrustedKey
from ..bundle.signature import Signer, verify_signature
from ..bundle.x509 import Certificate, read_certificates
from ..errors import InputError, NotFoundError, NotTrustedError
from .files import FOLDER_MODE, sha256_of, write_text
from .installation import KEYS, Installation
from .kit_file import Kit

_CERTIFICATE = f"-----BEGIN {CERTIFICATE}-----"
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Trust:
    """What a kit is checked against."""

    keys: tuple[TrustedKey | Certificate, ...]
    required_by: Path | None
    """The policy that requires a signature; None where none does."""

    @classmethod
    def of(cls, installation: Installation, named: Sequence[Path]) -> Trust:
        """Read all keys; raises NotFoundError and InputError for a file that is not one."""
        policy = Policy.current()
        kept = sorted((installation.prefix / KEYS).glob("*.pem"))
        for path in kept:
            check_ownership(path, "the trusted key")
        keys = [key for path in (*named, *kept) for key in _read(path)]
        return cls((*keys, *policy.trusted), policy.path if policy.require_signature else None)

    def check(self, kit: Kit, *, allow_unsigned: bool) -> Signer | None:
        """Raise NotTrustedError for a kit that is not signed by one of the keys.

        None is returned for a kit that nobody vouches for and that the user allows, where no policy forbids it.
        """
        if self.keys and kit.signature is not None:
            return verify_signature(kit.files, kit.signature, self.keys, where=f"the signature of `{kit.path}`")
        if allow_unsigned and self.required_by is None:
            return None
        if kit.signature is None:
            problem = f"`{kit.path}` is not signed"
            hint = "sign it where it is made: `ortkit kit ... --sign key.pem`"
        else:
            problem = f"`{kit.path}` is signed, and no key is trusted here"
            hint = "name the public key of who made it: `--trusted-key key.pub`"
        if self.required_by is not None:
            raise NotTrustedError(f"{problem}; the policy `{self.required_by}` requires a signature", hint=hint)
        raise NotTrustedError(problem, hint=f"{hint}; to install it all the same, add `--allow-unsigned`")


def keep_keys(installation: Installation, named: Sequence[Path]) -> None:
    """Trust the keys that the user named in later installations too."""
    folder = installation.prefix / KEYS
    for path in named:
        target = folder / f"{path.stem}-{sha256_of(path)[:16]}.pem"
        if not target.exists():
            folder.mkdir(exist_ok=True, mode=FOLDER_MODE)
            write_text(target, _text_of(path))


def _read(path: Path) -> Sequence[TrustedKey | Certificate]:
    return read_certificates(path) if _CERTIFICATE in _text_of(path) else (TrustedKey.read(path),)


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_FILE).decode("ascii", errors="replace")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no key at `{path}`") from error
    except OSError as error:
        raise InputError(f"the key `{path}` cannot be read: {error.strerror or error}") from error
