"""Signatures in OpenSSF's format: what is accepted, and that everything else is refused, by both ways to verify."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ortkit import MissingPartError, NotTrustedError, OrtkitError
from ortkit.exporters.packaging.sign import SigningKey, sign_files
from ortkit.runtime.trust import public_key, signature
from ortkit.runtime.trust.names import LARGEST_SIGNATURE
from ortkit.runtime.trust.public_key import TrustedKey, has_cryptography
from ortkit.runtime.trust.signature import pre_authentication_encoding, verify_signature
from ortkit.runtime.trust.x509 import Certificate, read_certificates
from tests.signers import CODE_SIGNING, issue, issue_authority, new_key, signing_key, trusted

OPENSSF = Path(__file__).parent / "openssf"
UPSTREAM_FILES = {
    "signme-1": "bc9a717db6064a32cbe9eae6fc40651dd6d36ef1757183f590eff2b1765d7ebc",
    "signme-2": "32dcb1f8e1ae52d5963e56a6ba06ab58b424c15ed2a6b70d2feca1d089370028",
}
CERTIFIED_FILES = UPSTREAM_FILES | {"signme-1": "f6310066c7320497ea554260c32c43660bff648cb2a61194832cc086077085e1"}
FILES = {"manifest.json": "a" * 64, "model.onnx": "b" * 64, "sub/tokenizer.json": "c" * 64}
KEY, OTHER = signing_key(), signing_key()
ROOT = issue_authority("Models of Example", key=new_key(ec.SECP384R1()))
LEAF = issue("Builder 7", ROOT, purposes=[CODE_SIGNING])
CERTIFIED = signing_key(LEAF.key, [LEAF.ours])
TRUSTED: list[TrustedKey | Certificate] = [trusted(OTHER, "other.pub"), trusted(KEY), ROOT.ours]


@pytest.fixture(params=["cryptography", "openssl"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Verify with the package `cryptography`, then with the command `openssl`."""
    assert has_cryptography(), "the tests need the extra `sign`"
    assert shutil.which("openssl"), "the tests need the command `openssl`"
    if request.param == "openssl":
        monkeypatch.setattr(public_key, "has_cryptography", lambda: False)
    return request.param


def refusal(content: bytes, files: dict[str, str] = FILES, keys: list = TRUSTED) -> NotTrustedError:
    with pytest.raises(NotTrustedError) as caught:
        verify_signature(files, content, keys)
    assert caught.value.exit_code == 7
    return caught.value


def edited(content: bytes, change: Callable[[dict], object]) -> bytes:
    """A signature file whose outer JSON was changed by a function."""
    outer = json.loads(content)
    change(outer)
    return json.dumps(outer).encode()


def signed_statement(change: Callable[[dict], object], key: SigningKey = KEY) -> bytes:
    """A valid signature of a statement that was changed before it was signed."""
    outer = json.loads(sign_files(FILES, "tiny", key))
    statement = json.loads(base64.b64decode(outer["dsseEnvelope"]["payload"]))
    statement = change(statement) or statement
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    outer["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    sig = key.sign(pre_authentication_encoding(payload))
    outer["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(sig).decode()
    return json.dumps(outer).encode()


@pytest.mark.usefixtures("either")
def test_a_signature_by_a_key() -> None:
    signer = verify_signature(FILES, sign_files(FILES, "tiny", KEY), TRUSTED)

    assert (signer.name, signer.trusted_by, signer.common_name) == ("tiny", "key.pub", None)
    assert str(signer) == f"key `key.pub` (sha256 {KEY.public.fingerprint[:16]}...)"


@pytest.mark.usefixtures("either")
def test_a_signature_by_a_certificate() -> None:
    signer = verify_signature(FILES, sign_files(FILES, "tiny", CERTIFIED), TRUSTED)

    assert (signer.common_name, signer.trusted_by) == ("Builder 7", "ca.pem")
    assert str(signer).startswith("certificate `Builder 7` (sha256 ")
    assert str(signer).endswith("...), trusted by `ca.pem`")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=["P-384", "P-521"])
@pytest.mark.usefixtures("either")
def test_other_curves(curve: ec.EllipticCurve) -> None:
    key = signing_key(new_key(curve))
    content = sign_files(FILES, "tiny", key)

    assert verify_signature(FILES, content, [trusted(key)]).fingerprint == key.public.fingerprint
    assert (
        "is not valid"
        in refusal(
            edited(content, lambda outer: outer["dsseEnvelope"].update(payload=base64.b64encode(b"{}").decode())),
            keys=[trusted(key)],
        ).message
    )


@pytest.mark.usefixtures("either")
def test_signatures_that_upstream_made() -> None:
    """Of the repository of `model_signing`: by a key, and by a certificate with an RSA authority and an RSA root."""
    key = TrustedKey.read(OPENSSF / "key.pub")
    (root,) = read_certificates(OPENSSF / "ca.pem")

    signer = verify_signature(UPSTREAM_FILES, (OPENSSF / "elliptic-key.sig").read_bytes(), [key])
    assert signer.name == "v1.1.0-elliptic-key"
    signer = verify_signature(CERTIFIED_FILES, (OPENSSF / "certificate.sig").read_bytes(), [root])
    assert (signer.name, signer.common_name) == ("v1.1.0-certificate", "intermediate-ca")

    for name, files in (("elliptic-key", UPSTREAM_FILES), ("certificate", CERTIFIED_FILES)):
        content = (OPENSSF / f"{name}.sig").read_bytes()
        changed = files | {"signme-2": "0" * 64}
        assert refusal(content, changed, [key, root]).message == (
            "the signature is of other files: changed since then: `signme-2`"
        )
        refusal(content, files, TRUSTED)


def test_a_keyless_signature() -> None:
    assert (
        "keyless signature, which needs Sigstore's transparency log"
        in refusal((OPENSSF / "keyless.sig").read_bytes(), UPSTREAM_FILES).message
    )


@pytest.mark.parametrize("changed", [None, "a.bin", "model.sig"])
def test_the_second_opinion_of_the_page(tmp_path: Path, changed: str | None) -> None:
    """What docs/signing.md has one type verifies a signature and the files, and refuses changed ones."""
    page = (Path(__file__).parents[3] / "docs" / "signing.md").read_text("utf-8")
    script = page.partition("```bash\n")[2].partition("```")[0]
    folder = tmp_path / "BUNDLE"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"content")
    content = sign_files({"a.bin": hashlib.sha256(b"content").hexdigest()}, "tiny", KEY)
    if changed == "model.sig":
        content = edited(content, put("dsseEnvelope", payload=base64.b64encode(b'{"predicate": {}}').decode()))
    (folder / "model.sig").write_bytes(content)
    (tmp_path / "key.pub").write_text(KEY.public.pem)
    if changed == "a.bin":
        (folder / "a.bin").write_bytes(b"Content")
    finished = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (finished.returncode == 0) == (changed is None), finished.stderr
    if changed is None:
        assert finished.stdout == "Verified OK\na.bin: OK\n"


def test_the_openssl_command_alone_verifies(tmp_path: Path) -> None:
    outer = json.loads(sign_files(FILES, "tiny", KEY))
    payload = base64.b64decode(outer["dsseEnvelope"]["payload"])
    (tmp_path / "pae").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload)
    (tmp_path / "sig").write_bytes(base64.b64decode(outer["dsseEnvelope"]["signatures"][0]["sig"]))
    (tmp_path / "key.pub").write_text(KEY.public.pem)

    arguments = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "sig", "pae"]
    assert subprocess.run(arguments, cwd=tmp_path, capture_output=True, check=True).stdout == b"Verified OK\n"


@pytest.mark.usefixtures("either")
def test_bytes_after_the_signature(either: str) -> None:
    """`openssl dgst` would ignore them where the signature has the greatest length of one."""
    for _ in range(200):
        outer = json.loads(sign_files(FILES, "tiny", KEY))
        sig = base64.b64decode(outer["dsseEnvelope"]["signatures"][0]["sig"])
        longer = base64.b64encode(sig + b"more").decode()
        content = edited(json.dumps(outer).encode(), put("dsseEnvelope", signatures=[{"sig": longer}]))
        assert "is not valid: it was changed" in refusal(content).message
        if len(sig) == 72:
            return
    pytest.fail(f"no signature of 72 bytes in 200, with {either}")


def test_a_key_that_is_not_trusted() -> None:
    found = refusal(sign_files(FILES, "tiny", signing_key()))

    known = {"other.pub": OTHER, "key.pub": KEY}
    shown = ", ".join(f"`{name}` ({key.public.fingerprint[:16]}...)" for name, key in known.items())
    assert found.message.startswith("the signature is by a key (sha256 ")
    assert found.message.endswith(f"...) that is not trusted here; trusted: {shown}")
    assert "add it to `trusted_keys` in the policy" in str(found.hint)


@pytest.mark.usefixtures("either")
def test_a_signature_without_a_hint_is_tried_with_every_key() -> None:
    content = edited(
        sign_files(FILES, "tiny", KEY), lambda outer: outer["verificationMaterial"]["publicKey"].pop("hint")
    )

    assert verify_signature(FILES, content, TRUSTED).trusted_by == "key.pub"
    assert refusal(content, keys=[trusted(OTHER)]).message == (
        "the signature is not valid: it was changed, or made with another key"
    )


@pytest.mark.usefixtures("either")
def test_a_hint_that_is_another_keys() -> None:
    content = edited(
        sign_files(FILES, "tiny", OTHER),
        lambda outer: outer["verificationMaterial"]["publicKey"].update(hint=KEY.public.fingerprint),
    )

    assert "is not valid: it was changed" in refusal(content).message


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (FILES | {"manifest.json": "d" * 64}, "changed since then: `manifest.json`"),
        (FILES | {"extra": "d" * 64}, "not signed: `extra`"),
        ({name: FILES[name] for name in ("manifest.json", "model.onnx")}, "missing: `sub/tokenizer.json`"),
        (
            {f"{letter}.bin": "d" * 64 for letter in "wxyz"},
            "missing: `manifest.json`, `model.onnx`, `sub/tokenizer.json`; not signed: `w.bin`, `x.bin`, `y.bin`, ...",
        ),
    ],
)
def test_other_files_than_were_signed(files: dict[str, str], problem: str) -> None:
    assert refusal(sign_files(FILES, "tiny", KEY), files).message == f"the signature is of other files: {problem}"


@pytest.mark.usefixtures("either")
def test_certificates_without_a_trusted_one() -> None:
    content = sign_files(FILES, "tiny", CERTIFIED)
    other = issue_authority("Models of Example")

    assert refusal(content, keys=[trusted(KEY)]).message == (
        "the signature is by a certificate, and none is trusted here"
    )
    assert (
        "the signature is not trusted: the signature of the certificate `Builder 7`"
        in refusal(content, keys=[other.ours]).message
    )


@pytest.mark.usefixtures("either")
def test_a_signature_by_another_key_than_the_certificates() -> None:
    content = sign_files(FILES, "tiny", signing_key(None, [LEAF.ours]))

    assert "is not valid: it was changed" in refusal(content).message


def nested(outer: dict, *names: object) -> dict:
    for name in names:
        outer = outer[name]
    return outer


def put(*names: object, **values: object) -> Callable[[dict], object]:
    return lambda outer: nested(outer, *names).update(values)


OUTER = {
    "mediaType": (put(mediaType="application/json"), "its `mediaType` is not"),
    "unknown field": (put(more=1), "`it` has the unknown field `more`"),
    "no envelope": (lambda outer: outer.pop("dsseEnvelope"), "`it` lacks `dsseEnvelope`"),
    "payload type": (put("dsseEnvelope", payloadType="text/plain"), "its `payloadType` is not"),
    "payload": (put("dsseEnvelope", payload="e30"), "`payload` is not valid base64"),
    "payload kind": (put("dsseEnvelope", payload=7), "`payload` is not valid base64"),
    "payload not ASCII": (put("dsseEnvelope", payload="é==="), "`payload` is not valid base64"),
    "two signatures": (
        lambda outer: outer["dsseEnvelope"]["signatures"].append({"sig": "AAAA"}),
        "it does not have exactly one signature",
    ),
    "no signature": (put("dsseEnvelope", signatures=[]), "it does not have exactly one signature"),
    "empty signature": (put("dsseEnvelope", signatures=[{"sig": ""}]), "the signature is not valid"),
    "key id": (put("dsseEnvelope", signatures=[{"sig": "AAAA", "keyid": "x"}]), "its `keyid` is not empty"),
    "key id of another type": (put("dsseEnvelope", signatures=[{"sig": "AAAA", "keyid": []}]), "`keyid` is not empty"),
    "a log": (put("verificationMaterial", tlogEntries=[{}]), "is not one key or one chain"),
    "both": (put("verificationMaterial", x509CertificateChain={}), "is not one key or one chain"),
    "neither": (put(verificationMaterial={"tlogEntries": []}), "is not one key or one chain"),
    "hint": (put("verificationMaterial", publicKey={"hint": "A" * 64}), "`hint` is not the sha256 of a key"),
    "no certificates": (
        put(verificationMaterial={"x509CertificateChain": {"certificates": []}}),
        "it does not have from 1 to 8 certificates",
    ),
    "many certificates": (
        put(verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}] * 9}}),
        "it does not have from 1 to 8 certificates",
    ),
    "a certificate": (
        put(verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}),
        "a certificate in the signature is not valid",
    ),
}


@pytest.mark.parametrize("case", OUTER)
@pytest.mark.usefixtures("either")
def test_files_that_are_not_signatures(case: str) -> None:
    change, problem = OUTER[case]

    assert problem in refusal(edited(sign_files(FILES, "tiny", KEY), change)).message


STATEMENTS = {
    "type": (put(_type="https://in-toto.io/Statement/v0.1"), "its payload is not a statement of"),
    "predicate type": (put(predicateType="https://model_signing/Digests/v0.1"), "its payload is not a statement of"),
    "two subjects": (lambda s: s["subject"].append(s["subject"][0]), "does not have exactly one subject"),
    "digest of the subject": (put("subject", 0, digest={"sha256": "0" * 64}), "its subject is not that of its files"),
    "predicate": (put(predicate=[]), "`predicate` is not an object"),
    "shards": (put("predicate", "serialization", method="shards"), "has another `serialization`"),
    "blake3": (put("predicate", "serialization", hash_type="blake3"), "has another `serialization`"),
    "resources": (put("predicate", resources={}), "`resources` is not a list of at most"),
    "no resources": (lambda s: s["predicate"].pop("resources") and None, "`resources` is not a list of at most"),
    "algorithm": (put("predicate", "resources", 0, algorithm="md5"), "has a digest that is not a sha256"),
    "digest": (put("predicate", "resources", 0, digest="A" * 64), "has a digest that is not a sha256"),
    "name": (put("predicate", "resources", 0, name=7), "has a name twice, or one that is not a string"),
    "same name": (put("predicate", "resources", 0, name="model.onnx"), "has a name twice"),
    "not JSON": (lambda _: b"}", "its payload is not valid JSON"),
    "not UTF-8": (lambda _: b"\xff", "its payload is not valid UTF-8"),
    "same key": (lambda _: b'{"_type": 1, "_type": 2}', "the key `_type` is there twice"),
    "NaN": (lambda _: b'{"_type": NaN}', "`NaN` is not valid JSON"),
    "nested": (lambda _: b"[" * 100_000, "its payload is nested too deeply"),
    "a list": (lambda _: b"[]", "`payload` is not an object"),
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_valid_signatures_of_other_statements(case: str) -> None:
    change, problem = STATEMENTS[case]

    assert problem in refusal(signed_statement(change)).message


def test_other_fields_of_the_predicate_are_ignored() -> None:
    """Version 1.0 of the predicate says so."""
    content = signed_statement(put("predicate", annotations={"a": 1}))

    assert verify_signature(FILES, content, TRUSTED).name == "tiny"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is not valid JSON"),
        (b" " * (LARGEST_SIGNATURE + 1), f"it has more than {LARGEST_SIGNATURE} bytes"),
        (b"[" * 1_000_000, "it is nested too deeply"),
        (b"1" * 1_000_000, "it is not valid JSON"),
        (b'{"a":' * 400_000, "it is nested too deeply"),
        (("{" + ",".join(f'"{key}":[]' for key in range(140_000)) + ',"0":0}').encode(), "the key `0` is there twice"),
    ],
    ids=["empty", "large", "nested", "a number", "nested objects", "keys"],
)
def test_bombs(content: bytes, problem: str) -> None:
    assert problem in refusal(content).message


def test_neither_cryptography_nor_openssl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = sign_files(FILES, "tiny", KEY)
    monkeypatch.setattr(public_key, "has_cryptography", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MissingPartError) as caught:
        verify_signature(FILES, content, TRUSTED)
    assert caught.value.message == (
        "signatures cannot be verified: neither the Python package `cryptography` nor the command `openssl` is "
        "installed"
    )
    assert caught.value.hint == (
        "install `cryptography` (`pip install 'ortkit[sign]'`), or the system's package `openssl`"
    )


def test_an_openssl_that_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It must not be taken for a verification."""
    content = sign_files(FILES, "tiny", KEY)
    monkeypatch.setattr(public_key, "has_cryptography", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = tmp_path / "openssl"
    command.write_text("#!/bin/sh\nexit 3\n")
    command.chmod(0o755)

    with pytest.raises(OrtkitError, match="ended with exit code 3"):
        verify_signature(FILES, content, TRUSTED)
    command.write_bytes(b"\x7fELF")
    with pytest.raises(OrtkitError, match="signatures cannot be verified with"):
        verify_signature(FILES, content, TRUSTED)


def test_the_configuration_of_openssl_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's configuration could load an engine, which is code."""
    (tmp_path / "openssl.cnf").write_text("openssl_conf = broken\n[broken]\nproviders = none\n[none]\nx = y\n[y]\n!")
    monkeypatch.setenv("OPENSSL_CONF", str(tmp_path / "openssl.cnf"))
    monkeypatch.setattr(public_key, "has_cryptography", lambda: False)

    assert verify_signature(FILES, sign_files(FILES, "tiny", KEY), TRUSTED).name == "tiny"


class Mutations:
    """Seeded changes of signature files: bytes, spans, JSON values, and what lies inside of base64."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        files = {"manifest.json": "1" * 64, "model.onnx": "2" * 64}
        self.originals = [sign_files(FILES, "tiny", KEY), sign_files(FILES, "tiny", CERTIFIED)]
        self.donors = [
            *self.originals,
            sign_files(files, "other", KEY),
            sign_files(FILES, "tiny", signing_key()),
            sign_files(files, "other", CERTIFIED),
            (OPENSSF / "certificate.sig").read_bytes(),
        ]

    def one(self) -> bytes:
        original = self.chance.choice(self.originals)
        kind = self.chance.choice([self.bytes, self.bytes, self.spliced, self.values, self.inside, self.inside])
        for _ in range(self.chance.choice([1, 1, 1, 2, 5])):
            original = kind(original)
        return original

    def bytes(self, content: bytes) -> bytes:
        """A flipped bit, another byte, a span that is cut out, doubled or moved, or the end cut off."""
        if not content:
            return content
        changed = bytearray(content)
        at, size = self.chance.randrange(len(content)), self.chance.randrange(1, 64)
        way = self.chance.randrange(6)
        if way == 0:
            changed[at] ^= 1 << self.chance.randrange(8)
        elif way == 1:
            changed[at] = self.chance.randrange(256)
        elif way == 2:
            del changed[at : at + size]
        elif way == 3:
            changed[at:at] = changed[at : at + size]
        elif way == 4:
            to = self.chance.randrange(len(content))
            changed[to : to + size] = changed[at : at + size]
        else:
            del changed[at:]
        return bytes(changed)

    def spliced(self, content: bytes) -> bytes:
        """The beginning of one file and the end of another, or one's value in another."""
        donor = self.chance.choice(self.donors)
        if self.chance.random() < 0.5:
            return content[: self.chance.randrange(len(content) + 1)] + donor[self.chance.randrange(len(donor)) :]
        try:
            outer, other = json.loads(content), json.loads(donor)
            place = self.chance.choice(["verificationMaterial", "payload", "signatures"])
            if place == "verificationMaterial":
                outer[place] = other[place]
            else:
                outer["dsseEnvelope"][place] = other["dsseEnvelope"][place]
        except (ValueError, LookupError, TypeError):
            return content[:-1]
        return json.dumps(outer).encode()

    def values(self, content: bytes) -> bytes:
        """Another value, or none, somewhere in the JSON."""
        try:
            outer = json.loads(content)
        except ValueError:
            return self.bytes(content)
        places = list(self.places(outer))
        if not places:
            return self.bytes(content)
        parent, key = self.chance.choice(places)
        strange = [None, True, 0, -1, 1e308, "", "x" * 1000, [], {}, [[]], {"sig": ""}, "\ud800", 10**400]
        if self.chance.random() < 0.3:
            del parent[key]
        else:
            parent[key] = self.chance.choice(strange)
        return json.dumps(outer).encode()

    def places(self, value: object):
        if isinstance(value, dict | list):
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                yield value, key
                yield from self.places(value[key])

    def inside(self, content: bytes) -> bytes:
        """Changed bytes of the payload, the signature or a certificate, in valid base64."""
        try:
            outer = json.loads(content)
            texts = [(outer["dsseEnvelope"], "payload"), (outer["dsseEnvelope"]["signatures"][0], "sig")]
            chain = outer["verificationMaterial"].get("x509CertificateChain", {}).get("certificates", [])
            texts += [(one, "rawBytes") for one in chain]
            parent, key = self.chance.choice(texts)
            parent[key] = base64.b64encode(self.bytes(base64.b64decode(parent[key]))).decode()
        except (ValueError, LookupError, TypeError, AttributeError):
            return self.bytes(content)
        return json.dumps(outer).encode()


def same(content: bytes, originals: list[bytes]) -> bool:
    """Whether a changed file says the same as one that it may have been made of: white space, a valid `keyid`."""
    try:
        found = json.loads(content)
        found["dsseEnvelope"]["signatures"][0].pop("keyid", None)
        found["verificationMaterial"].pop("tlogEntries", None)
        found["verificationMaterial"].get("publicKey", {}).pop("hint", None)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
    known = []
    for original in originals:
        value = json.loads(original)
        value["dsseEnvelope"]["signatures"][0].pop("keyid")
        value["verificationMaterial"].pop("tlogEntries")
        value["verificationMaterial"].get("publicKey", {}).pop("hint", None)
        known.append(value)
    return found in known


def check_mutations(seed: int, count: int) -> int:
    """How many of the mutations say something else; each is refused with an error of ours."""
    mutations, changed = Mutations(seed), 0
    for _ in range(count):
        content = mutations.one()
        assert len(content) < LARGEST_SIGNATURE
        try:
            verify_signature(FILES, content, TRUSTED)
        except NotTrustedError:
            changed += 1
        else:
            assert same(content, mutations.originals), content
    return changed


def test_mutations_are_refused() -> None:
    assert check_mutations(seed=1, count=600) > 500


@pytest.mark.slow
def test_many_mutations_are_refused() -> None:
    assert check_mutations(seed=2, count=20_000) > 18_000


@pytest.mark.slow
def test_mutations_are_refused_with_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_key, "has_cryptography", lambda: False)

    assert check_mutations(seed=3, count=300) > 250


def test_the_same_verdicts_on_mutated_curves_and_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are not valid verify nothing, by either way: a point that is not on the curve, RSA of any size."""
    content = sign_files(FILES, "tiny", KEY)
    spki = bytearray(KEY.public.spki)
    spki[-1] ^= 1
    key = TrustedKey(dataclasses.replace(KEY.public, spki=bytes(spki)), "key.pub")
    content = edited(content, put("verificationMaterial", publicKey={}))
    for way in (True, False):
        monkeypatch.setattr(public_key, "has_cryptography", lambda way=way: way)
        assert "is not valid" in refusal(content, keys=[key]).message


def test_the_module_needs_the_standard_library_alone() -> None:
    """The installer of a kit runs it with the system's Python."""
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import ortkit.runtime.trust.policy\n"
        "roots = {name.split('.')[0] for name, module in sys.modules.items() if module}\n"
        "print(*sorted(roots - sys.stdlib_module_names - {'ortkit', '__main__'}))"
    )
    root = str(Path(signature.__file__).parents[3])
    finished = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": root},
    )
    assert finished.stdout.split() == []
