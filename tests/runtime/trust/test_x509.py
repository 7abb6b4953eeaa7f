"""Chains of certificates: the same verdicts as `openssl verify`, and where ours are stricter, why."""

from __future__ import annotations

import datetime as dt
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ortkit import InputError, NotFoundError
from ortkit.runtime.trust import public_key
from ortkit.runtime.trust.der import DerError, elements, single
from ortkit.runtime.trust.public_key import PublicKey, TrustedKey
from ortkit.runtime.trust.x509 import Certificate, CertificateError, check_chain, read_certificates
from tests.signers import (
    BEGIN,
    CODE_SIGNING,
    WEB_SERVER,
    YEAR,
    Issued,
    issue,
    issue_authority,
    new_key,
    signing_key,
    spki_of,
)

RSA = rsa.generate_private_key(65537, 2048)


@dataclass(frozen=True)
class Case:
    """A chain, what is trusted, and the problem that we see; None where both accept the chain."""

    chain: list[Issued]
    trusted: list[Issued]
    problem: str | None = None
    differs: bool = False
    """Whether `openssl verify` says otherwise: it is not asked for code signing, and tries one issuer of a name."""


def root(**settings: object) -> Issued:
    return issue_authority("root", **settings)


def plain() -> Case:
    top = root()
    return Case([issue("leaf", top)], [top])


def intermediate(**settings: object) -> Callable[[], Case]:
    """A chain with one authority between, made with these settings."""

    def make() -> Case:
        top = root()
        middle = issue_authority("middle", top, **settings)
        return Case([issue("leaf", middle), middle], [top])

    return make


def refused(make: Callable[[], Case], problem: str, *, differs: bool = False) -> Callable[[], Case]:
    def made() -> Case:
        case = make()
        return Case(case.chain, case.trusted, problem, differs)

    return made


def leaf(**settings: object) -> Callable[[], Case]:
    def make() -> Case:
        top = root()
        return Case([issue("leaf", top, **settings)], [top])  # type: ignore[arg-type]

    return make


def deep(count: int, *, path_length: int | None = None) -> Callable[[], Case]:
    """A chain of `count` authorities below the root, whose path length is limited."""

    def make() -> Case:
        chain = [root(path_length=path_length)]
        for number in range(count):
            chain.append(issue_authority(f"authority {number}", chain[-1]))
        chain.append(issue("leaf", chain[-1]))
        return Case(chain[:0:-1], chain[:1])

    return make


def shuffled() -> Case:
    case = deep(3)()
    return Case([case.chain[0], *reversed(case.chain[1:])], case.trusted)


def other_root() -> Case:
    case = plain()
    return Case(case.chain, [root()], "the signature of the certificate `leaf`")


def without_middle() -> Case:
    case = deep(1)()
    return Case(case.chain[:1], case.trusted, "was not issued by a trusted certificate")


def pinned_leaf() -> Case:
    case = plain()
    return Case(case.chain, case.chain)


def pinned_middle() -> Case:
    case = deep(2)()
    return Case(case.chain, [case.chain[1]])


def two_roots_of_one_name() -> Case:
    case = plain()
    return Case(case.chain, [root(), *case.trusted], differs=True)


def cross_signed() -> Case:
    """The authority's key is certified by a root that is not trusted, and by one that is."""
    old, new = issue_authority("old root"), issue_authority("new root")
    by_old = issue_authority("middle", old)
    by_new = issue_authority("middle", new, key=by_old.key)
    return Case([issue("leaf", by_old), by_old, by_new], [new], differs=True)


def a_loop() -> Case:
    """Two authorities that certify each other."""
    key = new_key()
    first = issue_authority("first", issue_authority("second"), key=key)
    second = issue_authority("second", first)
    first = issue_authority("first", second, key=key)
    return Case([issue("leaf", first), first, second], [root()], "was not issued by a trusted certificate")


def forged() -> Case:
    """Signed by another key than that of the issuer whose name it has."""
    top = root()
    return Case([issue("leaf", top, signed_by=new_key())], [top], "is not that of the certificate `root`")


def leaf_as_authority() -> Case:
    """A signer's certificate that issues another one."""
    top = root()
    middle = issue("signer", top)
    return Case([issue("leaf", middle), middle], [top], "the certificate `signer` ")


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
NAMES = x509.NameConstraints([x509.DNSName("example.org")], None)
NOT_AUTHORITY, NOT_FOR_SIGNING = "is not a certificate authority", "is not for signing: it needs keyUsage"
UNSUPPORTED = "has name constraints or another critical extension that is not supported"
CASES: dict[str, Callable[[], Case]] = {
    "by a root": plain,
    "one authority between": intermediate(),
    "three authorities between": deep(3),
    "authorities in another order": shuffled,
    "an RSA root": lambda: Case([issue("leaf", top := root(key=RSA))], [top]),
    "a root on P-521": lambda: Case([issue("leaf", top := root(key=new_key(ec.SECP521R1())))], [top]),
    "a signer on P-384": leaf(key=new_key(ec.SECP384R1())),
    "code signing": leaf(purposes=[CODE_SIGNING]),
    "code signing without key usage": leaf(usages=None, purposes=[CODE_SIGNING]),
    "a signer that is also an authority": leaf(authority=True, usages=("digital_signature", "key_cert_sign")),
    "an authority for code signing": intermediate(purposes=[CODE_SIGNING]),
    "an authority without key usage": intermediate(usages=None),
    "the signer's own is trusted": pinned_leaf,
    "an authority between is trusted": pinned_middle,
    "two roots of one name": two_roots_of_one_name,
    "cross-signed": cross_signed,
    "expired long ago": leaf(begin=dt.datetime(2026, 2, 1, tzinfo=dt.UTC), end=dt.datetime(2026, 2, 2, tzinfo=dt.UTC)),
    "path length 0": deep(0, path_length=0),
    "path length 1": deep(1, path_length=1),
    "an extension that is not critical": leaf(extensions=[(UNKNOWN, False)]),
    "path length exceeded": refused(deep(1, path_length=0), "must not have 1 authorities below it"),
    "path length exceeded by two": refused(deep(3, path_length=1), "must not have 3 authorities below it"),
    "another root": other_root,
    "an authority is missing": without_middle,
    "forged": forged,
    "a loop": a_loop,
    "issued by a signer": leaf_as_authority,
    "not an authority": refused(intermediate(authority=False, usages=("digital_signature",)), NOT_AUTHORITY),
    "an authority that must not sign": refused(intermediate(usages=("crl_sign",)), NOT_AUTHORITY),
    "an authority that had ended": refused(
        intermediate(begin=BEGIN - 2 * YEAR), "was not valid when the signer's certificate began"
    ),
    "an authority that began later": refused(
        intermediate(begin=BEGIN + YEAR / 2), "was not valid when the signer's certificate began"
    ),
    "a critical extension": refused(leaf(extensions=[(UNKNOWN, True)]), UNSUPPORTED),
    "a critical extension of an authority": refused(intermediate(extensions=[(UNKNOWN, True)]), UNSUPPORTED),
    "without basic constraints": refused(intermediate(authority=None, usages=("key_cert_sign",)), NOT_AUTHORITY),
    "name constraints": refused(intermediate(extensions=[(NAMES, True)]), UNSUPPORTED, differs=True),
    "an authority for web servers": refused(
        intermediate(purposes=[WEB_SERVER]), "does not issue certificates for code signing", differs=True
    ),
    "of a web server": refused(
        leaf(usages=("digital_signature", "key_encipherment"), purposes=[WEB_SERVER]), NOT_FOR_SIGNING, differs=True
    ),
    "for key agreement": refused(leaf(usages=("key_agreement",)), NOT_FOR_SIGNING, differs=True),
    "code signing that must not sign": refused(
        leaf(usages=("key_agreement",), purposes=[CODE_SIGNING]), NOT_FOR_SIGNING, differs=True
    ),
    "without usages": refused(leaf(usages=None), NOT_FOR_SIGNING, differs=True),
    "an RSA signer": refused(leaf(key=RSA), "has an RSA 2048 key, not an elliptic-curve key", differs=True),
}


@pytest.fixture(params=["cryptography", "openssl"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "openssl":
        monkeypatch.setattr(public_key, "has_cryptography", lambda: False)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("either")
def test_chains(name: str) -> None:
    case = CASES[name]()
    chain, trusted = [one.ours for one in case.chain], [one.ours for one in case.trusted]
    if case.problem is None:
        assert check_chain(chain, trusted) in trusted
        return
    with pytest.raises(CertificateError) as caught:
        check_chain(chain, trusted)
    assert case.problem in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_openssl_has_the_same_verdict(name: str, tmp_path: Path) -> None:
    """As of the same moment, with any trusted certificate as an anchor; it does not check what the signer is for."""
    case = CASES[name]()
    (tmp_path / "trusted.pem").write_bytes(b"".join(one.pem for one in case.trusted))
    (tmp_path / "others.pem").write_bytes(b"".join(one.pem for one in case.chain[1:] or case.chain))
    (tmp_path / "leaf.pem").write_bytes(case.chain[0].pem)
    moment = str(case.chain[0].ours.not_before)
    options = ["-attime", moment, "-partial_chain", "-CAfile", "trusted.pem", "-untrusted", "others.pem"]
    finished = subprocess.run(
        ["openssl", "verify", "-no-CApath", *options, "leaf.pem"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (finished.returncode == 0) == ((case.problem is None) != case.differs), finished.stderr


def test_a_chain_of_too_many_certificates() -> None:
    case = deep(8)()
    with pytest.raises(CertificateError, match="the signature has 9 certificates; from 1 to 8 are possible"):
        check_chain([one.ours for one in case.chain], [one.ours for one in case.trusted])


def test_a_bush_of_authorities_is_searched_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many trusted certificates of one name is tried; a few verifications are enough for real chains."""
    monkeypatch.setattr(public_key, "has_cryptography", lambda: True)
    count = 0
    verify = public_key._by_cryptography

    def counted(*arguments: object) -> bool:
        nonlocal count
        count += 1
        return verify(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(public_key, "_by_cryptography", counted)
    case, key = plain(), new_key()
    others = [root(key=key) for _ in range(100)]
    with pytest.raises(CertificateError):
        check_chain([one.ours for one in case.chain], [one.ours for one in others])
    assert count <= 32


def test_fields_of_a_certificate() -> None:
    made = issue(
        "Ärger \x1b[31m",
        begin=dt.datetime(2049, 12, 31, tzinfo=dt.UTC),
        end=dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC),
    )
    ours = made.ours

    assert ours.common_name == "Ärger \x1b[31m"
    assert ours.not_before == made.made.not_valid_before_utc.timestamp()
    assert ours.not_after == made.made.not_valid_after_utc.timestamp()
    assert ours.key.spki == spki_of(made.key)
    assert ours.fingerprint == made.made.fingerprint(made.made.signature_hash_algorithm).hex()
    assert ours.signed == made.made.tbs_certificate_bytes


def test_a_critical_extension_that_is_not_in_der() -> None:
    """Another byte than 0xff is true as well, in BER: such an extension must not pass for one that may be ignored."""
    encoded = issue("leaf", root(), extensions=[(UNKNOWN, True)]).ours.encoded
    marked = b"\x06\x04\x2a\x03\x04\x05\x01\x01"
    assert encoded.count(marked + b"\xff") == 1

    for flag in (b"\x01", b"\x00"):
        with pytest.raises(CertificateError, match="an extension's `critical` is not in its DER form"):
            Certificate.from_der(encoded.replace(marked + b"\xff", marked + flag))


def test_damaged_certificates_are_refused() -> None:
    """Every byte changed in turn, and every length cut: either it is refused, or it is not trusted."""
    top = root()
    encoded = issue("leaf", top, purposes=[CODE_SIGNING]).ours.encoded
    refusals = 0
    for place in range(len(encoded)):
        for changed in (
            encoded[:place],
            encoded[:place] + bytes([encoded[place] ^ 1 << place % 8]) + encoded[place + 1 :],
        ):
            with pytest.raises(CertificateError):
                check_chain([Certificate.from_der(changed)], [top.ours])
            refusals += 1
    assert refusals == 2 * len(encoded)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "ends within an element"),
        (b"\x30", "ends within an element"),
        (b"\x30\x80\x00\x00", "indefinite or too large"),
        (b"\x30\x81\x7f", "not in its shortest form"),
        (b"\x30\x82\x00\x80" + bytes(128), "not in its shortest form"),
        (b"\x30\x84\x01\x00\x00\x00", "indefinite or too large"),
        (b"\x1f\x81\x01\x00", "a tag of several bytes"),
        (b"\x30\x05\x00", "ends within an element"),
        (b"\x05\x00\x00", "it is followed by 1 bytes"),
    ],
)
def test_der_that_is_not_valid(data: bytes, problem: str) -> None:
    with pytest.raises(DerError, match=problem):
        single(data, "it")


def test_a_sequence_of_many_elements() -> None:
    with pytest.raises(DerError, match="more than 256 elements"):
        elements(b"\x05\x00" * 257)


def test_keys_that_are_not_for_signatures(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    def pem_of(key: object) -> str:
        public = key.public_key()  # type: ignore[attr-defined]
        return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()

    def problem_of(content: str) -> str:
        (tmp_path / "key.pub").write_text(content)
        with pytest.raises(InputError) as caught:
            TrustedKey.read(tmp_path / "key.pub")
        return caught.value.message.replace(str(tmp_path), "")

    good = pem_of(new_key())
    private = new_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert problem_of(pem_of(RSA)) == "`/key.pub` is an RSA 2048 key, not an elliptic-curve key"
    assert problem_of(pem_of(ed25519.Ed25519PrivateKey.generate())) == (
        "`/key.pub` is not a key for signatures: a key that is neither an elliptic-curve key nor an RSA key"
    )
    assert "on another curve than P-256, P-384 and P-521" in problem_of(pem_of(new_key(ec.SECP256K1())))
    assert "an RSA key of 1024 bits" in problem_of(pem_of(rsa.generate_private_key(65537, 1024)))
    assert problem_of(good + good) == "`/key.pub` has 2 public keys"
    assert problem_of("hello") == (
        "`/key.pub` is not a public key in PEM: it has no block `-----BEGIN PUBLIC KEY-----`"
    )
    assert problem_of(private.decode()) == "`/key.pub` is a private key, and a public key is needed to verify"
    assert problem_of(good.replace("A", "=", 1)).startswith("`/key.pub` is damaged: ")
    assert problem_of("x" * ((1 << 20) + 1)) == (
        "`/key.pub` has more than 1048576 bytes, the limit for keys and certificates"
    )
    with pytest.raises(NotFoundError, match="there is no file"):
        TrustedKey.read(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        TrustedKey.read(tmp_path)
    (tmp_path / "ca.pem").write_text(good)
    with pytest.raises(InputError, match="is not a certificate in PEM"):
        read_certificates(tmp_path / "ca.pem")


def test_a_key_is_the_one_that_openssl_writes(tmp_path: Path) -> None:
    """With text around it, as `openssl x509 -text` and other tools write."""
    key = signing_key()
    (tmp_path / "key.pub").write_text(f"some text\n{key.public.pem}more text\n")
    shown = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", "key.pub"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert TrustedKey.read(tmp_path / "key.pub").key == key.public
    assert shown.stdout == key.public.pem
    assert PublicKey.from_spki(key.public.spki).algorithm == "EC P-256"
