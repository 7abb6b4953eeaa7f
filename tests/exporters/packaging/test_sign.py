"""Making keys and signing: what is written, what is refused, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ortkit import Bundle, BundleError, InputError, NotFoundError, OutputError
from ortkit.exporters.packaging import sign as signing
from ortkit.exporters.packaging.kit import plan_kit, write_kit
from ortkit.exporters.packaging.pack import pack
from ortkit.exporters.packaging.sign import SigningKey, generate_key, read_key, sign_bundle, sign_files, sign_layout
from ortkit.runtime.installer.kit_file import Kit
from ortkit.runtime.installer.kit_format import Parts
from ortkit.runtime.output_path import try_lock
from ortkit.runtime.pack.oci_layout import OciLayout
from ortkit.runtime.trust.policy import verify_bundle
from ortkit.runtime.trust.public_key import TrustedKey
from ortkit.runtime.trust.signature import verify_signature
from tests.commands import Finished
from tests.kits import PLATFORM, PYTHON, wheelhouse
from tests.marks import number_of_kills
from tests.signers import CODE_SIGNING, files_of, issue, issue_authority, new_key, signing_key, trusted
from tests.tiny_bundles import write_embedder

KEY = signing_key()


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedder(tmp_path_factory.mktemp("tiny") / "embedder").path


@pytest.fixture
def bundle(unsigned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unsigned, tmp_path / "bundle"))


def no_passphrase() -> bytes:
    pytest.fail("a key that is not encrypted needs no passphrase")


def verifies(bundle: Path, key: SigningKey = KEY) -> bool:
    return verify_bundle(bundle, files_of(bundle), (trusted(key),)).name == "tiny-embedder"


def test_a_new_key(tmp_path: Path) -> None:
    """Whatever the umask says, nobody else can read the private key."""
    before = os.umask(0)
    try:
        made = generate_key(tmp_path / "key.pem", tmp_path / "key.pub")
    finally:
        os.umask(before)
    read = read_key(tmp_path / "key.pem", passphrase=no_passphrase)

    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert (tmp_path / "key.pem").read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
    assert made == read.public == TrustedKey.read(tmp_path / "key.pub").key
    assert made.algorithm == "EC P-256"
    shown = subprocess.run(["openssl", "pkey", "-in", tmp_path / "key.pem", "-pubout"], capture_output=True, check=True)
    assert shown.stdout == (tmp_path / "key.pub").read_bytes()


def test_a_key_with_a_passphrase(tmp_path: Path) -> None:
    generate_key(tmp_path / "key.pem", tmp_path / "key.pub", passphrase=b"secret")

    assert (tmp_path / "key.pem").read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert read_key(tmp_path / "key.pem", passphrase=lambda: b"secret").public.algorithm == "EC P-256"
    with pytest.raises(InputError) as caught:
        read_key(tmp_path / "key.pem", passphrase=lambda: b"Secret")
    assert caught.value.message == (
        f"the private key `{tmp_path / 'key.pem'}` cannot be read: its passphrase is another one, or it is damaged"
    )


@pytest.mark.parametrize("existing", ["key.pem", "key.pub"])
def test_a_key_is_never_replaced(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(OutputError) as caught:
        generate_key(tmp_path / "key.pem", tmp_path / "key.pub")

    assert caught.value.message == f"`{tmp_path / existing}` exists, and a key is never replaced"
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_a_link_in_place_of_a_new_key_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="exists, and a key is never replaced"):
        generate_key(tmp_path / "key.pem", tmp_path / "key.pub")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        generate_key(tmp_path / "no" / "key.pem", tmp_path / "no" / "key.pub")


def private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"hello", "is not a private key in PEM"),
        (KEY.public.pem.encode(), "is a public key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "cannot be read: it is damaged"),
        (private_pem(rsa.generate_private_key(65537, 2048)), "is not an elliptic-curve key"),
        (private_pem(new_key(ec.SECP256K1())), "is not supported: an elliptic-curve key on another curve than P-256"),
    ],
    ids=["text", "public", "damaged", "RSA", "secp256k1"],
)
def test_keys_that_cannot_sign(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError) as caught:
        read_key(path, passphrase=no_passphrase)
    assert problem in caught.value.message


def test_a_private_key_that_others_can_read(tmp_path: Path) -> None:
    generate_key(tmp_path / "key.pem", tmp_path / "key.pub")
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(InputError) as caught:
        read_key(tmp_path / "key.pem", passphrase=no_passphrase)
    assert caught.value.message == f"the private key `{tmp_path / 'key.pem'}` can be read by other users"
    assert caught.value.hint == f"`chmod 600 {tmp_path / 'key.pem'}`"
    with pytest.raises(NotFoundError, match="there is no key"):
        read_key(tmp_path / "none.pem", passphrase=no_passphrase)


def test_keys_that_openssl_makes(tmp_path: Path) -> None:
    """`openssl ecparam -genkey`, in its own form of PEM."""
    (tmp_path / "key.pem").write_bytes(private_pem(new_key(ec.SECP384R1())))
    (tmp_path / "key.pem").chmod(0o600)

    assert read_key(tmp_path / "key.pem", passphrase=no_passphrase).public.algorithm == "EC P-384"


def test_a_key_is_never_shown() -> None:
    secret = f"{KEY.private.private_numbers().private_value}"

    assert secret not in repr(KEY)
    assert repr(KEY) == f"<SigningKey EC P-256, sha256 {KEY.public.fingerprint[:16]}...>"


def test_certificates_of_another_key(tmp_path: Path) -> None:
    root = issue_authority("root")
    leaf, server = issue("leaf", root, purposes=[CODE_SIGNING]), issue("server", root, usages=("key_agreement",))
    generate_key(tmp_path / "key.pem", tmp_path / "key.pub")
    (tmp_path / "chain.pem").write_bytes(leaf.pem + root.pem)
    with pytest.raises(InputError) as caught:
        read_key(tmp_path / "key.pem", passphrase=no_passphrase, certificate_chain=tmp_path / "chain.pem")
    assert caught.value.message == f"the first certificate in `{tmp_path / 'chain.pem'}` is not that of the key"

    (tmp_path / "key.pem").write_bytes(private_pem(server.key))
    (tmp_path / "chain.pem").write_bytes(server.pem)
    with pytest.raises(InputError, match="is not for signing"):
        read_key(tmp_path / "key.pem", passphrase=no_passphrase, certificate_chain=tmp_path / "chain.pem")
    (tmp_path / "chain.pem").write_bytes(server.pem * 9)
    with pytest.raises(InputError, match="has 9 certificates; the limit of a signature is 8"):
        read_key(tmp_path / "key.pem", passphrase=no_passphrase, certificate_chain=tmp_path / "chain.pem")


def test_a_signed_bundle(bundle: Path) -> None:
    """The manifest and all files are signed, and nothing else changes."""
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    done = sign_bundle(bundle, KEY)

    assert (done.path, done.signature, done.files, done.release) == (bundle, bundle / "model.sig", 3, None)
    assert verifies(bundle)
    after = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert after.pop("model.sig")
    assert after == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert Bundle.open(bundle).manifest.release is None


def test_a_release(bundle: Path) -> None:
    before = json.loads((bundle / "manifest.json").read_text())
    sign_bundle(bundle, KEY, release=7)

    assert json.loads((bundle / "manifest.json").read_text()) == before | {"release": 7}
    assert verifies(bundle)
    assert Bundle.open(bundle).manifest.release == 7
    # Signing again keeps it.
    assert sign_bundle(bundle, KEY).release == 7
    sign_bundle(bundle, KEY, release=8)
    assert verifies(bundle)
    assert Bundle.open(bundle).manifest.release == 8


def test_a_bundle_under_a_link_and_by_a_relative_path(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "current").symlink_to("bundle")
    monkeypatch.chdir(tmp_path)
    sign_bundle("current", KEY, release=2)

    assert verifies(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "current"]


def test_a_damaged_bundle_is_not_signed(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)

    with pytest.raises(BundleError, match=r"`model.onnx` in the bundle .* was changed"):
        sign_bundle(bundle, KEY, release=7)
    assert not (bundle / "model.sig").exists()
    with pytest.raises(NotFoundError, match="there is no bundle at"):
        sign_bundle(bundle.parent / "nothing", KEY)


def test_a_policy_does_not_forbid_to_sign(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key.pub").write_text(KEY.public.pem)
    (tmp_path / "policy.toml").write_text('trusted_keys = ["key.pub"]\nrequire_signature = true\n')
    monkeypatch.setenv("ORTKIT_POLICY", str(tmp_path / "policy.toml"))
    sign_bundle(bundle, KEY)

    assert Bundle.open(bundle).manifest.name == "tiny-embedder"


def test_two_at_once(bundle: Path) -> None:
    lock = os.open(bundle, os.O_RDONLY)
    try:
        assert try_lock(lock)
        with pytest.raises(OutputError, match="is being signed or written by another process"):
            sign_bundle(bundle, KEY)
    finally:
        os.close(lock)


def test_a_disk_that_is_full(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything changes; a signed bundle stays one."""
    sign_bundle(bundle, KEY)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(signing, "replacing", full)
    with pytest.raises(OutputError) as caught:
        sign_bundle(bundle, signing_key())
    assert caught.value.message == f"`{bundle / 'model.sig'}` cannot be written: No space left on device"
    assert caught.value.hint == "make room, or name a folder on another disk; what was there is unchanged"
    assert verifies(bundle)


def test_too_many_files() -> None:
    files = {f"{number:>200}": "0" * 64 for number in range(15_000)}
    with pytest.raises(InputError, match="15000 files are too many for a signature"):
        sign_files(files, "large", KEY)


def test_a_pack(bundle: Path, tmp_path: Path) -> None:
    """The bundle's own signature is one of its layers; that of the pack lies beside it."""
    sign_bundle(bundle, KEY, release=3)
    pack([bundle], tmp_path / "models.tar")
    done = sign_layout(tmp_path / "models.tar", KEY)

    assert done.signature == tmp_path / "models.tar.sig"
    with OciLayout.open(tmp_path / "models.tar") as layout:
        signer = verify_signature(layout.files(), done.signature.read_bytes(), [trusted(KEY)])
        assert "model.sig" in layout.artifacts[0].layers
    assert signer.name == "models.tar"


def test_a_kit(unsigned: Path, tmp_path: Path, ortkit: Callable[..., Finished]) -> None:
    """Its signature is written into the file, and nothing else changes."""
    path = tmp_path / "line1.kit"
    wheels = wheelhouse(tmp_path / "wheels")
    plan = plan_kit("line1", [Bundle.open(unsigned)], wheels, target=PLATFORM, python=PYTHON, release=1)
    write_kit(plan, path)
    before = path.read_bytes()
    with closing(Kit.open(path)) as kit:
        assert kit.signature is None
    generate_key(tmp_path / "key.pem", tmp_path / "key.pub")
    finished = ortkit("sign", path, "--key", tmp_path / "key.pem")

    assert finished.code == 0, finished.err
    assert f"signed {path}: 3 files; the signature is {path}\n" in finished.out.decode()
    verified = ortkit("verify", path, "--trusted-key", tmp_path / "key.pub")
    assert verified.code == 0, verified.err
    assert f"signature    key `{tmp_path / 'key.pub'}` (sha256 " in verified.out.decode()
    released = ortkit("sign", path, "--key", tmp_path / "key.pem", "--release", "2")
    assert released.code == 2
    assert "hint: make the kit again, with `ortkit kit --release`" in released.err
    parts, key = Parts.read(before), TrustedKey.read(tmp_path / "key.pub")
    assert parts is not None
    with closing(Kit.open(path)) as kit:
        assert kit.signature is not None
        assert verify_signature(kit.files, kit.signature, [key]).name == "line1"
    after = path.read_bytes()
    end = parts.signature + parts.signature_size
    assert (after[: parts.signature], after[end:]) == (before[: parts.signature], before[end:])

    changed = bytearray(after)
    changed[after.index(b"tiny-embedder")] ^= 1
    path.write_bytes(changed)
    refused = ortkit("sign", path, "--key", tmp_path / "key.pem")
    assert refused.code == 7
    assert path.read_bytes() == changed


class Kills:
    """Signs a bundle again and again with another release, in forks that are killed at random moments."""

    def __init__(self, bundle: Path, seed: int) -> None:
        self.bundle = bundle
        self.chance = random.Random(seed)

    def once(self, longest: float) -> None:
        fork = os.fork()
        if fork == 0:
            release = self.chance.randrange(1, 1 << 20)
            while True:
                release += 1
                sign_bundle(self.bundle, KEY, release=release)
        time.sleep(self.chance.uniform(0, longest))
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)

    def check(self) -> bool:
        """Whether the bundle is signed; it opens in any case, and has no signature of another manifest."""
        Bundle.open(self.bundle)
        signed = (self.bundle / "model.sig").exists()
        assert not signed or verifies(self.bundle)
        return signed


def check_kills(bundle: Path, count: int) -> None:
    sign_bundle(bundle, KEY, release=1)
    kills = Kills(bundle, seed=5)
    found = set()
    for _ in range(count):
        kills.once(longest=0.15)
        found.add(kills.check())
    # The partial files of killed processes are removed by the next one.
    sign_bundle(bundle, KEY)
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert True in found


def test_a_kill_never_leaves_a_wrong_signature(bundle: Path) -> None:
    check_kills(bundle, 20)


@pytest.mark.slow
def test_many_kills_never_leave_a_wrong_signature(bundle: Path) -> None:
    check_kills(bundle, number_of_kills(200))


def test_every_step_of_signing_leaves_a_right_pair(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before each change of the folder in turn, as by a power cut."""
    sign_bundle(bundle, KEY, release=1)
    states = []

    def checked(name: str) -> None:
        original = getattr(os, name)

        def call(*arguments: object, **settings: object) -> object:
            signed = (bundle / "model.sig").exists()
            assert not signed or verifies(bundle)
            states.append(signed)
            return original(*arguments, **settings)

        monkeypatch.setattr(os, name, call)

    checked("replace")
    checked("unlink")
    sign_bundle(bundle, KEY, release=2)

    assert set(states) == {True, False}
    assert verifies(bundle)


def test_the_signature_covers_the_bytes_of_the_manifest(bundle: Path) -> None:
    sign_bundle(bundle, KEY, release=4)

    assert files_of(bundle)["manifest.json"] == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
