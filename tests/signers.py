"""Keys, certificates and signed bundles for tests, made with `cryptography`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ortkit import Bundle
from ortkit.exporters.packaging.sign import SigningKey, sign_bundle
from ortkit.runtime.trust.public_key import PublicKey, TrustedKey
from ortkit.runtime.trust.x509 import Certificate

BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
YEAR = dt.timedelta(days=365)
USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
CODE_SIGNING, WEB_SERVER = ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH
Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def spki_of(key: Private) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def signing_key(key: ec.EllipticCurvePrivateKey | None = None, chain: Sequence[Certificate] = ()) -> SigningKey:
    key = key or new_key()
    return SigningKey(key, PublicKey.from_spki(spki_of(key)), tuple(chain))


def trusted(key: SigningKey, origin: str = "key.pub") -> TrustedKey:
    return TrustedKey(key.public, origin)


@dataclass
class Issued:
    """A certificate and its key."""

    made: x509.Certificate
    key: Private
    ours: Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.ours = Certificate.from_der(self.made.public_bytes(serialization.Encoding.DER), "ca.pem")

    @property
    def pem(self) -> bytes:
        return self.made.public_bytes(serialization.Encoding.PEM)


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    key: Private | None = None,
    authority: bool | None = None,
    path_length: int | None = None,
    usages: Sequence[str] | None = ("digital_signature",),
    purposes: Sequence[x509.ObjectIdentifier] | None = None,
    begin: dt.datetime = BEGIN,
    end: dt.datetime | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    hash_algorithm: hashes.HashAlgorithm | None = None,
    signed_by: Private | None = None,
) -> Issued:
    """A certificate; without an issuer it is self-signed. `signed_by` is another key than the issuer's."""
    key = key or new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.made.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end or begin + YEAR)
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(authority, path_length), critical=True)
    if usages is not None:
        builder = builder.add_extension(x509.KeyUsage(**{usage: usage in usages for usage in USAGES}), critical=True)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    signer = signed_by or (issuer.key if issuer is not None else key)
    return Issued(builder.sign(signer, hash_algorithm or hashes.SHA256()), key)


def issue_authority(name: str, issuer: Issued | None = None, **settings: object) -> Issued:
    settings = {"authority": True, "usages": ("key_cert_sign",)} | settings
    return issue(name, issuer, **settings)  # type: ignore[arg-type]


def files_of(bundle: Path) -> dict[str, str]:
    """All files of a bundle with their sha256, whether it is signed or not."""
    return Bundle.unsigned(bundle)[1]


def signed(bundle: Path, key: SigningKey, release: int | None = None) -> Path:
    return sign_bundle(bundle, key, release=release).path


def write_public(path: Path, key: SigningKey) -> Path:
    path.write_text(key.public.pem)
    return path
