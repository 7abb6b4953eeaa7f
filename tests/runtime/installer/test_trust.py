"""Who made a kit: by the header with openssl, by the installer, by the keys of an installation and of a policy."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ortkit.exporters.packaging.kit import write_kit
from ortkit.runtime.installer.cli import main
from ortkit.runtime.installer.kit_file import Kit
from ortkit.runtime.installer.kit_format import HEADER_SIZE, SIGNATURE_SIZE, Parts
from ortkit.runtime.installer.trial_policy import trial_policy
from ortkit.runtime.trust.policy import Policy
from ortkit.runtime.trust.public_key import TrustedKey
from ortkit.runtime.trust.signature import verify_signature
from tests.kits import PLATFORM, Kits, OpensslKey, openssl
from tests.runtime.installer.conftest import Installer

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


@pytest.fixture
def stranger(tmp_path: Path) -> OpensslKey:
    return OpensslKey.make(tmp_path, "stranger")


@pytest.fixture
def copy(kits: Kits, tmp_path: Path) -> Path:
    """A kit that may be changed."""
    return Path(shutil.copyfile(kits.path("line1"), tmp_path / "copy.kit"))


def parts_of(kit: Path) -> Parts:
    with kit.open("rb") as file:
        found = Parts.read(file.read(HEADER_SIZE))
    assert found is not None
    return found


def put(kit: Path, offset: int, content: bytes) -> None:
    with kit.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def by_shell(kit: Path, *arguments: object, shell: str = "sh", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a kit's header with nothing in the environment but what is given."""
    command = [*(["busybox", "sh"] if shell == "busybox" else [shell]), kit, *arguments]
    whole = {"ORTKIT_PYTHON": sys.executable, "PATH": os.defpath, "LC_ALL": "C"} | environment
    return subprocess.run([*map(str, command)], env=whole, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_header_verifies_and_runs_the_installer(shell: str, kits: Kits, prefix: Path, tmp_path: Path) -> None:
    kit = Path(shutil.copyfile(kits.path("line1"), tmp_path / "with a 'quote' and space.kit"))
    finished = by_shell(
        kit, "install", "--prefix", prefix, "--trusted-key", kits.key.public_file, shell=shell, TMPDIR=str(tmp_path)
    )

    assert (finished.returncode, finished.stdout) == (0, f"line: release 1 in {prefix}, with tiny\n"), finished.stderr
    assert not list(tmp_path.glob("tmp.*")), "the header leaves its scratch folder"


def test_the_header_is_a_page_that_a_person_can_read(kits: Kits) -> None:
    header = kits.path("line1").read_bytes()[:HEADER_SIZE].decode("ascii")

    assert max(map(len, header.splitlines())) <= 132
    assert len(header.rstrip().splitlines()) < 80
    assert set(header[len(header.rstrip()) :]) == {"\n"}
    assert header.startswith("#!/bin/sh\n# line: an ortkit kit for linux-")


@pytest.mark.parametrize("curve", ["secp384r1", "secp521r1"])
def test_keys_on_other_curves(curve: str, kits: Kits, tmp_path: Path) -> None:
    """The header finds the hash of the curve's size; the installer, which a program stands for, is started then."""
    key = OpensslKey.make(tmp_path, "other", curve)
    write_kit(kits.plans["line1"], tmp_path / "any.kit", sign=key)

    finished = by_shell(tmp_path / "any.kit", "install", f"--trusted-key={key.public_file}", ORTKIT_PYTHON="/bin/echo")

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith(f"kit.zip --kit {tmp_path}/any.kit install --trusted-key={key.public_file}\n")
    with Kit.open(tmp_path / "any.kit") as kit:
        assert verify_signature(kit.files, kit.signature or b"", [TrustedKey.read(key.public_file)]).name == "line"


@dataclass(frozen=True)
class Attack:
    """A kit that may be changed, by somebody who has a key that nobody trusts."""

    kit: Path
    kits: Kits
    stranger: OpensslKey


@pytest.fixture
def attack(copy: Path, kits: Kits, stranger: OpensslKey) -> Attack:
    return Attack(copy, kits, stranger)


Change = Callable[[Attack], Path]
"""Changes the kit, and returns the key that the user names."""


def changed_installer(attack: Attack) -> Path:
    """A byte of the installer's first file is another one."""
    put(attack.kit, parts_of(attack.kit).installer + 200, b"#")
    return attack.kits.key.public_file


def other_key(attack: Attack) -> Path:
    return attack.stranger.public_file


def without_signature(attack: Attack) -> Path:
    put(attack.kit, parts_of(attack.kit).signature, b"\n" * SIGNATURE_SIZE)
    return attack.kits.key.public_file


def signed_by_a_stranger(attack: Attack) -> Path:
    """All of it made again by somebody else."""
    write_kit(attack.kits.plans["line1"], attack.kit, sign=attack.stranger)
    return attack.kits.key.public_file


def signature_of_another_kit(attack: Attack) -> Path:
    """The installer is the same, the bundles are not: the header runs the installer, which refuses."""
    parts = parts_of(attack.kit)
    put(attack.kit, parts.signature, attack.kits.path("line2").read_bytes()[parts.signature : parts.layout])
    return attack.kits.key.public_file


def signature_of_a_bundle_with_the_installer(attack: Attack) -> Path:
    """What the trusted key signed is a folder that has a file `kit.zip` with a hostile installer in it."""
    changed_installer(attack)
    with Kit.open(attack.kit) as opened:
        files = {"kit.zip": opened.files["kit.zip"], "manifest.json": "0" * 64, "model.onnx": "1" * 64}
    put(attack.kit, parts_of(attack.kit).signature, b"\n" * SIGNATURE_SIZE)
    put(attack.kit, parts_of(attack.kit).signature, attack.kits.key(files, "bundle"))
    return attack.kits.key.public_file


def payload_that_was_changed(attack: Attack) -> Path:
    """The hash in the statement is that of the changed installer, the signature is that of the statement before."""
    changed_installer(attack)
    parts = parts_of(attack.kit)
    content = attack.kit.read_bytes()
    with Kit.open(attack.kits.path("line1")) as old, Kit.open(attack.kit) as new:
        before, after = old.files["kit.zip"], new.files["kit.zip"]
    signature = json.loads(content[parts.signature : parts.layout])
    envelope = signature["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"]).replace(before.encode(), after.encode())
    envelope["payload"] = base64.b64encode(payload).decode()
    put(attack.kit, parts.signature, b"\n" * SIGNATURE_SIZE)
    put(attack.kit, parts.signature, json.dumps(signature).encode())
    return attack.kits.key.public_file


def signature_that_is_cut(attack: Attack) -> Path:
    """The payload is not base64 any more."""
    parts = parts_of(attack.kit)
    content = attack.kit.read_bytes()[parts.signature : parts.layout].rstrip()
    signature = json.loads(content)
    signature["dsseEnvelope"]["payload"] = signature["dsseEnvelope"]["payload"][:-3]
    put(attack.kit, parts.signature, json.dumps(signature).encode().ljust(len(content)))
    return attack.kits.key.public_file


def signature_of_no_files(attack: Attack) -> Path:
    """What the trusted key signed lists nothing."""
    put(attack.kit, parts_of(attack.kit).signature, b"\n" * SIGNATURE_SIZE)
    put(attack.kit, parts_of(attack.kit).signature, attack.kits.key({}, "nothing"))
    return attack.kits.key.public_file


NOT_SIGNED = "is not signed by `{key}`, or was changed\n\nhint: copy it again, or get the key of who made it"
NOT_THE_ONE = "is not the one that was signed\n\nhint: copy the file again; do not use this one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_installer, NOT_THE_ONE),
        (other_key, NOT_SIGNED),
        (without_signature, NOT_SIGNED),
        (signed_by_a_stranger, NOT_SIGNED),
        (signature_that_is_cut, NOT_SIGNED),
        (signature_of_no_files, NOT_THE_ONE),
        (payload_that_was_changed, NOT_SIGNED),
        (signature_of_a_bundle_with_the_installer, NOT_THE_ONE),
        (signature_of_another_kit, "is of other files: changed since then: `kit.index.json`"),
    ],
)
def test_what_the_header_refuses(change: Change, message: str, attack: Attack, prefix: Path) -> None:
    key = change(attack)

    finished = by_shell(attack.kit, "install", "--prefix", prefix, "--trusted-key", key)

    assert (finished.returncode, finished.stdout) == (7, ""), finished.stderr
    assert message.format(key=key) in finished.stderr
    assert not prefix.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_installer, "is of other files: changed since then: `kit.zip`"),
        (without_signature, "is not signed"),
        (signed_by_a_stranger, "that is not trusted here"),
        (payload_that_was_changed, "is not valid: it was changed, or made with another key"),
        (signature_of_a_bundle_with_the_installer, "is of other files: missing: `manifest.json`, `model.onnx`"),
        (signature_of_another_kit, "is of other files: changed since then: `kit.index.json`"),
    ],
)
def test_what_an_installed_installer_refuses(
    change: Change, message: str, attack: Attack, installed: Path, installer: Installer
) -> None:
    """Without a key on the command line: those that the first installation kept."""
    change(attack)

    ran = installer(attack.kit, "--reinstall")

    assert (ran.code, ran.out) == (7, "")
    assert message in ran.err
    assert [path.name for path in (installed / "releases").iterdir()] == ["1"]


@pytest.mark.parametrize("size", [HEADER_SIZE, HEADER_SIZE + 1000, 100_000])
def test_a_kit_that_was_cut_off(size: int, copy: Path, installer: Installer) -> None:
    whole = copy.read_bytes()
    assert len(whole) > size
    copy.write_bytes(whole[:size])

    ran = installer("install", copy, "--allow-unsigned")

    assert ran.code == 7
    assert f"error: the pack `{copy}` is not valid: " in ran.err
    assert "hint: copy it again from where it was made, and compare their sha256" in ran.err


@pytest.mark.usefixtures("installed")
def test_a_changed_header_is_refused(copy: Path, installer: Installer) -> None:
    """What the header does when it is run is not in question: the installed installer does not run it."""
    header = copy.read_bytes()[:HEADER_SIZE]
    put(copy, 0, header.replace(b"trap 'exit 130' INT", b"trap 'exit 131' INT"))

    ran = installer(copy, "--reinstall")

    assert ran.code == 7
    assert "is of other files: changed since then: `kit.sh`" in ran.err


@pytest.mark.parametrize("part", ["bundle", "wheel", "facts", "index"])
def test_a_changed_part_of_the_layout_is_refused(
    part: str, copy: Path, kits: Kits, prefix: Path, installer: Installer
) -> None:
    content = copy.read_bytes()
    with Kit.open(copy) as kit:
        marks = {
            "bundle": (kits.plans["line1"].bundles[0].path / "notes").read_bytes()[:64],
            "wheel": b"x = 7\n",
            "facts": b'"ortkit": "0.1.0"',
            "index": kit.wheels.manifest.digest.encode(),
        }
    place = content.index(marks[part], parts_of(copy).layout)
    put(copy, place + 10, bytes([content[place + 10] ^ 1]))

    ran = installer("install", copy, "--trusted-key", kits.key.public_file)

    assert (ran.code, ran.out) == (7, ""), ran.err
    assert "error: " in ran.err
    assert "Traceback" not in ran.err
    assert not list(prefix.glob("releases/*"))
    assert not (prefix / "current").exists()


@pytest.mark.parametrize(
    ("signed", "named", "options", "code", "message"),
    [
        (True, False, (), 7, "is signed, and no key is trusted here"),
        (False, False, (), 7, "is not signed\n"),
        (False, True, (), 7, "is not signed\n"),
        (True, False, ("--allow-unsigned",), 0, "warning: nothing shows who made this kit"),
        (False, False, ("--allow-unsigned",), 0, "warning: nothing shows who made this kit"),
    ],
)
def test_a_kit_that_nothing_vouches_for(
    *,
    signed: bool,
    named: bool,
    options: tuple[str, ...],
    code: int,
    message: str,
    attack: Attack,
    installer: Installer,
) -> None:
    if not signed:
        without_signature(attack)
    key = ("--trusted-key", attack.kits.key.public_file) if named else ()

    ran = installer("install", attack.kit, *key, *options)

    assert ran.code == code, ran.err
    assert message in ran.err
    if code:
        assert "to install it all the same, add `--allow-unsigned`" in ran.err


def test_what_a_kit_says_does_not_reach_the_terminal_as_it_is(attack: Attack, installer: Installer) -> None:
    """A field of a signature that nobody has verified, in the message that refuses it."""
    field = "\x1b[2K\rsigned by key\nsigned\u202e"
    put(attack.kit, parts_of(attack.kit).signature, b"\n" * SIGNATURE_SIZE)
    put(attack.kit, parts_of(attack.kit).signature, json.dumps({field: 1}).encode())

    ran = installer("install", attack.kit, "--trusted-key", attack.kits.key.public_file)

    assert ran.code == 7
    assert r"has the unknown field `\x1b[2K\rsigned by key\nsigned\u202e`" in ran.err


def test_a_wrong_signature_is_refused_even_where_none_is_needed(attack: Attack, installer: Installer) -> None:
    key = payload_that_was_changed(attack)

    assert installer("install", attack.kit, "--trusted-key", key, "--allow-unsigned").code == 7


def test_a_policy_that_requires_signatures(
    attack: Attack, kits: Kits, installer: Installer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys are enough, and `--allow-unsigned` is not."""
    policy = tmp_path / "policy.toml"
    state = tmp_path / "releases.json"
    policy.write_text(
        f'trusted_keys = ["{kits.key.public_file}"]\nrequire_signature = true\nstate = "{state}"\n', "utf-8"
    )
    monkeypatch.setenv("ORTKIT_POLICY", str(policy))

    assert installer("install", kits.path("line1")).code == 0
    # The bundle has no release counter: 0 is what is recorded, once the release is in use.
    assert not state.exists() or json.loads(state.read_text()) == {"releases": {"tiny-embedder (fp32, cpu)": 0}}

    without_signature(attack)
    ran = installer("install", attack.kit, "--allow-unsigned", "--reinstall")
    assert ran.code == 7
    assert f"is not signed; the policy `{policy}` requires a signature" in ran.err


def test_the_keys_of_a_policy_count_alone(
    installed: Path,
    installer: Installer,
    kits: Kits,
    stranger: OpensslKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who may update a machine is decided in one place: neither by `keys/` nor on the command line."""
    assert list((installed / "keys").iterdir())
    policy = tmp_path / "policy.toml"
    policy.write_text(f'trusted_keys = ["{stranger.public_file}"]\n', "utf-8")
    monkeypatch.setenv("ORTKIT_POLICY", str(policy))

    for options in ((), ("--trusted-key", kits.key.public_file)):
        ran = installer("update", kits.path("line2"), *options)
        assert (ran.code, ran.out) == (7, "")
        assert f"that is not trusted here; trusted: `{stranger.public_file}`" in ran.err
    assert f"note: the policy `{policy}` alone decides which keys count, not `--trusted-key`\n" in ran.err

    # One that trusts nobody says nothing about it.
    policy.write_text("always_hash = true\n", "utf-8")
    assert installer("update", kits.path("line2")).code == 0


def test_one_of_several_keys_is_enough(kits: Kits, stranger: OpensslKey) -> None:
    """As while keys are rotated."""
    keys = [stranger.public_file, kits.key.public_file]
    for first, second in (keys, reversed(keys)):
        finished = by_shell(
            kits.path("line1"), "install", "--trusted-key", first, f"--trusted-key={second}", ORTKIT_PYTHON="/bin/echo"
        )
        assert finished.returncode == 0, finished.stderr

    finished = by_shell(
        kits.path("line1"), "install", "--trusted-key", keys[0], "--trusted-key", keys[0], "--allow-unsigned"
    )
    assert (finished.returncode, finished.stdout) == (7, "")
    assert f"is not signed by `{keys[0]}`, `{keys[0]}`, or was changed" in finished.stderr


@pytest.mark.parametrize(
    ("machine", "loader", "code", "message"),
    [
        (
            "riscv64",
            "ld-linux-riscv64.so",
            2,
            f"error: this kit is for {PLATFORM}, and this machine is riscv64\n\nhint: get the kit for it",
        ),
        (
            "",
            "ld-musl-x86_64.so.1",
            1,
            "error: this system has musl, and a kit needs glibc\n\nhint: use a system such as Debian",
        ),
        ("", "", 1, "error: the signature cannot be verified: openssl is not installed\n\nhint: install it"),
    ],
)
def test_where_nothing_that_is_installed_would_help(
    machine: str, loader: str, code: int, message: str, copy: Path, kits: Kits, tmp_path: Path
) -> None:
    """What cannot run here at all does not ask for openssl first."""
    path = commands(tmp_path / "bin", "openssl")
    for name in ("ls", "uname"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    if machine:
        (tmp_path / "bin" / "uname").unlink()
        (tmp_path / "bin" / "uname").write_text(f"#!/bin/sh\necho {machine}\n")
        (tmp_path / "bin" / "uname").chmod(0o755)
    loaders = tmp_path / "lib"
    loaders.mkdir()
    (loaders / (loader or "libc.so.6")).touch()
    header = copy.read_bytes()[:HEADER_SIZE].rstrip()
    header = header.replace(b"/lib/ld-musl", bytes(loaders) + b"/ld-musl").replace(b"/lib*/ld-linux", b"/nowhere/ld")
    put(copy, 0, header.ljust(HEADER_SIZE, b"\n"))

    finished = by_shell(copy, "install", "--trusted-key", kits.key.public_file, shell="/bin/sh", PATH=path)

    assert finished.returncode == code, finished.stderr
    assert finished.stderr.startswith(message)


def test_a_downgrade_is_checked_without_the_recorded_releases(
    kits: Kits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ortkit doctor` refuses an older bundle too, and has no option `--allow-downgrade`."""
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'trusted_keys = ["{kits.key.public_file}"]\nrequire_signature = true\nstate = "releases.json"\n', "utf-8"
    )
    monkeypatch.setenv("ORTKIT_POLICY", str(policy))
    Policy.current().accept("tiny", 9)

    for allowed, highest in ((False, 9), (True, 0)):
        with trial_policy(allow_downgrade=allowed) as path:
            assert path is not None
            assert Policy.read(path).releases.highest("tiny") == highest
            assert Policy.read(path).require_signature
    assert Policy.current().releases.highest("tiny") == 9


def test_keys_that_others_can_change_are_not_used(installed: Path, installer: Installer, kits: Kits) -> None:
    (key,) = (installed / "keys").iterdir()
    key.chmod(0o666)

    ran = installer(kits.path("line2"))

    assert ran.code == 2
    assert f"error: the trusted key `{key}` is not used, because other users can change it" in ran.err
    assert f"hint: `chmod go-w {key}`" in ran.err


def test_the_key_that_is_kept_is_the_one_that_verified(
    kits: Kits,
    installer: Installer,
    prefix: Path,
    stranger: OpensslKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that is named may lie where others can write, such as on a stick, and a minute passes."""
    key = Path(shutil.copyfile(kits.key.public_file, tmp_path / "named.pub"))
    monkeypatch.setattr(
        "ortkit.runtime.installer.install.check_release",
        lambda *_, **__: shutil.copyfile(stranger.public_file, key),
    )

    assert installer("install", kits.path("line1"), "--trusted-key", key).code == 0

    (kept,) = (prefix / "keys").iterdir()
    assert kept.read_bytes() == kits.key.public_file.read_bytes()
    assert kept.name.startswith("named-")


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 5, "there is no key at `"),
        (b"no key", 2, "is not a public key in PEM: it has no block `-----BEGIN PUBLIC KEY-----`"),
    ],
)
def test_what_is_not_a_key(
    content: bytes | None, code: int, message: str, kits: Kits, installer: Installer, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "other.pub").write_bytes(content)

    ran = installer("install", kits.path("line1"), "--trusted-key", tmp_path / "other.pub")

    assert ran.code == code
    assert message in ran.err


def test_the_private_key_is_not_taken_for_the_public_one(kits: Kits, installer: Installer) -> None:
    ran = installer("install", kits.path("line1"), "--trusted-key", kits.key.private)

    assert ran.code == 2
    assert "is a private key, and a public key is needed to verify" in ran.err


# What the header says of the machine.


def test_the_header_without_a_key_file(kits: Kits, prefix: Path) -> None:
    finished = by_shell(kits.path("line1"), "install", "--prefix", prefix, "--trusted-key", "/nonexistent.pub")

    assert finished.returncode == 5
    assert finished.stderr == (
        "error: there is no key at `/nonexistent.pub`\n\nhint: name the public key of who made this kit\n"
    )


def test_the_header_without_a_folder_for_temporary_files(kits: Kits, prefix: Path, tmp_path: Path) -> None:
    arguments = ("install", "--allow-unsigned", "--prefix", prefix)
    finished = by_shell(kits.path("line1"), *arguments, TMPDIR=str(tmp_path / "none"))

    assert finished.returncode == 1
    assert finished.stderr == (
        "error: there is no folder for temporary files that can be written\n\n"
        f"hint: name one: TMPDIR=/path sh {kits.path('line1')} ...\n"
    )


def test_the_header_without_space_for_temporary_files(kits: Kits, tmp_path: Path) -> None:
    """As on a full disk: no file may be longer than 64 KB, and the installer is."""
    limited = [
        "sh",
        "-c",
        'ulimit -f 128; exec sh "$@"',
        "sh",
        kits.path("line1"),
        "install",
        "--allow-unsigned",
        "--prefix",
        tmp_path / "opt",
    ]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    finished = subprocess.run([*map(str, limited)], env=environment, capture_output=True, text=True, check=False)

    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.endswith(
        f"error: `{kits.path('line1')}` cannot be read, or `{tmp_path}` has no space\n\n"
        f"hint: copy it again, or name a folder: TMPDIR=/path sh {kits.path('line1')} ...\n"
    )
    assert not list(tmp_path.iterdir())


def commands(folder: Path, *left_out: str) -> str:
    """A PATH with what the header needs, but for some."""
    folder.mkdir()
    for name in ("mktemp", "dd", "sed", "base64", "wc", "cat", "openssl", "tr", "grep", "rm"):
        if name not in left_out:
            (folder / name).symlink_to(shutil.which(name))
    return str(folder)


def test_the_header_without_openssl(kits: Kits, prefix: Path, tmp_path: Path) -> None:
    path = commands(tmp_path / "bin", "openssl")
    finished = by_shell(
        kits.path("line1"),
        "install",
        "--prefix",
        prefix,
        "--trusted-key",
        kits.key.public_file,
        shell="/bin/sh",
        PATH=path,
    )

    assert finished.returncode == 1
    assert "error: the signature cannot be verified: openssl is not installed" in finished.stderr
    assert not prefix.exists()


def test_the_header_needs_no_more_than_these_commands(kits: Kits, prefix: Path, tmp_path: Path) -> None:
    path = commands(tmp_path / "bin")
    finished = by_shell(
        kits.path("line1"),
        "install",
        "--prefix",
        prefix,
        "--trusted-key",
        kits.key.public_file,
        shell="/bin/sh",
        PATH=path,
    )

    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("named", ["", "/nonexistent/python"])
def test_the_header_without_python(named: str, kits: Kits, tmp_path: Path) -> None:
    path = commands(tmp_path / "bin")
    finished = by_shell(
        kits.path("line1"), "install", "--allow-unsigned", shell="/bin/sh", PATH=path, ORTKIT_PYTHON=named
    )

    version = ".".join(map(str, sys.version_info[:2]))
    assert finished.returncode == 1
    assert f"error: Python {version} is not installed: `{named or f'python{version}'}`" in finished.stderr
    assert f"hint: install it, or name it: ORTKIT_PYTHON=/path/to/python{version} sh " in finished.stderr


def old_pythons() -> list[Path]:
    return sorted((Path.home() / ".pyenv" / "versions").glob("3.[6-9].*/bin/python3"))


@pytest.mark.skipif(not old_pythons(), reason="no Python before 3.11 is here")
def test_an_older_python_says_so(kits: Kits) -> None:
    for python in old_pythons():
        finished = by_shell(kits.path("line1"), "install", "--allow-unsigned", ORTKIT_PYTHON=str(python))

        assert finished.returncode == 1
        assert f"error: `{python}` is Python 3." in finished.stderr
        assert "and ortkit needs 3.11 or later\n\nhint: install a newer Python beside it" in finished.stderr


def test_a_python_without_its_standard_library(copy: Path, tmp_path: Path) -> None:
    """As Debian's `python3-minimal`."""
    wrapper = tmp_path / "python"
    run = "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"import runpy, sys; sys.modules['ctypes'] = None; {run}"
    wrapper.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -I -c "{code}" "$@"\n')
    wrapper.chmod(0o755)

    finished = by_shell(copy, "install", "--allow-unsigned", ORTKIT_PYTHON=str(wrapper))

    assert finished.returncode == 1, finished.stderr
    assert "lacks the module `ctypes` of Python's standard library" in finished.stderr
    assert "hint: install the whole of Python: on Debian `python3`, not only `python3-minimal`" in finished.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--help",),
        ("install",),
        ("status", "--prefix", "/opt"),
        # Without the key, or with another option's name: nothing was verified.
        ("install", "--trusted-key"),
        ("install", "--trusted-keys", "key.pub"),
    ],
)
def test_the_header_runs_nothing_without_a_key(arguments: tuple[str, ...], kits: Kits, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho ran > {tmp_path}/ran\n")
    python.chmod(0o755)

    finished = by_shell(kits.path("line1"), *arguments, ORTKIT_PYTHON=str(python))

    assert (finished.returncode, finished.stdout) == (2, "")
    assert f"error: no key is named, so nothing in `{kits.path('line1')}` is run" in finished.stderr
    assert f"hint: sh {kits.path('line1')} install --trusted-key KEY.pub; or --allow-unsigned" in finished.stderr
    assert not (tmp_path / "ran").exists()
    assert by_shell(kits.path("line1"), "--allow-unsigned", ORTKIT_PYTHON=str(python)).returncode == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("option", ["--trusted-certificate", "--trusted-certificate=ca.pem"])
def test_the_header_does_not_pretend_to_check_a_certificate(option: str, kits: Kits) -> None:
    finished = by_shell(kits.path("line1"), "install", "--trusted-key", kits.key.public_file, option, "ca.pem")

    assert (finished.returncode, finished.stdout) == (2, "")
    assert "error: this text cannot check a certificate\n\nhint: use an installer that you have" in finished.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("install", "--help")])
def test_help(arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])

    assert ended.value.code == 0
    assert "usage: ortkit-install" in capfd.readouterr().out


def test_interrupting_the_header_leaves_nothing(kits: Kits, tmp_path: Path) -> None:
    """Ctrl-C goes to the shell and to Python."""
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\ntrap 'exit 130' INT\necho started\nsleep 60 & wait\n")
    slow.chmod(0o755)
    process = subprocess.Popen(
        ["sh", kits.path("line1"), "install", "--allow-unsigned"],
        env={"ORTKIT_PYTHON": str(slow), "PATH": os.defpath, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    os.killpg(process.pid, 2)

    assert process.wait(30) == 130
    process.stdout.close()
    assert not list(tmp_path.glob("tmp.*"))


def test_the_signature_is_of_the_documented_format(kits: Kits, tmp_path: Path) -> None:
    """By the commands of docs/kit.md, typed by hand."""
    signature = tmp_path / "signature"
    parts = parts_of(kits.path("line1"))
    signature.write_bytes(kits.path("line1").read_bytes()[parts.signature : parts.layout])
    envelope = json.loads(signature.read_text())["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    (tmp_path / "pae").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload)

    shown = openssl(
        "dgst", "-sha256", "-verify", kits.key.public_file, "-signature", tmp_path / "sig", tmp_path / "pae"
    )

    assert shown == b"Verified OK\n"
    names = [entry["name"] for entry in json.loads(payload)["predicate"]["resources"]]
    assert names == ["kit.index.json", "kit.sh", "kit.zip"]


def test_a_kit_of_a_later_format(
    kits: Kits, installer: Installer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ortkit.runtime.installer import kit_format

    monkeypatch.setattr(kit_format, "FORMAT", 2)
    write_kit(kits.plans["line1"], tmp_path / "later.kit", sign=kits.key)
    monkeypatch.setattr(kit_format, "FORMAT", 1)

    ran = installer("install", tmp_path / "later.kit", "--trusted-key", kits.key.public_file)

    assert ran.code == 1
    assert f"error: `{tmp_path}/later.kit` has the format 2, and this installer reads 1" in ran.err
    assert f"hint: use the installer in the kit: `sh {tmp_path}/later.kit install --trusted-key KEY`" in ran.err
