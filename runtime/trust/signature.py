"""Signatures of bundles, packs and kits, in the file format of OpenSSF Model Signing (v1.0).

A signature is a Sigstore bundle (v0.3, JSON) with a DSSE envelope around an in-toto statement (v1), whose predicate
lists all files with their sha256: of a bundle these are its files and its manifest. The format names the files of a
folder; a pack and a kit have names of their own.

Keys are elliptic-curve keys, given as public keys or in X.509 certificates. Signatures by Sigstore's service (keyless)
are refused: they need a transparency log on the network.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ..errors import NotTrustedError
from ..strict_json import RepeatedKeyError, unique_keys
from .names import LARGEST_SIGNATURE
from .public_key import PublicKey, TrustedKey
from .x509 import LONGEST_CHAIN, Certificate, CertificateError, check_chain

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MOST_RESOURCES = 20_000
_SHA256 = re.compile("[0-9a-f]{64}")
_SHOWN = 3
"""Files that an error names."""


@dataclass(frozen=True)
class Signer:
    """Who signed, after the signature was verified."""

    name: str
    """The name that was signed: that of a model, a pack or a kit."""
    trusted_by: str
    """The file with the key or certificate that is trusted."""
    fingerprint: str
    """The sha256 of the public key in PEM, or of the signer's certificate."""
    common_name: str | None = None
    """Of the signer's certificate; None for a key."""

    def __str__(self) -> str:
        if self.common_name is None:
            return f"key `{self.trusted_by}` (sha256 {self.fingerprint[:16]}...)"
        shown = f"certificate `{self.common_name}` (sha256 {self.fingerprint[:16]}...)"
        return f"{shown}, trusted by `{self.trusted_by}`"


class _FormatError(ValueError):
    """The file is not a signature in this format."""


@dataclass(frozen=True)
class _Envelope:
    """What a signature file says before anything in it is trusted."""

    payload: bytes
    signature: bytes
    hint: str | None
    """The sha256 of the signer's public key in PEM."""
    chain: tuple[bytes, ...]
    """The signer's certificate, and those of intermediate authorities, in DER."""

    @property
    def message(self) -> bytes:
        """The bytes that are signed: DSSE's pre-authentication encoding."""
        return pre_authentication_encoding(self.payload)


def pre_authentication_encoding(payload: bytes) -> bytes:
    """What is signed for a payload (DSSE v1)."""
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def verify_signature(
    files: Mapping[str, str],
    signature: bytes,
    keys: Sequence[TrustedKey | Certificate],
    *,
    where: str = "the signature",
) -> Signer:
    """Check that a signature is valid, by one of the keys or certificates, and of exactly these files.

    `files` are relative paths with their sha256 in hexadecimal; `where` names the signature in messages. Raises
    NotTrustedError, and MissingPartError where neither `cryptography` nor `openssl` is installed.
    """
    try:
        envelope = _read_envelope(signature)
        signer = _verify(envelope, keys, where)
        name, signed = _read_statement(envelope.payload)
    except _FormatError as error:
        raise NotTrustedError(
            f"{where} is not a signature that can be verified: {error}",
            hint="sign again with `ortkit sign`, or with `model_signing` and a key or certificate",
        ) from error
    _check_files(files, signed, where)
    return replace(signer, name=name)


def _verify(envelope: _Envelope, keys: Sequence[TrustedKey | Certificate], where: str) -> Signer:
    """The signer, without the name that was signed; raises NotTrustedError where it is not a trusted one."""
    trusted = [key for key in keys if isinstance(key, TrustedKey)]
    if envelope.chain:
        return _verify_by_certificate(envelope, [key for key in keys if isinstance(key, Certificate)], where)
    candidates = [key for key in trusted if envelope.hint in {None, key.key.fingerprint}]
    if not candidates:
        named = f" (sha256 {envelope.hint[:16]}...)" if envelope.hint is not None else ""
        raise NotTrustedError(
            f"{where} is by a key{named} that is not trusted here; trusted: {_list_of(trusted)}", hint=_TRUST_KEY
        )
    for candidate in candidates:
        if _verifies(candidate.key, envelope):
            return Signer("", candidate.origin, candidate.key.fingerprint)
    raise NotTrustedError(f"{where} is not valid: it was changed, or made with another key", hint=_NEW_COPY)


def _verify_by_certificate(envelope: _Envelope, trusted: Sequence[Certificate], where: str) -> Signer:
    if not trusted:
        raise NotTrustedError(f"{where} is by a certificate, and none is trusted here", hint=_TRUST_CERTIFICATE)
    try:
        chain = [Certificate.from_der(encoded) for encoded in envelope.chain]
        anchor = check_chain(chain, trusted)
    except CertificateError as error:
        raise NotTrustedError(f"{where} is not trusted: {error}", hint=_TRUST_CERTIFICATE) from error
    if not _verifies(chain[0].key, envelope):
        raise NotTrustedError(f"{where} is not valid: it was changed, or made with another key", hint=_NEW_COPY)
    return Signer("", anchor.origin, chain[0].fingerprint, chain[0].common_name)


_NEW_COPY = "copy it again from the machine that signed it, or sign it again"
_TRUST_KEY = "if you trust who made it, get their public key on another way, and add it to `trusted_keys` in the policy"
_TRUST_CERTIFICATE = (
    "if you trust who made it, get the certificate of their authority on another way, and add it to "
    "`trusted_certificates` in the policy"
)


def _verifies(key: PublicKey, envelope: _Envelope) -> bool:
    return key.hash_name is not None and key.verifies(envelope.signature, envelope.message, key.hash_name)


def _list_of(trusted: Sequence[TrustedKey]) -> str:
    return ", ".join(f"`{key.origin}` ({key.key.fingerprint[:16]}...)" for key in trusted) or "no key"


def _check_files(files: Mapping[str, str], signed: Mapping[str, str], where: str) -> None:
    """Raise NotTrustedError unless exactly these files were signed."""
    if files == signed:
        return
    changed = sorted(name for name in files.keys() & signed.keys() if files[name] != signed[name])
    problems = (
        (changed, "changed since then"),
        (sorted(signed.keys() - files.keys()), "missing"),
        (sorted(files.keys() - signed.keys()), "not signed"),
    )
    found = "; ".join(f"{problem}: {_first_of(names)}" for names, problem in problems if names)
    raise NotTrustedError(f"{where} is of other files: {found}", hint=_NEW_COPY)


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _read_envelope(content: bytes) -> _Envelope:
    """Read a signature file; raises _FormatError. Nothing in it is trusted."""
    if len(content) > LARGEST_SIGNATURE:
        raise _FormatError(f"it has more than {LARGEST_SIGNATURE} bytes")
    outer = _object(_parsed(content, "it"), "it", {"mediaType", "verificationMaterial", "dsseEnvelope"})
    if outer["mediaType"] != MEDIA_TYPE:
        raise _FormatError(f"its `mediaType` is not `{MEDIA_TYPE}`")
    hint, chain = _read_material(outer["verificationMaterial"])
    envelope = _object(outer["dsseEnvelope"], "dsseEnvelope", {"payload", "payloadType", "signatures"})
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise _FormatError(f"its `payloadType` is not `{PAYLOAD_TYPE}`")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise _FormatError("it does not have exactly one signature")
    signature = _object(signatures[0], "signatures", {"sig"}, {"keyid"})
    if signature.get("keyid") not in (None, ""):
        raise _FormatError("its `keyid` is not empty")
    return _Envelope(_decoded(envelope["payload"], "payload"), _decoded(signature["sig"], "sig"), hint, chain)


def _read_material(value: object) -> tuple[str | None, tuple[bytes, ...]]:
    """The signer's key by its hint, or the chain of certificates."""
    if isinstance(value, dict) and "certificate" in value:
        raise _FormatError("it is a keyless signature, which needs Sigstore's transparency log on the network")
    material = _object(value, "verificationMaterial", set(), {"publicKey", "x509CertificateChain", "tlogEntries"})
    if material.get("tlogEntries", []) != [] or len(material.keys() - {"tlogEntries"}) != 1:
        raise _FormatError("`verificationMaterial` is not one key or one chain of certificates")
    if "publicKey" in material:
        key = _object(material["publicKey"], "publicKey", set(), {"hint"})
        hint = key.get("hint")
        if hint is not None and not _is_sha256(hint):
            raise _FormatError("`hint` is not the sha256 of a key")
        return hint, ()
    entries = _object(material["x509CertificateChain"], "x509CertificateChain", {"certificates"})["certificates"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= LONGEST_CHAIN:
        raise _FormatError(f"it does not have from 1 to {LONGEST_CHAIN} certificates")
    chain = (_object(entry, "certificates", {"rawBytes"})["rawBytes"] for entry in entries)
    return None, tuple(_decoded(entry, "rawBytes") for entry in chain)


def _read_statement(payload: bytes) -> tuple[str, dict[str, str]]:
    """The signed name, and the signed files with their sha256; raises _FormatError."""
    statement = _object(_parsed(payload, "its payload"), "payload", {"_type", "subject", "predicateType", "predicate"})
    if statement["_type"] != STATEMENT_TYPE or statement["predicateType"] != PREDICATE_TYPE:
        raise _FormatError(f"its payload is not a statement of `{PREDICATE_TYPE}`")
    subjects = statement["subject"]
    if not isinstance(subjects, list) or len(subjects) != 1:
        raise _FormatError("its payload does not have exactly one subject")
    subject = _object(subjects[0], "subject", {"name", "digest"})
    predicate = statement["predicate"]
    if not isinstance(predicate, dict):
        raise _FormatError("`predicate` is not an object")
    # Version 1.0 has verifiers ignore other fields of the predicate.
    how = predicate.get("serialization")
    if not isinstance(how, dict) or how.get("method") != "files" or how.get("hash_type") != "sha256":
        raise _FormatError("it does not list files by their sha256, but has another `serialization`")
    files = _read_resources(predicate.get("resources"))
    together = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in files.values())).hexdigest()
    if not isinstance(subject["name"], str) or subject["digest"] != {"sha256": together}:
        raise _FormatError("its subject is not that of its files")
    return subject["name"], files


def _read_resources(value: object) -> dict[str, str]:
    if not isinstance(value, list) or len(value) > _MOST_RESOURCES:
        raise _FormatError(f"`resources` is not a list of at most {_MOST_RESOURCES} files")
    files: dict[str, str] = {}
    for entry in value:
        resource = _object(entry, "resources", {"name", "algorithm", "digest"})
        name, digest = resource["name"], resource["digest"]
        if not isinstance(name, str) or name in files:
            raise _FormatError("`resources` has a name twice, or one that is not a string")
        if resource["algorithm"] != "sha256" or not _is_sha256(digest):
            raise _FormatError("`resources` has a digest that is not a sha256")
        files[name] = digest
    return files


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _object(value: object, name: str, needed: set[str], optional: set[str] | frozenset[str] = frozenset()) -> Any:
    """A JSON object with these keys; raises _FormatError for other keys and missing ones."""
    if not isinstance(value, dict):
        raise _FormatError(f"`{name}` is not an object")
    unknown, missing = value.keys() - needed - optional, needed - value.keys()
    if unknown or missing:
        problem = f"has the unknown field `{min(unknown)[:40]}`" if unknown else f"lacks `{min(missing)}`"
        raise _FormatError(f"`{name}` {problem}")
    return value


def _decoded(value: object, name: str) -> bytes:
    """Base64 in its one canonical form, so that a file cannot be changed without being refused."""
    try:
        found = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    # ValueError: characters that are not ASCII.
    except (binascii.Error, ValueError) as error:
        raise _FormatError(f"`{name}` is not valid base64") from error
    if found is None or base64.b64encode(found).decode("ascii") != value:
        raise _FormatError(f"`{name}` is not valid base64")
    return found


def _parsed(content: bytes, name: str) -> object:
    """Strict JSON; raises _FormatError."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _FormatError(f"{name} is not valid UTF-8") from error
    except _FormatError:
        raise
    except RepeatedKeyError as error:
        raise _FormatError(str(error)) from error
    except ValueError as error:
        raise _FormatError(f"{name} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise _FormatError(f"{name} is nested too deeply") from error


def _no_constant(name: str) -> NoReturn:
    raise _FormatError(f"`{name}` is not valid JSON")
