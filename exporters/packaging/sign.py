"""Sign bundles, packs and kits, and make the keys for it; `runtime/trust/signature.py` describes the format.

Needs the package `cryptography` (extra `sign`).
"""
# ruff: noqa: PLC0415 - `cryptography` is optional, and `need` says how to install it

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.folder import MANIFEST
from ...runtime.bundle.manifest_json import json_of
from ...runtime.errors import BundleError, InputError, NotFoundError, OutputError
from ...runtime.output_path import cannot_write, flush_folder, replacing, try_lock
from ...runtime.trust.der import DerError
from ...runtime.trust.names import LARGEST_SIGNATURE, SIGNATURE
from ...runtime.trust.public_key import PublicKey
from ...runtime.trust.signature import (
    MEDIA_TYPE,
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    pre_authentication_encoding,
)
from ...runtime.trust.x509 import LONGEST_CHAIN, Certificate, CertificateError, check_signer, read_certificates
from ..extras import need

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_LARGEST_KEY = 1 << 16
_PRIVATE = stat.S_IRUSR | stat.S_IWUSR
_MAKE_KEY = "make one with `ortkit keygen -o key.pem`"


@dataclass(frozen=True)
class SigningKey:
    """A private key on an elliptic curve, with its certificates where it has some. It is never shown."""

    private: EllipticCurvePrivateKey
    public: PublicKey
    chain: tuple[Certificate, ...] = ()
    """The signer's certificate first, then those of intermediate authorities."""

    def __repr__(self) -> str:
        return f"<SigningKey {self.public.algorithm}, sha256 {self.public.fingerprint[:16]}...>"

    def sign(self, message: bytes) -> bytes:
        """ECDSA with the hash of the curve's size, in DER."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        algorithms = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
        return self.private.sign(message, ec.ECDSA(algorithms[str(self.public.hash_name)]))


def generate_key(path: Path, public: Path, *, passphrase: bytes | None = None) -> PublicKey:
    """Make a P-256 key: the private key that only this user can read, and the public key beside it.

    Raises OutputError where one of the files exists already or cannot be written; then neither is left.
    """
    need("sign", "cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase is not None else serialization.NoEncryption()
    )
    key = ec.generate_private_key(ec.SECP256R1())
    content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    found = _public_key_of(key)
    # The public one first, because a key is of use only if both are there.
    _write_new(public, found.pem.encode("ascii"), 0o644)
    try:
        _write_new(path, content, _PRIVATE)
    except BaseException:
        public.unlink(missing_ok=True)
        raise
    return found


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist yet, readable as `mode` says from the start."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise OutputError(
            f"`{path}` exists, and a key is never replaced", hint="name another file, or move that one away"
        ) from error
    except OSError as error:
        raise cannot_write(error, path) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise cannot_write(error, path) from error


def is_encrypted(content: bytes) -> bool:
    """Whether a private key in PEM needs a passphrase: PKCS #8, or OpenSSL's older form."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in content or b"Proc-Type: 4,ENCRYPTED" in content


def read_key(path: Path, *, passphrase: Callable[[], bytes], certificate_chain: Path | None = None) -> SigningKey:
    """Read a private key in PEM; `passphrase` is asked only for a key that is encrypted.

    Raises NotFoundError, and InputError for a file that is not a private key on P-256, P-384 or P-521, that others can
    read, or whose passphrase or certificate is another key's.
    """
    need("sign", "cryptography")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = _private_file(path)
    encrypted = is_encrypted(content)
    # Not in the block: an InputError is a ValueError, too.
    secret = passphrase() if encrypted else None
    try:
        private = serialization.load_pem_private_key(content, secret)
    except UnsupportedAlgorithm as error:
        raise InputError(f"the private key `{path}` is of a kind that is not supported", hint=_MAKE_KEY) from error
    except (ValueError, TypeError) as error:
        wrong = "its passphrase is another one, or it is damaged" if encrypted else "it is damaged"
        raise InputError(f"the private key `{path}` cannot be read: {wrong}") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise InputError(f"the private key `{path}` is not an elliptic-curve key", hint=_MAKE_KEY)
    try:
        public = _public_key_of(private)
    except DerError as error:
        raise InputError(f"the private key `{path}` is not supported: {error}", hint=_MAKE_KEY) from error
    chain = () if certificate_chain is None else _chain_of(certificate_chain, public)
    return SigningKey(private, public, chain)


def _private_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            readable = os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            content = file.read(_LARGEST_KEY)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no key `{path}`", hint=_MAKE_KEY) from error
    except OSError as error:
        raise InputError(f"the key `{path}` cannot be read: {error.strerror or error}") from error
    if b"PRIVATE KEY-----" not in content:
        public = b"PUBLIC KEY-----" in content
        raise InputError(f"`{path}` is {'a public key' if public else 'not a private key in PEM'}", hint=_MAKE_KEY)
    if readable:
        raise InputError(f"the private key `{path}` can be read by other users", hint=f"`chmod 600 {path}`")
    return content


def _public_key_of(private: EllipticCurvePrivateKey) -> PublicKey:
    from cryptography.hazmat.primitives import serialization

    return PublicKey.from_spki(
        private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _chain_of(path: Path, public: PublicKey) -> tuple[Certificate, ...]:
    """The certificates of a signer; raises InputError where they are another key's or must not sign."""
    chain = read_certificates(path)
    if len(chain) > LONGEST_CHAIN:
        raise InputError(f"`{path}` has {len(chain)} certificates; the limit of a signature is {LONGEST_CHAIN}")
    if chain[0].key != public:
        raise InputError(
            f"the first certificate in `{path}` is not that of the key",
            hint="the signer's certificate comes first, then those of intermediate authorities",
        )
    try:
        check_signer(chain[0])
    except CertificateError as error:
        raise InputError(f"`{path}`: {error}") from error
    return chain


def sign_files(files: Mapping[str, str], name: str, key: SigningKey) -> bytes:
    """The content of a signature file over relative paths with their sha256, under a name such as the model's."""
    payload = json.dumps(_statement(files, name), ensure_ascii=False).encode("utf-8")
    signature = key.sign(pre_authentication_encoding(payload))
    content = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": _material(key) | {"tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _base64(signature), "keyid": ""}],
        },
    }
    found = json.dumps(content).encode("ascii") + b"\n"
    if len(found) > LARGEST_SIGNATURE:
        raise InputError(f"{len(files)} files are too many for a signature of at most {LARGEST_SIGNATURE} bytes")
    return found


def _statement(files: Mapping[str, str], name: str) -> dict[str, object]:
    """An in-toto statement: its subject's digest is that of all files' digests in the order of the list."""
    ordered = sorted(files.items())
    together = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in ordered)).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": together}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in ordered],
        },
    }


def _material(key: SigningKey) -> dict[str, object]:
    if not key.chain:
        return {"publicKey": {"hint": key.public.fingerprint}}
    certificates = [{"rawBytes": _base64(certificate.encoded)} for certificate in key.chain]
    return {"x509CertificateChain": {"certificates": certificates}}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


@dataclass(frozen=True)
class Signed:
    """What was signed, and where the signature is."""

    path: Path
    signature: Path
    files: int
    release: int | None = None


def sign_bundle(path: str | os.PathLike[str], key: SigningKey, *, release: int | None = None) -> Signed:
    """Sign a bundle whose files are those of its manifest, after setting its release where one is given.

    Killed at any moment, it leaves the bundle signed as before, not signed, or with the new signature: never with a
    signature of another manifest. Raises NotFoundError, BundleError and OutputError.
    """
    # Files beside the folder a link points to are on its file system.
    folder = Path(path).resolve() if Path(path).exists() else Path(path)
    with _locked(folder):
        bundle, files = Bundle.unsigned(folder)
        bundle.check_hashes(bundle.manifest.files)
        content = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != files[MANIFEST]:
            raise BundleError(f"`{folder / MANIFEST}` was changed while it was read")
        if release is None or release == bundle.manifest.release:
            signature = sign_files(files, bundle.manifest.name, key)
        else:
            content = _with_release(content, release)
            files[MANIFEST] = hashlib.sha256(content).hexdigest()
            signature = sign_files(files, bundle.manifest.name, key)
            _replace_manifest(folder, content)
        _replace(folder / SIGNATURE, signature, folder)
    return Signed(folder, folder / SIGNATURE, len(files), release or bundle.manifest.release)


def sign_layout(path: str | os.PathLike[str], key: SigningKey) -> Signed:
    """Sign a pack, whose blobs are verified before; the signature lies beside it. Raises as `sign_bundle` does."""
    from ...runtime.pack.oci_layout import OciLayout, signature_beside

    where = Path(path)
    with OciLayout.open(where) as layout:
        layout.check()
        files = layout.files()
    target = signature_beside(where)
    _replace(target, sign_files(files, where.name, key), target)
    return Signed(where, target, len(files))


def sign_kit(path: str | os.PathLike[str], key: SigningKey) -> Signed:
    """Sign a kit, whose files are verified before; the signature is written into the room that it has for one.

    Killed while it writes, it leaves a kit that is signed, or one that is refused until it is signed again. Raises as
    `sign_bundle` does.
    """
    from ...runtime.installer.kit_file import Kit
    from .kit import padded_signature

    where = Path(path)
    kit = Kit.open(where)
    try:
        kit.layout.check()
        files, name = kit.files, kit.facts().name
    finally:
        kit.close()
    content = padded_signature(sign_files(files, name, key))
    try:
        with where.open("r+b") as file:
            file.seek(kit.parts.signature)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(error, where) from error
    return Signed(where, where, len(files))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep another `sign` from the same bundle; a folder that is not there is `Bundle.unsigned`'s to refuse."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        if not try_lock(lock):
            raise OutputError(f"`{folder}` is being signed or written by another process")
        yield
    finally:
        os.close(lock)


def _with_release(manifest: bytes, release: int) -> bytes:
    """The manifest with another release; nothing else in it changes."""
    return json_of(json.loads(manifest) | {"release": release}).encode("utf-8")


def _replace_manifest(folder: Path, content: bytes) -> None:
    """Replace the manifest of a bundle that is not signed in between."""
    try:
        (folder / SIGNATURE).unlink(missing_ok=True)
        # On the disk before the manifest is, so that not even a power cut leaves a signature of another one.
        flush_folder(folder)
    except OSError as error:
        raise OutputError(f"`{folder / SIGNATURE}` cannot be removed: {error.strerror or error}") from error
    _replace(folder / MANIFEST, content, folder)


def _replace(target: Path, content: bytes, beside: Path) -> None:
    """Replace a file at once, by way of one beside `beside`: a bundle's folder must not hold another file."""
    try:
        with replacing(target, beside=beside) as file:
            file.write(content)
        flush_folder(target.parent)
    except OSError as error:
        raise cannot_write(error, target) from error
