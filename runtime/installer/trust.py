"""Which keys a kit must be signed with: those of the policy; without any there, the user's and the installation's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import NotFoundError, NotTrustedError
from ..trust.ownership import check_ownership
from ..trust.policy import Policy
from ..trust.public_key import CERTIFICATE, TrustedKey, content_of_pem
from ..trust.signature import Signer, verify_signature
from ..trust.x509 import Certificate, certificates_in
from .files import FOLDER_MODE, write_text
from .installation import KEYS, Installation
from .kit_file import Kit

_CERTIFICATE = f"-----BEGIN {CERTIFICATE}-----".encode()


@dataclass(frozen=True)
class Trust:
    """What a kit is checked against."""

    keys: tuple[TrustedKey | Certificate, ...]
    required_by: Path | None
    """The policy that requires a signature; None where none does."""
    decided_by: Path | None = None
    """The policy whose keys count alone; None where it has none."""
    named: tuple[tuple[str, bytes], ...] = ()
    """Stem and content of the files that the user named, as they were read."""

    @classmethod
    def of(cls, installation: Installation, named: Sequence[Path]) -> Trust:
        """Read all keys; raises NotFoundError and InputError for a file that is not one.

        Where the machine's policy trusts keys, no other counts: who may update the machine is decided in one place.
        """
        policy = Policy.current()
        required_by = policy.path if policy.require_signature else None
        if policy.trusted:
            for path in named:
                _parsed(path, _content_of(path))
            return cls(policy.trusted, required_by, policy.path)
        kept = sorted((installation.prefix / KEYS).glob("*.pem"))
        for path in kept:
            check_ownership(path, "the trusted key")
        contents = [(path, _content_of(path)) for path in (*named, *kept)]
        keys = [key for path, content in contents for key in _parsed(path, content)]
        chosen = tuple((path.stem, content) for path, content in contents[: len(named)])
        return cls(tuple(keys), required_by, named=chosen)

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


def keep_keys(installation: Installation, trust: Trust) -> None:
    """Trust the keys that the user named in later installations too: what was read, whatever is there by now."""
    folder = installation.prefix / KEYS
    for stem, content in trust.named:
        target = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.pem"
        if not target.exists():
            folder.mkdir(exist_ok=True, mode=FOLDER_MODE)
            write_text(target, content.decode("ascii", errors="replace"))


def _parsed(path: Path, content: bytes) -> Sequence[TrustedKey | Certificate]:
    if _CERTIFICATE in content:
        return certificates_in(content, path)
    return (TrustedKey.of(content, path),)


def _content_of(path: Path) -> bytes:
    try:
        return content_of_pem(path)
    except NotFoundError as error:
        raise NotFoundError(f"there is no key at `{path}`") from error
