"""X.509 certificates that sign bundles, and their chain to a trusted one (RFC 5280, without revocation).

A bundle is verified as of the moment from which its certificate is valid (`notBefore`), as OpenSSF's tool does: an
appliance's clock may say 1970, and what was signed is to run for years. So a certificate does not expire here: to stop
trusting one, remove it, or its authority, from the trusted certificates.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .der import (
    BIT_STRING,
    BOOLEAN,
    GENERALIZED_TIME,
    INTEGER,
    OCTET_STRING,
    OID,
    SEQUENCE,
    SET,
    UTC_TIME,
    DerError,
    Element,
    bits,
    elements,
    single,
    unsigned,
)
from .public_key import CERTIFICATE, PublicKey, blocks_of_pem, content_of_pem

LONGEST_CHAIN = 8
"""Certificates in a signature: the signer's and those of intermediate authorities."""
LARGEST_CERTIFICATE = 1 << 15
_MOST_VERIFICATIONS = 32
"""Signatures that are verified to find a chain; a real one has two or three."""
_MOST_TRUSTED = 1000
_VERSION_3 = 2
_SIGNATURE_ALGORITHMS = {
    bytes.fromhex("2a8648ce3d040302"): ("EC", "sha256"),
    bytes.fromhex("2a8648ce3d040303"): ("EC", "sha384"),
    bytes.fromhex("2a8648ce3d040304"): ("EC", "sha512"),
    bytes.fromhex("2a864886f70d01010b"): ("RSA", "sha256"),
    bytes.fromhex("2a864886f70d01010c"): ("RSA", "sha384"),
    bytes.fromhex("2a864886f70d01010d"): ("RSA", "sha512"),
}
"""OIDs of ecdsa-with-SHA* (RFC 5758) and sha*WithRSAEncryption (RFC 4055)."""
_COMMON_NAME = bytes.fromhex("550403")
_KEY_USAGE, _ALTERNATIVE_NAME, _BASIC_CONSTRAINTS, _NAME_CONSTRAINTS, _EXTENDED_KEY_USAGE = (
    bytes.fromhex(oid) for oid in ("551d0f", "551d11", "551d13", "551d1e", "551d25")
)
_KNOWN = frozenset({_KEY_USAGE, _ALTERNATIVE_NAME, _BASIC_CONSTRAINTS, _EXTENDED_KEY_USAGE})
"""Extensions that may be critical; the alternative names of a signer have no meaning here."""
_CODE_SIGNING, _ANY_USAGE = bytes.fromhex("2b06010505070303"), bytes.fromhex("551d2500")
_UNSUPPORTED = "has name constraints or another critical extension that is not supported"
_DIGITAL_SIGNATURE, _SIGNS_CERTIFICATES = 0, 5
"""Bits of the extension keyUsage."""


class CertificateError(ValueError):
    """A certificate is not valid for signing bundles, or leads to no trusted certificate."""


@dataclass(frozen=True)
class Certificate:
    """The facts of a certificate that decide whether it is trusted."""

    encoded: bytes
    signed: bytes
    """What its issuer signed."""
    issuer: bytes
    subject: bytes
    not_before: int
    """Seconds since 1970."""
    not_after: int
    key: PublicKey
    signature: bytes
    signature_algorithm: tuple[str, str]
    """`EC` or `RSA`, and the hash."""
    extensions: dict[bytes, tuple[bool, bytes]]
    """OID -> whether it is critical, and its value."""
    origin: str
    """The file that it was read from; for messages."""

    @classmethod
    def from_der(cls, encoded: bytes, origin: str = "the signature") -> Certificate:
        """Read a certificate of version 3; raises CertificateError for a damaged one."""
        try:
            return cls(encoded, origin=origin, **_facts_of(encoded))
        except DerError as error:
            raise CertificateError(f"a certificate in {origin} is not valid: {error}") from error

    @property
    def fingerprint(self) -> str:
        """The sha256 of the certificate, as `openssl x509 -fingerprint -sha256` shows it."""
        return hashlib.sha256(self.encoded).hexdigest()

    @property
    def common_name(self) -> str:
        """The common name of its subject; empty where it has none."""
        for part in elements(single(self.subject, "a name").content):
            for attribute in elements(part.expect(SET, "a name")):
                kind, value = attribute.children(SEQUENCE, "a name")
                if kind.content == _COMMON_NAME:
                    return value.content.decode("utf-8", errors="replace")
        return ""

    def __str__(self) -> str:
        return f"certificate `{self.common_name}` (sha256 {self.fingerprint[:16]}...)"

    def is_known(self) -> bool:
        """Whether there is no extension that must not be ignored."""
        return not any(
            oid == _NAME_CONSTRAINTS or (critical and oid not in _KNOWN)
            for oid, (critical, _) in self.extensions.items()
        )

    def usages(self) -> set[int] | None:
        """The bits of keyUsage that are set; None without the extension."""
        if _KEY_USAGE not in self.extensions:
            return None
        content = single(self.extensions[_KEY_USAGE][1], "keyUsage").expect(BIT_STRING, "keyUsage")
        if not content or content[0] > 7:
            raise DerError("keyUsage is not a string of bits")
        return {8 * place + bit for place, byte in enumerate(content[1:]) for bit in range(8) if byte & 0x80 >> bit}

    def purposes(self) -> set[bytes] | None:
        """The OIDs of extKeyUsage; None without the extension."""
        if _EXTENDED_KEY_USAGE not in self.extensions:
            return None
        value = single(self.extensions[_EXTENDED_KEY_USAGE][1], "extKeyUsage")
        return {purpose.expect(OID, "extKeyUsage") for purpose in value.children(SEQUENCE, "extKeyUsage")}

    def authority(self) -> tuple[bool, int | None]:
        """From basicConstraints: whether this is an authority, and how many authorities may be below it."""
        if _BASIC_CONSTRAINTS not in self.extensions:
            return False, None
        value = single(self.extensions[_BASIC_CONSTRAINTS][1], "basicConstraints")
        found = value.children(SEQUENCE, "basicConstraints")
        is_authority = bool(found) and found[0].tag == BOOLEAN and found[0].content == b"\xff"
        if is_authority and len(found) > 1:
            return True, unsigned(found[1].expect(INTEGER, "pathLenConstraint"), "pathLenConstraint")
        return is_authority, None

    def is_valid_at(self, moment: int) -> bool:
        return self.not_before <= moment <= self.not_after


def read_certificates(path: str | os.PathLike[str]) -> tuple[Certificate, ...]:
    """Read the certificates in a PEM file; raises NotFoundError, and InputError for what is not one."""
    return certificates_in(content_of_pem(path), path)


def certificates_in(content: bytes, path: str | os.PathLike[str]) -> tuple[Certificate, ...]:
    """As `read_certificates`, of the content of the file."""
    found = blocks_of_pem(content, CERTIFICATE, path)
    if len(found) > _MOST_TRUSTED:
        raise InputError(f"`{path}` has {len(found)} certificates; the limit is {_MOST_TRUSTED}")
    try:
        return tuple(Certificate.from_der(encoded, os.fspath(path)) for encoded in found)
    except CertificateError as error:
        raise InputError(str(error)) from error


def _facts_of(encoded: bytes) -> dict[str, Any]:
    """The fields of a `Certificate` (RFC 5280, section 4.1)."""
    if len(encoded) > LARGEST_CERTIFICATE:
        raise DerError(f"it has more than {LARGEST_CERTIFICATE} bytes")
    parts = single(encoded, "a certificate").children(SEQUENCE, "a certificate")
    if len(parts) != 3:
        raise DerError("it does not have three parts")
    signed, algorithm, signature = parts
    fields = signed.children(SEQUENCE, "a certificate")
    if len(fields) < 7 or fields[0].tag != 0xA0 or fields[0].content != bytes((INTEGER, 1, _VERSION_3)):
        raise DerError("it is not of version 3")
    _, _, same_algorithm, issuer, validity, subject, key, *rest = fields
    if same_algorithm.encoded != algorithm.encoded:
        raise DerError("it names two signature algorithms")
    times = validity.children(SEQUENCE, "a certificate's validity")
    if len(times) != 2:
        raise DerError("its validity does not have two times")
    for name in (issuer, subject):
        _check_name(name)
    return {
        "signed": signed.encoded,
        "issuer": issuer.encoded,
        "subject": subject.encoded,
        "not_before": _seconds(times[0]),
        "not_after": _seconds(times[1]),
        "key": PublicKey.from_spki(key.encoded),
        "signature": bits(signature.expect(BIT_STRING, "a signature"), "a signature"),
        "signature_algorithm": _algorithm(algorithm),
        "extensions": _extensions(rest),
    }


def _algorithm(element: Element) -> tuple[str, str]:
    parts = element.children(SEQUENCE, "a signature algorithm")
    found = _SIGNATURE_ALGORITHMS.get(parts[0].expect(OID, "a signature algorithm")) if parts else None
    if found is None:
        raise DerError("its signature is neither ECDSA nor RSA PKCS #1 v1.5 with SHA-256, SHA-384 or SHA-512")
    return found


def _check_name(name: Element) -> None:
    """Raise DerError for a name that is not a sequence of sets of pairs."""
    for part in name.children(SEQUENCE, "a name"):
        for attribute in part.children(SET, "a name"):
            if len(attribute.children(SEQUENCE, "a name")) != 2:
                raise DerError("a name has an attribute that is not a pair")


def _seconds(time: Element) -> int:
    text = time.content.decode("ascii", errors="replace")
    if time.tag == UTC_TIME:
        # RFC 5280, section 4.1.2.5.1.
        text = ("19" if text[:2] >= "50" else "20") + text
    digits = text[:-1]
    if time.tag not in {UTC_TIME, GENERALIZED_TIME} or len(text) != 15 or text[-1] != "Z" or not digits.isdecimal():
        raise DerError("a time that is not in the form of RFC 5280")
    month, day, hour, minute, second = (int(digits[start : start + 2]) for start in range(4, 14, 2))
    try:
        found = dt.datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=dt.UTC)
    except ValueError as error:
        raise DerError("a time that is not in the form of RFC 5280") from error
    return int(found.timestamp())


def _extensions(rest: Sequence[Element]) -> dict[bytes, tuple[bool, bytes]]:
    # Unique identifiers (tags 1 and 2) have no meaning.
    wrapped = [element for element in rest if element.tag not in {0x81, 0x82, 0xA1, 0xA2}]
    found: dict[bytes, tuple[bool, bytes]] = {}
    if not wrapped:
        return found
    if len(wrapped) != 1 or wrapped[0].tag != 0xA3:
        raise DerError("it has other fields than extensions")
    for extension in single(wrapped[0].content, "extensions").children(SEQUENCE, "extensions"):
        parts = extension.children(SEQUENCE, "an extension")
        if not 2 <= len(parts) <= 3:
            raise DerError("an extension does not have two or three parts")
        oid, *middle, value = parts
        critical = [flag.expect(BOOLEAN, "an extension") for flag in middle]
        if critical not in ([], [b"\xff"]):
            raise DerError("an extension's `critical` is not in its DER form")
        name = oid.expect(OID, "an extension")
        if name in found:
            raise DerError("an extension is repeated")
        found[name] = (bool(critical), value.expect(OCTET_STRING, "an extension"))
    return found


def check_signer(leaf: Certificate) -> None:
    """Raise CertificateError for a certificate that must not sign bundles.

    It must have an elliptic-curve key, and say that it is for signatures: by extKeyUsage codeSigning, or, without that
    extension, by keyUsage digitalSignature. So the certificate of a web server by the same authority cannot sign.
    """
    try:
        usages, purposes = leaf.usages(), leaf.purposes()
    except DerError as error:
        raise CertificateError(f"the {leaf} is not valid: {error}") from error
    if leaf.key.hash_name is None:
        raise CertificateError(f"the {leaf} has an {leaf.key.algorithm} key, not an elliptic-curve key")
    if not leaf.is_known():
        raise CertificateError(f"the {leaf} {_UNSUPPORTED}")
    for_signatures = usages is None or _DIGITAL_SIGNATURE in usages
    named = _CODE_SIGNING in purposes if purposes is not None else usages is not None
    if not for_signatures or not named:
        raise CertificateError(
            f"the {leaf} is not for signing: it needs keyUsage digitalSignature, or extKeyUsage codeSigning where it "
            "has extKeyUsage"
        )


def check_chain(chain: Sequence[Certificate], trusted: Sequence[Certificate]) -> Certificate:
    """Find a chain from the first certificate, over others of `chain`, to a trusted one, which is returned.

    A trusted certificate need not be self-signed, and may be the signer's own. Raises CertificateError that names
    what is wrong with the chain that led farthest.
    """
    if not 1 <= len(chain) <= LONGEST_CHAIN:
        raise CertificateError(f"the signature has {len(chain)} certificates; from 1 to {LONGEST_CHAIN} are possible")
    check_signer(chain[0])
    search = _Search(chain[0].not_before, tuple(trusted))
    found = search.anchor_of(chain[0], chain[1:], authorities=0)
    if found is None:
        raise CertificateError(search.problem)
    return found


class _Search:
    """The search for a trusted certificate; the number of signatures that it verifies is limited."""

    def __init__(self, moment: int, trusted: Sequence[Certificate]) -> None:
        self._moment = moment
        self._trusted = trusted
        self._encoded = {certificate.encoded for certificate in trusted}
        self._left = _MOST_VERIFICATIONS
        self.problem = ""

    def anchor_of(
        self, certificate: Certificate, others: Sequence[Certificate], *, authorities: int
    ) -> Certificate | None:
        """The trusted certificate above this one, which has `authorities` authorities below its own issuer."""
        if certificate.encoded in self._encoded:
            return next(one for one in self._trusted if one.encoded == certificate.encoded)
        for issuer in self._issuers(certificate, self._trusted):
            if self._issued(certificate, issuer, authorities):
                return issuer
        for issuer in self._issuers(certificate, others):
            if self._issued(certificate, issuer, authorities):
                rest = [other for other in others if other is not issuer]
                below = authorities + (issuer.subject != issuer.issuer)
                found = self.anchor_of(issuer, rest, authorities=below)
                if found is not None:
                    return found
        self.problem = self.problem or f"the {certificate} was not issued by a trusted certificate"
        return None

    @staticmethod
    def _issuers(certificate: Certificate, candidates: Sequence[Certificate]) -> Iterator[Certificate]:
        return (candidate for candidate in candidates if candidate.subject == certificate.issuer)

    def _issued(self, certificate: Certificate, issuer: Certificate, authorities: int) -> bool:
        """Whether an issuer may issue this certificate, and did."""
        try:
            problem = _authority_problem(issuer, self._moment, authorities)
        except DerError as error:
            problem = f"is not valid: {error}"
        if problem is not None:
            self.problem = self.problem or f"the {issuer} {problem}"
            return False
        kind, hash_name = certificate.signature_algorithm
        if self._left == 0 or not issuer.key.algorithm.startswith(kind):
            return False
        self._left -= 1
        if not issuer.key.verifies(certificate.signature, certificate.signed, hash_name):
            self.problem = self.problem or f"the signature of the {certificate} is not that of the {issuer}"
            return False
        return True


def _authority_problem(issuer: Certificate, moment: int, authorities: int) -> str | None:
    """Why a certificate must not issue others; None where it may."""
    if not issuer.is_known():
        return _UNSUPPORTED
    is_authority, most = issuer.authority()
    usages, purposes = issuer.usages(), issuer.purposes()
    if not is_authority or (usages is not None and _SIGNS_CERTIFICATES not in usages):
        return "is not a certificate authority"
    if most is not None and authorities > most:
        return f"must not have {authorities} authorities below it"
    if purposes is not None and not purposes & {_CODE_SIGNING, _ANY_USAGE}:
        return "does not issue certificates for code signing"
    if not issuer.is_valid_at(moment):
        return "was not valid when the signer's certificate began"
    return None
