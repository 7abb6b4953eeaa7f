"""Public keys, and the verification of signatures by `cryptography` or, without it, by the command `openssl`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, MissingPartError, NotFoundError, OrtkitError
from .der import BIT_STRING, INTEGER, OID, SEQUENCE, DerError, bits, single, unsigned

PUBLIC_KEY, CERTIFICATE = "PUBLIC KEY", "CERTIFICATE"
"""PEM labels (RFC 7468)."""
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END \1-----")
_PEM_LINE = 64
_LARGEST_PEM = 1 << 20
"""Bytes of a file of keys or certificates: four times the root certificates of a distribution."""
_EC, _RSA = bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a864886f70d010101")
"""The OIDs id-ecPublicKey (RFC 5480) and rsaEncryption (RFC 3279)."""
_CURVES = {
    bytes.fromhex("2a8648ce3d030107"): ("P-256", 32, "sha256"),
    bytes.fromhex("2b81040022"): ("P-384", 48, "sha384"),
    bytes.fromhex("2b81040023"): ("P-521", 66, "sha512"),
}
"""OID -> name, bytes of a coordinate, hash of the curve's size."""
_RSA_BITS = range(2048, 16385)
_OPENSSL_SECONDS = 60
"""Far more than a verification takes, so that a paused system does not fail it."""


@dataclass(frozen=True)
class PublicKey:
    """An elliptic-curve key on P-256, P-384 or P-521, or an RSA key (of certificate authorities alone)."""

    spki: bytes
    """SubjectPublicKeyInfo in DER."""
    algorithm: str
    """Such as `EC P-256` or `RSA 3072`."""
    hash_name: str | None
    """The hash that signatures of an elliptic-curve key use: that of the curve's size. None for RSA."""
    rsa_bytes: int | None = None
    """Bytes of an RSA signature; None for an elliptic-curve key."""

    @classmethod
    def from_spki(cls, spki: bytes) -> PublicKey:
        """Read a key in DER; raises DerError for one that is damaged or not supported."""
        parts = single(spki, "a public key").children(SEQUENCE, "a public key")
        if len(parts) != 2:
            raise DerError("a public key that does not have two parts")
        algorithm, key = parts
        kinds = algorithm.children(SEQUENCE, "a key's algorithm")
        content = bits(key.expect(BIT_STRING, "a key"), "a key")
        name = kinds[0].expect(OID, "a key's algorithm") if kinds else b""
        if name == _EC and len(kinds) == 2:
            curve = _CURVES.get(kinds[1].content)
            if curve is None or kinds[1].tag != OID:
                raise DerError("an elliptic-curve key on another curve than P-256, P-384 and P-521")
            title, size, hash_name = curve
            if content[:1] != b"\x04" or len(content) != 1 + 2 * size:
                raise DerError("an elliptic-curve key that is not an uncompressed point")
            return cls(spki, f"EC {title}", hash_name)
        if name == _RSA:
            size = _rsa_bits(content)
            return cls(spki, f"RSA {size}", None, (size + 7) // 8)
        raise DerError("a key that is neither an elliptic-curve key nor an RSA key")

    @property
    def pem(self) -> str:
        """The key in PEM, as `openssl` and `cryptography` write it."""
        return pem_of(PUBLIC_KEY, self.spki)

    @property
    def fingerprint(self) -> str:
        """The sha256 of `pem`: what signatures name a key by."""
        return hashlib.sha256(self.pem.encode()).hexdigest()

    def verifies(self, signature: bytes, message: bytes, hash_name: str) -> bool:
        """Whether the signature of a message is this key's: ECDSA, or RSA with the padding of PKCS #1 v1.5.

        Raises MissingPartError where neither `cryptography` nor `openssl` is installed.
        """
        # `openssl dgst` reads no more of a file than the longest signature of the key, and ignores the rest.
        if not (_is_ecdsa(signature) if self.rsa_bytes is None else len(signature) == self.rsa_bytes):
            return False
        if has_cryptography():
            return _by_cryptography(self, signature, message, hash_name)
        return _by_openssl(self, signature, message, hash_name)


def _is_ecdsa(signature: bytes) -> bool:
    """Whether a signature is two numbers in DER, and nothing more."""
    try:
        numbers = single(signature, "a signature").children(SEQUENCE, "a signature")
        return [unsigned(number.expect(INTEGER, "a number"), "a number") > 0 for number in numbers] == [True, True]
    except DerError:
        return False


def _rsa_bits(content: bytes) -> int:
    """The size of an RSA key (RFC 8017, A.1.1); raises DerError for one that is too small or too large."""
    numbers = single(content, "an RSA key").children(SEQUENCE, "an RSA key")
    if len(numbers) != 2:
        raise DerError("an RSA key that does not have two numbers")
    modulus, exponent = (unsigned(number.expect(INTEGER, "an RSA key"), "an RSA key") for number in numbers)
    if modulus.bit_length() not in _RSA_BITS or exponent.bit_length() > 64:
        raise DerError(f"an RSA key of {modulus.bit_length()} bits")
    return modulus.bit_length()


@dataclass(frozen=True)
class TrustedKey:
    """A public key that bundles may be signed with, and the file that it was read from."""

    key: PublicKey
    origin: str

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrustedKey:
        """Read a public key in PEM; raises NotFoundError, and InputError for a file that is not one."""
        return cls.of(content_of_pem(path), path)

    @classmethod
    def of(cls, content: bytes, path: str | os.PathLike[str]) -> TrustedKey:
        """As `read`, of the content of the file."""
        spki = blocks_of_pem(content, PUBLIC_KEY, path)
        if len(spki) != 1:
            raise InputError(f"`{path}` has {len(spki)} public keys", hint="write each key to a file of its own")
        try:
            key = PublicKey.from_spki(spki[0])
        except DerError as error:
            raise InputError(f"`{path}` is not a key for signatures: {error}", hint=_MAKE_KEY) from error
        if key.hash_name is None:
            raise InputError(f"`{path}` is an {key.algorithm} key, not an elliptic-curve key", hint=_MAKE_KEY)
        return cls(key, os.fspath(path))


_MAKE_KEY = "make one with `ortkit keygen -o key.pem`, which writes `key.pub` beside it"


def content_of_pem(path: str | os.PathLike[str]) -> bytes:
    """The content of a file of keys or certificates; raises NotFoundError, and InputError for one that is too large."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_PEM + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{path}`") from error
    except OSError as error:
        raise InputError(f"`{path}` cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST_PEM:
        raise InputError(f"`{path}` has more than {_LARGEST_PEM} bytes, the limit for keys and certificates")
    return content


def blocks_of_pem(content: bytes, label: str, path: str | os.PathLike[str]) -> list[bytes]:
    """The DER data of all blocks with this label in a file; text around them is ignored.

    Raises InputError, which names the file, for one that has none, or that has a private key.
    """
    blocks = list(_blocks(content.decode("ascii", errors="replace")))
    if any(name.endswith("PRIVATE KEY") for name, _ in blocks):
        raise InputError(
            f"`{path}` is a private key, and a public key is needed to verify",
            hint=f"write the public key with `openssl pkey -in {path} -pubout`, and keep the private key where "
            "bundles are signed",
        )
    try:
        found = [base64.b64decode("".join(data.split()), validate=True) for name, data in blocks if name == label]
    except binascii.Error as error:
        raise InputError(f"`{path}` is damaged: {error}") from error
    if not found:
        wanted = "a public key" if label == PUBLIC_KEY else "a certificate"
        raise InputError(f"`{path}` is not {wanted} in PEM: it has no block `-----BEGIN {label}-----`")
    return found


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Label and base64 data of each block."""
    for match in _PEM.finditer(text):
        yield match[1], match[2]


def pem_of(label: str, data: bytes) -> str:
    """One block of PEM."""
    text = base64.b64encode(data).decode("ascii")
    lines = [text[start : start + _PEM_LINE] for start in range(0, len(text), _PEM_LINE)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def has_cryptography() -> bool:
    """Whether the package `cryptography` (extra `sign`) is installed, and can be imported."""
    try:
        import cryptography.hazmat.primitives.serialization  # noqa: F401, PLC0415 - optional
    except ImportError:
        return False
    return True


def _by_cryptography(key: PublicKey, signature: bytes, message: bytes, hash_name: str) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415 - optional
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa  # noqa: PLC0415

    algorithm = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[hash_name]
    try:
        loaded = serialization.load_der_public_key(key.spki)
        if isinstance(loaded, ec.EllipticCurvePublicKey):
            loaded.verify(signature, message, ec.ECDSA(algorithm))
        elif isinstance(loaded, rsa.RSAPublicKey):
            loaded.verify(signature, message, padding.PKCS1v15(), algorithm)
        else:
            return False
    # ValueError: a point that is not on its curve, for example.
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _by_openssl(key: PublicKey, signature: bytes, message: bytes, hash_name: str) -> bool:
    # Not at the top: opening a bundle needs them only where a signature is verified, and without `cryptography`.
    import shutil  # noqa: PLC0415
    import subprocess  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    program = shutil.which("openssl")
    if program is None:
        raise MissingPartError(
            "signatures cannot be verified: neither the Python package `cryptography` nor the command `openssl` is "
            "installed",
            hint="install `cryptography` (`pip install 'ortkit[sign]'`), or the system's package `openssl`",
        )
    try:
        with tempfile.TemporaryDirectory(prefix="ortkit-") as folder:
            key_file, signature_file, message_file = (Path(folder, name) for name in ("key", "signature", "message"))
            key_file.write_text(key.pem, "ascii")
            signature_file.write_bytes(signature)
            message_file.write_bytes(message)
            finished = subprocess.run(
                [program, "dgst", f"-{hash_name}", "-verify", key_file, "-signature", signature_file, message_file],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                # No configuration of the user's, which could load other code.
                env={"PATH": os.environ.get("PATH", os.defpath), "OPENSSL_CONF": os.devnull, "LC_ALL": "C"},
                timeout=_OPENSSL_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OrtkitError(
            f"signatures cannot be verified with `{program}`: {error}",
            hint="install `cryptography` (`pip install 'ortkit[sign]'`), which needs no command and no temporary files",
        ) from error
    # 0: verified; 1: not verified, or the key or the signature is not valid. Others: the program itself failed.
    if finished.returncode not in {0, 1}:
        raise OrtkitError(
            f"signatures cannot be verified: `{program}` ended with exit code {finished.returncode}",
            hint="install `cryptography`: `pip install 'ortkit[sign]'`",
        )
    return finished.returncode == 0
