"""`ortkit keygen`, `sign` and `verify --trusted-key`: what they print, their errors and exit codes."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit.exporters.packaging.sign import generate_key
from ortkit.runtime.errors import BundleError
from ortkit.runtime.trust.public_key import TrustedKey
from tests.commands import Finished
from tests.signers import CODE_SIGNING, issue, issue_authority, signed, signing_key, write_public
from tests.tiny_bundles import write_embedder

Ortkit = Callable[..., Finished]


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedder(tmp_path_factory.mktemp("tiny") / "embedder").path


@pytest.fixture
def bundle(unsigned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unsigned, tmp_path / "bundle"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "key.pem", tmp_path / "key.pub")
    return tmp_path / "key.pem"


def fingerprint(path: Path) -> str:
    return TrustedKey.read(path.with_suffix(".pub")).key.fingerprint


def test_keygen(ortkit: Ortkit, tmp_path: Path) -> None:
    finished = ortkit("keygen", "-o", tmp_path / "my.pem")

    assert finished.code == 0
    assert finished.out.decode() == (
        f"private key  {tmp_path / 'my.pem'}\n"
        f"public key   {tmp_path / 'my.pub'} (sha256 {fingerprint(tmp_path / 'my.pem')})\n"
    )
    again = ortkit("keygen", "-o", tmp_path / "my.pem", "--public", tmp_path / "other.pub")
    assert again.code == 1
    assert again.err == (
        f"error: `{tmp_path / 'my.pem'}` exists, and a key is never replaced\n\n"
        "hint: name another file, or move that one away\n"
    )
    assert not (tmp_path / "other.pub").exists()


def test_keygen_with_one_name_for_both_keys(ortkit: Ortkit, tmp_path: Path) -> None:
    finished = ortkit("keygen", "-o", tmp_path / "key.pub")

    assert finished.code == 2
    assert f"`{tmp_path / 'key.pub'}` is the name of both keys" in finished.err


def test_a_passphrase_from_a_file(ortkit: Ortkit, tmp_path: Path, bundle: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\nsecond line\n")
    secret.chmod(0o640)
    readable = ortkit("keygen", "-o", tmp_path / "key.pem", "--passphrase-file", secret)
    assert (readable.code, readable.err) == (
        2,
        f"error: the passphrase in `{secret}` can be read by other users\n\nhint: `chmod 600 {secret}`\n",
    )
    secret.chmod(0o600)
    assert ortkit("keygen", "-o", tmp_path / "key.pem", "--passphrase-file", secret).code == 0
    assert "ENCRYPTED" in (tmp_path / "key.pem").read_text()

    finished = ortkit("sign", bundle, "--key", tmp_path / "key.pem", "--passphrase-file", secret)
    assert finished.code == 0
    assert "correct horse" not in finished.out.decode() + finished.err
    asked = ortkit("sign", bundle, "--key", tmp_path / "key.pem")
    assert asked.code == 2
    assert asked.err == (
        "error: stdin is not a terminal, so ortkit cannot ask for the passphrase of the key\n\n"
        "hint: write it into a file that only you can read, and name that with `--passphrase-file`\n"
    )
    secret.write_text("\n")
    empty = ortkit("sign", bundle, "--key", tmp_path / "key.pem", "--passphrase-file", secret)
    assert (empty.code, f"the passphrase in `{secret}` is empty" in empty.err) == (2, True)
    missing = ortkit("sign", bundle, "--key", tmp_path / "key.pem", "--passphrase-file", tmp_path / "no")
    assert (missing.code, f"there is no file `{tmp_path / 'no'}`" in missing.err) == (5, True)


def test_sign_and_verify(ortkit: Ortkit, bundle: Path, key: Path) -> None:
    finished = ortkit("sign", bundle, "--key", key, "--release", "7")
    public = key.with_suffix(".pub")

    assert finished.code == 0
    assert finished.out.decode() == (
        f"signed {bundle}: 3 files, release 7; the signature is {bundle / 'model.sig'}\n"
        f"verify with a public key of sha256 {fingerprint(key)}\n"
    )
    verified = ortkit("verify", bundle, "--trusted-key", public)
    assert verified.code == 0
    assert verified.out.decode().splitlines()[2] == (
        f"signature    key `{public}` (sha256 {fingerprint(key)[:16]}...); release 7"
    )
    fields = json.loads(ortkit("verify", bundle, "--trusted-key", public, "--json").out)[0]
    assert fields["release"] == 7
    assert fields["signer"] == {
        "name": "tiny-embedder",
        "trusted_by": str(public),
        "fingerprint": fingerprint(key),
        "common_name": None,
    }
    inspected = ortkit("inspect", bundle)
    assert "release      7" in inspected.out.decode().splitlines()


def test_verify_without_a_key(ortkit: Ortkit, bundle: Path, key: Path) -> None:
    assert "signature    none" in ortkit("verify", bundle).out.decode().splitlines()
    assert json.loads(ortkit("verify", bundle, "--json").out)[0]["signer"] is None
    ortkit("sign", bundle, "--key", key)
    assert "signature    not verified: no key is trusted here; `--trusted-key` names one" in (
        ortkit("verify", bundle).out.decode().splitlines()
    )


def test_verify_refuses(ortkit: Ortkit, bundle: Path, key: Path, tmp_path: Path) -> None:
    """Exit code 7, and the graph is not opened."""
    public = key.with_suffix(".pub")
    unsigned = ortkit("verify", bundle, "--trusted-key", public)
    assert unsigned.code == 7
    assert f"error: `{bundle}` is not signed, and a signature is required\n" in unsigned.err
    assert "graph" not in unsigned.out.decode()

    signed(bundle, signing_key())
    wrong = ortkit("verify", bundle, "--trusted-key", public)
    assert wrong.code == 7
    assert wrong.err.startswith(f"error: `{bundle / 'model.sig'}` is by a key (sha256 ")
    assert wrong.out.decode().endswith(f"failed: {bundle}\n")
    fields = json.loads(ortkit("verify", bundle, "--trusted-key", public, "--json").out)[0]
    assert (fields["ok"], fields["signer"], fields["error"]["exit_code"]) == (False, None, 7)

    assert ortkit("verify", bundle, "--trusted-key", tmp_path / "no.pub").code == 5
    assert ortkit("verify", bundle, "--trusted-key", bundle / "manifest.json").code == 2
    private = ortkit("verify", bundle, "--trusted-key", key)
    assert private.code == 2
    assert f"error: `{key}` is a private key, and a public key is needed to verify" in private.err


def test_two_trusted_keys(ortkit: Ortkit, bundle: Path, key: Path, tmp_path: Path) -> None:
    """While one key replaces another."""
    new = signing_key()
    write_public(tmp_path / "new.pub", new)
    both = ("--trusted-key", key.with_suffix(".pub"), "--trusted-key", tmp_path / "new.pub")
    ortkit("sign", bundle, "--key", key)
    assert ortkit("verify", bundle, *both).code == 0
    signed(bundle, new)
    assert ortkit("verify", bundle, *both).code == 0


def test_certificates(ortkit: Ortkit, bundle: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    root = issue_authority("Models of Example")
    middle = issue_authority("Department", root)
    leaf = issue("Builder 7", middle, purposes=[CODE_SIGNING])
    (tmp_path / "leaf.pem").touch(0o600)
    (tmp_path / "leaf.pem").write_bytes(
        leaf.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (tmp_path / "chain.pem").write_bytes(leaf.pem + middle.pem)
    (tmp_path / "root.pem").write_bytes(root.pem)
    (tmp_path / "other.pem").write_bytes(issue_authority("Models of Example").pem)

    finished = ortkit("sign", bundle, "--key", tmp_path / "leaf.pem", "--certificate-chain", tmp_path / "chain.pem")
    assert finished.code == 0, finished.err
    verified = ortkit("verify", bundle, "--trusted-certificate", tmp_path / "root.pem")
    assert verified.code == 0
    assert verified.out.decode().splitlines()[2] == (
        f"signature    certificate `Builder 7` (sha256 {leaf.ours.fingerprint[:16]}...), "
        f"trusted by `{tmp_path / 'root.pem'}`"
    )
    refused = ortkit("verify", bundle, "--trusted-certificate", tmp_path / "other.pem")
    assert refused.code == 7
    assert "is not trusted: the signature of the certificate `Department`" in refused.err


def test_sign_refuses(ortkit: Ortkit, bundle: Path, key: Path, tmp_path: Path) -> None:
    assert ortkit("sign", bundle, "--key", tmp_path / "no.pem").code == 5
    assert ortkit("sign", tmp_path / "none", "--key", key).code == 5
    assert ortkit("sign", bundle, "--key", key, "--release", "0").code == 2
    (bundle / "model.onnx").write_bytes(b"")
    assert ortkit("sign", bundle, "--key", key).code == 7
    (tmp_path / "file.tar").write_text("not a pack")
    assert ortkit("sign", tmp_path / "file.tar", "--key", key).code == 7


def test_a_pack(ortkit: Ortkit, bundle: Path, key: Path, tmp_path: Path) -> None:
    ortkit("sign", bundle, "--key", key)
    assert ortkit("pack", bundle, "-o", tmp_path / "models.tar").code == 0
    finished = ortkit("sign", tmp_path / "models.tar", "--key", key)

    assert finished.code == 0
    assert f"the signature is {tmp_path / 'models.tar.sig'}\n" in finished.out.decode()
    released = ortkit("sign", tmp_path / "models.tar", "--key", key, "--release", "7")
    assert released.code == 2
    assert "hint: sign the bundles with `--release`, then pack them again" in released.err


def test_verify_a_pack(ortkit: Ortkit, bundle: Path, key: Path, tmp_path: Path) -> None:
    pack, public = tmp_path / "models.tar", key.with_suffix(".pub")
    assert ortkit("pack", bundle, "-o", pack).code == 0
    unsigned = ortkit("verify", pack)
    assert (unsigned.code, unsigned.out.decode().splitlines()[-2:]) == (0, ["signature    none", f"ok: {pack}"])
    refused = ortkit("verify", pack, "--trusted-key", public)
    assert refused.code == 7
    assert refused.err == (
        f"error: `{pack}` is not signed, and a signature is required\n\n"
        "hint: sign it where it is made: `ortkit sign models.tar --key key.pem`; that of a pack is a file beside it, "
        "`models.tar.sig`\n"
    )

    assert ortkit("sign", pack, "--key", key).code == 0
    assert "signature    not verified: no key is trusted here" in ortkit("verify", pack).out.decode()
    finished = ortkit("verify", pack, "--trusted-key", public)
    assert finished.code == 0, finished.err
    assert finished.out.decode().splitlines() == [
        f"digest       {index_sha256(pack)}",
        "files        8 files match their sha256",
        f"signature    key `{public}` (sha256 {fingerprint(key)[:16]}...)",
        f"ok: {pack}",
    ]
    assert (
        json.loads(ortkit("verify", pack, "--trusted-key", public, "--json").out)[0]["signer"]["name"] == "models.tar"
    )


@pytest.mark.parametrize("what", ["content", "signature", "another pack", "another key"])
def test_verify_refuses_a_pack(ortkit: Ortkit, bundle: Path, key: Path, tmp_path: Path, what: str) -> None:
    pack, public = tmp_path / "models.tar", key.with_suffix(".pub")
    ortkit("pack", bundle, "-o", pack)
    ortkit("sign", pack, "--key", key)
    content = pack.read_bytes()
    expected = "is of other files: changed since then: "
    if what == "content":
        place = content.index((bundle / "tokenizer.json").read_bytes())
        pack.write_bytes(content[:place] + b"\0" + content[place + 1 :])
        expected = "was changed: its sha256 is not its name"
    elif what == "signature":
        (tmp_path / "models.tar.sig").write_text("{")
        expected = "is not a signature that can be verified"
    elif what == "another pack":
        rename = Path(shutil.copytree(bundle, tmp_path / "renamed"))
        ortkit("pack", rename, "-o", pack)
    else:
        generate_key(tmp_path / "other.pem", tmp_path / "other.pub")
        public, expected = tmp_path / "other.pub", "that is not trusted here"

    finished = ortkit("verify", pack, "--trusted-key", public)

    assert finished.code == 7
    assert expected in finished.err
    assert finished.out.decode().splitlines()[-1] == f"failed: {pack}"


def index_sha256(pack: Path) -> str:
    with tarfile.open(pack) as archive:
        return hashlib.sha256(archive.extractfile("index.json").read()).hexdigest()


@pytest.fixture
def required(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy that requires signatures by the key."""
    path = tmp_path / "policy.toml"
    path.write_text(
        f'trusted_keys = ["{key.with_suffix(".pub").name}"]\nrequire_signature = true\nstate = "releases.json"\n'
    )
    monkeypatch.setenv("ORTKIT_POLICY", str(path))
    return path


COMMANDS = {
    "inspect": ["inspect"],
    "verify": ["verify"],
    "embed": ["embed", "hello"],
    "providers": ["providers"],
    "bench": ["bench"],
    "pack": ["pack", "-o", "models.tar"],
}


@pytest.mark.usefixtures("required")
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_obey_the_policy(
    ortkit: Ortkit, bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = COMMANDS[name]
    finished = ortkit(command, bundle, *options)

    assert finished.code == 7
    assert f"`{bundle}` is not signed, and the policy `" in finished.err


def test_list_names_what_the_policy_refuses(
    ortkit: Ortkit, bundle: Path, required: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTKIT_BUNDLES", str(bundle.parent))
    fields = {entry["name"]: entry for entry in json.loads(ortkit("list", "--json").out)}

    assert fields["bundle"]["error"] == f"`{bundle}` is not signed, and the policy `{required}` requires a signature"


def test_verify_obeys_the_policy(ortkit: Ortkit, bundle: Path, key: Path, required: Path) -> None:
    ortkit("sign", bundle, "--key", key, "--release", "7")
    verified = ortkit("verify", bundle)
    assert verified.code == 0
    assert f"signature    key `{key.with_suffix('.pub')}`" in verified.out.decode()
    assert recorded(required) == {"tiny-embedder (fp32, cpu)": 7}

    ortkit("sign", bundle, "--key", key, "--release", "6")
    older = ortkit("verify", bundle)
    assert older.code == 7
    assert older.err == (
        "error: `tiny-embedder (fp32, cpu)` has release 6, and release 7 was trusted on this machine before\n\n"
        "hint: install the newer one, or run `ortkit verify BUNDLE --allow-downgrade` to go back\n"
    )
    assert ortkit("verify", bundle, "--allow-downgrade").code == 0
    assert ortkit("verify", bundle).code == 0
    assert recorded(required) == {"tiny-embedder (fp32, cpu)": 6}


def recorded(policy: Path) -> dict[str, int]:
    return json.loads((policy.parent / "releases.json").read_text())["releases"]


def test_a_release_counts_when_its_answers_are_right(
    ortkit: Ortkit, bundle: Path, key: Path, required: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a newer one nor an older one that fails takes the place of the one in use."""
    ortkit("sign", bundle, "--key", key, "--release", "7")
    assert ortkit("inspect", bundle).code == 0

    def fail(*_: object, **__: object) -> None:
        raise BundleError("the answers are others")

    monkeypatch.setattr("ortkit.runtime.verify.verify", fail)
    for release in (8, 6):
        ortkit("sign", bundle, "--key", key, "--release", str(release))
        failed = ortkit("verify", bundle, "--allow-downgrade")
        assert (failed.code, failed.err) == (7, "error: the answers are others\n")
        assert recorded(required) == {"tiny-embedder (fp32, cpu)": 7}


def test_a_wrong_policy_is_an_error_of_every_command(ortkit: Ortkit, bundle: Path, required: Path) -> None:
    required.write_text("require_signature = maybe\n")
    finished = ortkit("inspect", bundle)

    assert finished.code == 2
    assert finished.err.startswith(f"error: the policy `{required}` is not valid TOML: ")


def test_without_cryptography(ortkit: Ortkit, bundle: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signing names the extra; verifying uses `openssl`."""
    ortkit("sign", bundle, "--key", key)
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for command in (["sign", bundle, "--key", key], ["keygen", "-o", bundle.parent / "new.pem"]):
        finished = ortkit(*command)
        assert finished.code == 1
        assert finished.err.startswith(
            "error: what signs bundles is not installed here: `cryptography` cannot be imported\n\nhint: "
        )
        assert "[sign]" in finished.err
    assert ortkit("verify", bundle, "--trusted-key", key.with_suffix(".pub")).code == 0
