"""The policy of a machine: what it may say, who may write it, and that everything that opens a bundle obeys it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import ortkit
from ortkit import Bundle, BundleError, Embedder, InputError, NotTrustedError, OutputError
from ortkit.runtime.trust import policy as policies
from ortkit.runtime.trust.ownership import check_ownership
from ortkit.runtime.trust.policy import DEFAULT_STATE, Policy
from ortkit.runtime.trust.releases import Releases
from tests.signers import CODE_SIGNING, issue, issue_authority, signed, signing_key, write_public
from tests.tiny_bundles import rehash, write_embedder

KEY = signing_key()
ROOT = issue_authority("Models of Example")
LEAF = issue("Builder 7", ROOT, purposes=[CODE_SIGNING])


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedder(tmp_path_factory.mktemp("tiny") / "embedder").path


@pytest.fixture
def bundle(unsigned: Path, tmp_path: Path) -> Path:
    """A bundle that is not signed."""
    return Path(shutil.copytree(unsigned, tmp_path / "bundle"))


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write the policy in force; `key.pub` and `ca.pem` lie beside it."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    write_public(folder / "key.pub", KEY)
    (folder / "ca.pem").write_bytes(ROOT.pem)

    def write(text: str) -> Path:
        (folder / "policy.toml").write_text(text)
        monkeypatch.setenv("ORTKIT_POLICY", str(folder / "policy.toml"))
        return folder / "policy.toml"

    return write


REQUIRED = 'trusted_keys = ["key.pub"]\nrequire_signature = true\nstate = "releases.json"\n'


def problem_of(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        Policy.current()
    assert caught.value.exit_code == 2
    caught.value.message = caught.value.message.replace(str(path.parent), "etc")
    return caught.value


def recorded(path: Path) -> dict[str, int]:
    return json.loads((path.parent / "releases.json").read_text())["releases"]


def test_without_a_policy_nothing_is_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(policies, "SYSTEM_POLICY", tmp_path / "policy.toml")
    monkeypatch.delenv("ORTKIT_POLICY", raising=False)

    assert Policy.current() == Policy()
    assert not Policy().require_signature
    monkeypatch.setenv("ORTKIT_POLICY", "")
    assert Policy.current() == Policy()


def test_the_system_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is in force unless ORTKIT_POLICY names another, and a broken link to it is not taken for its absence."""
    monkeypatch.setattr(policies, "SYSTEM_POLICY", tmp_path / "policy.toml")
    monkeypatch.delenv("ORTKIT_POLICY", raising=False)
    (tmp_path / "policy.toml").write_text("always_hash = true\n")

    assert Policy.current().always_hash
    (tmp_path / "policy.toml").unlink()
    (tmp_path / "policy.toml").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Policy.current()


def test_a_system_policy_that_this_user_may_not_see_is_not_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path
) -> None:
    """A folder that an administrator made with umask 077, and a file in its place."""
    monkeypatch.delenv("ORTKIT_POLICY", raising=False)
    folder = tmp_path / "etc"
    monkeypatch.setattr(policies, "SYSTEM_POLICY", folder / "policy.toml")
    folder.write_text("")
    with pytest.raises(InputError, match=r"the policy `.*` cannot be read: Not a directory"):
        Bundle.open(bundle)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    # Root may look into every folder.
    folder.unlink()
    folder.mkdir()
    monkeypatch.setattr(policies.os, "lstat", refuse)
    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(InputError, match=r"the policy `.*` cannot be read: "):
        Policy.current()


def test_what_a_policy_says(policy: Callable[[str], Path]) -> None:
    path = policy('trusted_certificates = ["ca.pem"]\nalways_hash = true\n' + REQUIRED)
    found = Policy.current()

    assert (found.require_signature, found.always_hash) == (True, True)
    assert found.releases.path == path.parent / "releases.json"
    assert [getattr(key, "origin", "") for key in found.trusted] == [
        str(path.parent / "key.pub"),
        str(path.parent / "ca.pem"),
    ]
    policy("")
    assert Policy.current().releases.path == DEFAULT_STATE


def test_a_folder_of_keys(policy: Callable[[str], Path], tmp_path: Path) -> None:
    """Two keys at once, while one replaces the other; other files in the folder are left alone."""
    keys = tmp_path / "etc" / "keys"
    keys.mkdir()
    (keys / "notes.txt").write_text("which key is whose")
    path = policy('trusted_keys = ["keys"]\n')
    assert problem_of(path).message == (
        "the policy `etc/policy.toml` cannot be used: the folder `etc/keys` has no keys (files that end with .pem or "
        ".pub)"
    )
    new = signing_key()
    write_public(keys / "old.pem", KEY)
    write_public(keys / "new.pub", new)

    assert {key.key for key in Policy.current().trusted} == {KEY.public, new.public}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trusted_keys = [", "the policy `etc/policy.toml` is not valid TOML: "),
        ("\udcff", "the policy `etc/policy.toml` is not valid TOML: "),
        (
            "require_signatures = true",
            (
                "the policy `etc/policy.toml` has the unknown setting `require_signatures`; known: trusted_keys, "
                "trusted_certificates, require_signature, state, always_hash"
            ),
        ),
        ('require_signature = "yes"', "`require_signature` must be true or false"),
        ("always_hash = 1", "`always_hash` must be true or false"),
        ('trusted_keys = "key.pub"', "`trusted_keys` must be a list of paths"),
        ("trusted_keys = [1]", "`trusted_keys` must be a list of paths"),
        ('trusted_keys = [""]', "`trusted_keys` must be a list of paths"),
        ("state = 7", "`state` must be a path"),
        ('state = ""', "`state` must be a path"),
        ("require_signature = true", "the policy `etc/policy.toml` requires signatures, but trusts no key"),
        (
            'trusted_keys = ["no.pub"]',
            "cannot be used: there is no file `etc/no.pub`",
        ),
        ('trusted_keys = ["ca.pem"]', "cannot be used: `etc/ca.pem` is not a public key in PEM"),
        ('trusted_certificates = ["key.pub"]', "cannot be used: `etc/key.pub` is not a certificate in PEM"),
        ('trusted_keys = ["key.pub"' + ', "key.pub"' * 100 + "]", "more than 100 keys or certificates are named"),
        ("#" * 70_000, "the policy `etc/policy.toml` has more than 65536 bytes"),
    ],
)
def test_policies_that_cannot_be_used(policy: Callable[[str], Path], text: str, message: str) -> None:
    path = policy("")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    assert message in problem_of(path).message


def test_a_policy_that_is_not_there(policy: Callable[[str], Path], bundle: Path) -> None:
    path = policy("")
    path.unlink()

    found = problem_of(path)
    assert found.message == "the policy `etc/policy.toml` cannot be read: No such file or directory"
    assert found.hint == "ORTKIT_POLICY names it: set it to a policy file, or unset it"
    with pytest.raises(InputError):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["policy.toml", "key.pub", "ca.pem", "releases.json", "."])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_other_users_can_change_is_not_used(
    policy: Callable[[str], Path], bundle: Path, name: str, mode: int
) -> None:
    path = policy('trusted_certificates = ["ca.pem"]\n' + REQUIRED)
    signed(bundle, KEY, release=1)
    Bundle.open(bundle)
    changed = path.parent / name
    changed.chmod(changed.stat().st_mode | mode)

    with pytest.raises(InputError) as caught:
        Bundle.open(bundle)
    assert f"because other users can change it: `{changed.resolve()}` is writable for its group or for all users" in (
        caught.value.message
    )
    assert caught.value.hint == f"`chmod go-w {changed.resolve()}`, as its owner"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_policy_of_another_user(policy: Callable[[str], Path]) -> None:
    path = policy("")
    os.chown(path, 12345, -1)

    assert "belongs to the user 12345" in problem_of(path).message


def test_a_folder_in_which_users_have_their_own_files(tmp_path: Path) -> None:
    """/tmp is writable for all, but nobody can replace another's file there."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "policy.toml").write_text("")

    check_ownership(shared / "policy.toml", "the policy")
    shared.chmod(0o777)
    with pytest.raises(InputError, match="is writable for its group or for all users"):
        check_ownership(shared / "policy.toml", "the policy")


def test_a_link_to_a_policy_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "policy.toml").write_text("")
    (tmp_path / "policy.toml").symlink_to(tmp_path / "open" / "policy.toml")

    with pytest.raises(InputError, match="because other users can change it"):
        check_ownership(tmp_path / "policy.toml", "the policy")


def test_a_link_that_another_user_can_replace(tmp_path: Path) -> None:
    """Between the check and the reading it could lead elsewhere; what it leads to now is nobody else's."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "policy.toml").write_text("")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "link").symlink_to("../etc/policy.toml")
    (tmp_path / "first").symlink_to(shared / "link")

    check_ownership(tmp_path / "first", "the policy")
    shared.chmod(0o777)
    with pytest.raises(InputError) as caught:
        check_ownership(tmp_path / "first", "the policy")
    assert f"`{shared}` is writable for its group or for all users" in caught.value.message
    (shared / "link").unlink()
    (shared / "link").symlink_to("link")
    shared.chmod(0o755)
    with pytest.raises(InputError, match="Too many levels of symbolic links"):
        check_ownership(tmp_path / "first", "the policy")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_link_of_another_user_in_a_shared_folder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "policy.toml").write_text("")
    (shared / "link").symlink_to(tmp_path / "policy.toml")
    check_ownership(shared / "link", "the policy")
    os.chown(shared / "link", 12345, -1, follow_symlinks=False)

    with pytest.raises(InputError, match=r"`.*/shared/link` belongs to the user 12345") as caught:
        check_ownership(shared / "link", "the policy")
    follow(caught.value.hint)
    check_ownership(shared / "link", "the policy")


def follow(hint: str | None) -> None:
    """Run the command in a hint."""
    assert hint is not None
    subprocess.run(hint.split("`")[1].split(), check=True)


def test_a_user_whom_the_user_namespace_does_not_have(tmp_path: Path) -> None:
    """As in a container without root, for what is mounted into it: no `chown` helps there."""
    path = tmp_path / "policy.toml"
    path.write_text("")
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        # A folder of root's is above.
        path = Path("/etc/passwd")
    check = (
        "import sys; from pathlib import Path; from ortkit.runtime.trust.ownership import check_ownership\n"
        "try: check_ownership(Path(sys.argv[1]), 'the policy')\n"
        "except Exception as error: print(error.message, error.hint, sep='\\n')"
    )
    inside = ("unshare", "--user", "--map-root-user")
    found = shutil.which("unshare")
    if found is None or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    command = [*inside, sys.executable, "-c", check, path]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    assert " belongs to the user 65534" in said[0]
    assert said[1].startswith("this process runs in a user namespace that does not have the owner of `/")


OPENERS: dict[str, Callable[[Path], object]] = {
    "Bundle.open": Bundle.open,
    "Bundle.listed": Bundle.listed,
    "Embedder": lambda path: Embedder(path, workers=1),
    "load": ortkit.load,
}


@pytest.mark.parametrize("name", OPENERS)
def test_everything_that_opens_a_bundle_obeys(policy: Callable[[str], Path], bundle: Path, name: str) -> None:
    path = policy(REQUIRED)
    with pytest.raises(NotTrustedError) as caught:
        OPENERS[name](bundle)
    assert caught.value.message == f"`{bundle}` is not signed, and the policy `{path}` requires a signature"
    assert caught.value.hint == "sign it where it is made: `ortkit sign bundle --key key.pem`"

    signed(bundle, signing_key())
    with pytest.raises(NotTrustedError, match=r"is by a key .* that is not trusted here"):
        OPENERS[name](bundle)

    signed(bundle, KEY)
    opened = OPENERS[name](bundle)
    if isinstance(opened, Embedder):
        opened.close()


def test_a_reranker_and_a_decoder_obey(policy: Callable[[str], Path], written: tuple[Bundle, object]) -> None:
    policy(REQUIRED)
    with pytest.raises(NotTrustedError):
        ortkit.Decoder(written[0].path)
    with pytest.raises(NotTrustedError):
        ortkit.Reranker(written[0].path)


def test_a_certificate_is_enough(policy: Callable[[str], Path], bundle: Path) -> None:
    policy('trusted_certificates = ["ca.pem"]\nrequire_signature = true\n')
    signed(bundle, signing_key(LEAF.key, [LEAF.ours]))

    assert Bundle.open(bundle).manifest.name == "tiny-embedder"


def test_without_require_signature_nothing_is_refused(policy: Callable[[str], Path], bundle: Path) -> None:
    policy('trusted_keys = ["key.pub"]\n')
    Bundle.open(bundle)
    signed(bundle, signing_key())
    Bundle.open(bundle)


def test_a_signature_of_another_manifest(policy: Callable[[str], Path], bundle: Path) -> None:
    """Everything in the folder is consistent, but it is not what was signed."""
    policy(REQUIRED)
    signature = signed(bundle, KEY).joinpath("model.sig").read_bytes()
    (bundle / "model.sig").unlink()
    rehash(bundle, lambda manifest: manifest.update(name="other"))
    (bundle / "model.sig").write_bytes(signature)

    with pytest.raises(NotTrustedError) as caught:
        Bundle.open(bundle)
    assert caught.value.message == (f"`{bundle / 'model.sig'}` is of other files: changed since then: `manifest.json`")


def test_a_changed_file_of_a_signed_bundle(policy: Callable[[str], Path], bundle: Path) -> None:
    policy(REQUIRED)
    signed(bundle, KEY)
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)

    with pytest.raises(BundleError, match=r"`model.onnx` in the bundle .* was changed"):
        Bundle.open(bundle)


@pytest.mark.parametrize("kind", ["link", "folder", "large"])
def test_a_signature_that_is_not_a_regular_file(bundle: Path, kind: str) -> None:
    """Whether a signature is required or not."""
    target = bundle / "model.sig"
    if kind == "link":
        signed(bundle, KEY).joinpath("model.sig").rename(bundle.parent / "elsewhere")
        target.symlink_to(bundle.parent / "elsewhere")
    elif kind == "folder":
        target.mkdir()
        (target / "file").write_text("")
    else:
        target.write_bytes(b"")
        os.truncate(target, (1 << 21) + 1)

    problems = {
        "link": "is a link or not a regular file",
        "folder": "holds `model.sig/file`, which its manifest does not list",
        "large": "has 2097153 bytes; the limit is 2097152",
    }
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert problems[kind] in caught.value.message


@pytest.mark.parametrize("name", ["model.sig", "MODEL.SIG", "manifest.json"])
def test_a_manifest_cannot_list_the_signature_or_itself(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / "manifest.json").read_bytes())
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    (bundle / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert caught.value.message == (
        "the manifest lists `MODEL.SIG` and `model.sig`, which are the same file on some systems"
        if name == "MODEL.SIG"
        else f"the manifest lists `{name}`, which is not one of the files that it can list"
    )


def test_an_older_release_is_refused(policy: Callable[[str], Path], bundle: Path, unsigned: Path) -> None:
    path = policy(REQUIRED)
    Bundle.open(signed(bundle, KEY, release=7))
    assert recorded(path) == {"tiny-embedder (fp32, cpu)": 7}

    older = signed(Path(shutil.copytree(unsigned, bundle.parent / "older")), KEY, release=6)
    for opener in (Bundle.open, Bundle.listed):
        with pytest.raises(NotTrustedError) as caught:
            opener(older)
        assert caught.value.message == (
            "`tiny-embedder (fp32, cpu)` has release 6, and release 7 was trusted on this machine before"
        )
        assert caught.value.hint == (
            "install the newer one, or run `ortkit verify BUNDLE --allow-downgrade` to go back"
        )
    without = signed(Path(shutil.copytree(unsigned, bundle.parent / "without")), KEY)
    with pytest.raises(NotTrustedError, match=r"`tiny-embedder \(fp32, cpu\)` has no release, and release 7 was"):
        Bundle.open(without)

    Bundle.open(older, allow_downgrade=True)
    assert recorded(path) == {"tiny-embedder (fp32, cpu)": 6}
    Bundle.open(older)
    Bundle.open(bundle)
    assert recorded(path) == {"tiny-embedder (fp32, cpu)": 7}


def test_releases_of_other_precisions_and_providers_are_counted_apart(
    policy: Callable[[str], Path], bundle: Path, unsigned: Path
) -> None:
    """All have one name in their manifests."""
    path = policy(REQUIRED)
    Bundle.open(signed(bundle, KEY, release=7))
    for number, change in enumerate(({"precision": "int8"}, {"provider": "cuda", "precision": "fp16"}), 1):
        other = Path(shutil.copytree(unsigned, bundle.parent / f"other{number}"))
        rehash(other, lambda manifest, change=change: manifest.update(change))
        Bundle.open(signed(other, KEY, release=number))

    assert recorded(path) == {
        "tiny-embedder (fp16, cuda)": 2,
        "tiny-embedder (fp32, cpu)": 7,
        "tiny-embedder (int8, cpu)": 1,
    }


def test_a_release_that_is_recorded_later(policy: Callable[[str], Path], bundle: Path, unsigned: Path) -> None:
    """`ortkit verify` replays the certificate before the release counts."""
    path = policy(REQUIRED)
    newer = Bundle.open(signed(bundle, KEY, release=7), record=False)
    assert not (path.parent / "releases.json").exists()
    newer.accept()
    assert recorded(path) == {"tiny-embedder (fp32, cpu)": 7}

    older = signed(Path(shutil.copytree(unsigned, bundle.parent / "older")), KEY, release=6)
    opened = Bundle.open(older, allow_downgrade=True, record=False)
    assert recorded(path) == {"tiny-embedder (fp32, cpu)": 7}
    with pytest.raises(NotTrustedError, match="has release 6, and release 7 was trusted"):
        opened.accept()
    opened.accept(allow_downgrade=True)
    assert recorded(path) == {"tiny-embedder (fp32, cpu)": 6}


@pytest.mark.parametrize("name", [".", "model.onnx", "manifest.json", "model.sig"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_a_bundle_that_other_users_can_change(
    policy: Callable[[str], Path], bundle: Path, name: str, mode: int
) -> None:
    """They could replace a file after it was hashed and before it is opened."""
    path = policy(REQUIRED)
    changed = signed(bundle, KEY, release=1) / name
    changed.chmod(changed.stat().st_mode | mode)

    for opener in (Bundle.open, Bundle.listed):
        with pytest.raises(NotTrustedError) as caught:
            opener(bundle)
        assert caught.value.message == (
            f"other users can change the bundle `{bundle}` after it was verified: `{changed}` is writable for its "
            f"group or for all users, and the policy `{path}` requires a signature"
        )
        assert caught.value.hint == f"`chmod -R go-w {bundle}`, as its owner"
    policy('trusted_keys = ["key.pub"]\n')
    Bundle.open(bundle)


def test_a_folder_of_bundles_that_other_users_can_change(policy: Callable[[str], Path], bundle: Path) -> None:
    """Another bundle could be put in the place of one; not so in a folder such as /tmp."""
    policy(REQUIRED)
    shared = bundle.parent / "shared"
    shared.mkdir()
    moved = bundle.rename(shared / "bundle")
    signed(moved, KEY, release=1)
    shared.chmod(0o1777)
    Bundle.open(moved)

    shared.chmod(0o777)
    with pytest.raises(NotTrustedError) as caught:
        Bundle.open(moved)
    assert f"`{shared}` is writable for its group or for all users" in caught.value.message
    assert caught.value.hint == f"`chmod go-w {shared}`, as its owner"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_bundle_of_another_user(policy: Callable[[str], Path], bundle: Path) -> None:
    policy(REQUIRED)
    os.chown(signed(bundle, KEY, release=1) / "model.onnx", 12345, -1)

    with pytest.raises(NotTrustedError) as caught:
        Bundle.open(bundle)
    assert f"`{bundle / 'model.onnx'}` belongs to the user 12345" in caught.value.message
    assert caught.value.hint == f"`chown -R root {bundle}`"

    (bundle.parent / "link").symlink_to(bundle)
    with pytest.raises(NotTrustedError) as caught:
        Bundle.open(bundle.parent / "link")
    assert caught.value.hint == f"`chown -R root {bundle}`"
    os.chown(bundle.parent / "link", 12345, -1, follow_symlinks=False)
    with pytest.raises(NotTrustedError) as caught:
        Bundle.open(bundle.parent / "link")
    assert caught.value.hint == f"`chown -h root {bundle.parent / 'link'}`"
    follow(caught.value.hint)
    follow(f"`chown -R root {bundle}`")
    Bundle.open(bundle.parent / "link")


def test_a_damaged_bundle_does_not_raise_the_release(policy: Callable[[str], Path], bundle: Path) -> None:
    """Or the one before it could not be opened any more."""
    path = policy(REQUIRED)
    signed(bundle, KEY, release=7)
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)

    with pytest.raises(BundleError):
        Bundle.open(bundle)
    assert not (path.parent / "releases.json").exists()


def test_the_release_is_in_what_is_signed(policy: Callable[[str], Path], bundle: Path) -> None:
    policy(REQUIRED)
    signed(bundle, KEY, release=3)
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace('"release": 3', '"release": 9'))

    with pytest.raises(NotTrustedError, match=r"changed since then: `manifest.json`"):
        Bundle.open(bundle)


@pytest.mark.parametrize("release", [0, -1, 1 << 31, "7", 1.5, True])
def test_releases_that_are_not_valid(bundle: Path, release: object) -> None:
    rehash(bundle, lambda manifest: manifest.update(release=release))

    with pytest.raises(BundleError, match=r"`manifest.json` is not valid: `release` must be"):
        Bundle.open(bundle)


def test_a_release_that_cannot_be_recorded(policy: Callable[[str], Path], bundle: Path) -> None:
    path = policy('trusted_keys = ["key.pub"]\nrequire_signature = true\nstate = "key.pub/releases.json"\n')
    signed(bundle, KEY, release=7)

    with pytest.raises((OutputError, InputError)) as caught:
        Bundle.open(bundle)
    assert f"`{path.parent}/key.pub/releases.json`" in caught.value.message


def test_a_record_that_others_can_remove(policy: Callable[[str], Path], bundle: Path) -> None:
    """Without it, older releases are accepted: so its folder counts while it is not there."""
    path = policy(REQUIRED.replace('"releases.json"', '"shared/new/releases.json"'))
    signed(bundle, KEY, release=7)
    shared = path.parent / "shared"
    shared.mkdir()
    shared.chmod(0o777)

    with pytest.raises(InputError) as caught:
        Bundle.open(bundle)
    assert caught.value.message == (
        f"the record of trusted releases `{shared}/new/releases.json` is not used, because other users can change it: "
        f"`{shared}` is writable for its group or for all users"
    )
    shared.chmod(0o755)
    Bundle.open(bundle)
    assert (shared / "new" / "releases.json").is_file()


def test_a_record_that_everyone_can_read(tmp_path: Path) -> None:
    """Also where root's umask is 077: services of other users read it."""
    before = os.umask(0o077)
    try:
        Releases(tmp_path / "releases.json").record("model", 1)
    finally:
        os.umask(before)

    assert (tmp_path / "releases.json").stat().st_mode & 0o777 == 0o644


def test_a_record_that_is_read_only(
    policy: Callable[[str], Path], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service reads what an installer wrote; it cannot open a newer release before that was recorded."""
    path = policy(REQUIRED)
    Bundle.open(signed(bundle, KEY, release=7))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ortkit.runtime.trust.releases.replacing", refuse)
    Bundle.open(bundle)
    signed(bundle, KEY, release=8)
    with pytest.raises(OutputError) as caught:
        Bundle.open(bundle)
    assert caught.value.message == (
        f"release 8 of `tiny-embedder (fp32, cpu)` cannot be recorded in `{path.parent / 'releases.json'}`: "
        "Permission denied"
    )
    assert caught.value.hint == (
        "run `ortkit verify BUNDLE` once as a user who can write this file, or name another one as `state` in the "
        "policy"
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"releases": []}',
        b'{"releases": {"a": -1}}',
        b'{"releases": {"a": true}}',
        b"\xff",
        b'{"releases": {"a": "7"}}',
        b"{}",
        b" " * ((1 << 20) + 1),
        b"[" * 100_000,
    ],
)
def test_a_record_that_is_damaged_is_not_ignored(policy: Callable[[str], Path], bundle: Path, content: bytes) -> None:
    path = policy(REQUIRED)
    signed(bundle, KEY, release=7)
    (path.parent / "releases.json").write_bytes(content)

    with pytest.raises(InputError) as caught:
        Bundle.open(bundle)
    assert caught.value.message == f"`{path.parent / 'releases.json'}` is not a record of trusted releases"
    assert (path.parent / "releases.json").read_bytes() == content


COUNT_UP = """
import sys
import tomllib
from pathlib import Path
from ortkit.runtime.trust.releases import Releases
for release in range(1, 21):
    Releases(Path(sys.argv[1])).record(sys.argv[2], release)
"""


def test_several_processes_record_at_once(tmp_path: Path) -> None:
    """No record is lost, and none is read half written."""
    path = tmp_path / "state" / "releases.json"
    names = [f"model {number}" for number in range(3)]
    processes = [subprocess.Popen([sys.executable, "-c", COUNT_UP, path, name]) for name in names]

    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert json.loads(path.read_text()) == {"releases": dict.fromkeys(names, 20)}
    assert sorted(one.name for one in path.parent.iterdir()) == [".releases.json.lock", "releases.json"]


def test_the_policy_on_the_page(policy: Callable[[str], Path]) -> None:
    """docs/signing.md shows every setting, and can be used as it is."""
    page = (Path(__file__).parents[3] / "docs" / "signing.md").read_text("utf-8")
    path = policy(page.partition("```toml\n")[2].partition("```")[0])
    (path.parent / "keys").mkdir()
    write_public(path.parent / "keys" / "key.pem", KEY)
    found = Policy.current()

    assert set(tomllib.loads(path.read_text())) == set(policies._TYPES)
    assert (found.require_signature, found.always_hash, len(found.trusted)) == (True, False, 2)
    assert found.releases.path == DEFAULT_STATE
