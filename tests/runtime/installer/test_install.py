"""Install, update, roll back and uninstall small kits; what fails leaves what was there."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ortkit.exporters.packaging.kit import write_kit
from ortkit.runtime.bundle.folder import SBOM_FILE
from ortkit.runtime.errors import OutputError
from ortkit.runtime.installer import checks, cli, files, install
from ortkit.runtime.installer import installation as installation_module
from ortkit.runtime.installer.host import Host
from ortkit.runtime.installer.installation import Installation
from ortkit.runtime.installer.kit_file import Kit
from tests.kits import Kits, OpensslKey, record_hash
from tests.runtime.installer.conftest import Installer

VERSION = re.compile(r"ortkit, version (\S+)")


def run(prefix: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command, in an environment that has nothing else."""
    command = [prefix / "bin" / "ortkit", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def version_of(prefix: Path) -> str:
    """Which release answers."""
    finished = run(prefix, "--version")
    found = VERSION.fullmatch(finished.stdout.strip())
    assert found is not None, finished.stderr
    return found[1]


def tree(folder: Path) -> dict[str, bytes | str]:
    """All files and links below a folder, without byte code, which appears when a release runs."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and "__pycache__" not in path.parts
    }


def test_the_first_installation(installer: Installer, kits: Kits, prefix: Path) -> None:
    ran = installer("install", kits.path("line1"), "--trusted-key", kits.key.public_file)

    assert (ran.code, ran.out) == (0, f"line: release 1 in {prefix}, with tiny\n"), ran.err
    fingerprint = kits.key.public.fingerprint
    assert ran.err.splitlines() == [
        f"signed by key `{kits.key.public_file}` (sha256 {fingerprint[:16]}...)",
        "unpacking 2 packages, sharing 0",
        "copying tiny",
        "verifying tiny on this machine",
        f"run it with `{prefix}/bin/ortkit`",
    ]
    assert (prefix / "current").readlink() == Path("releases/1")
    bundle = kits.plans["line1"].bundles[0].path
    assert tree(prefix / "current" / "bundles" / "tiny") == tree(bundle)
    assert json.loads((prefix / "current/sbom/ortkit-sbom" / SBOM_FILE).read_text())["bomFormat"] == "CycloneDX"
    assert json.loads((prefix / "current/sbom/tiny" / SBOM_FILE).read_text())["bomFormat"] == "CycloneDX"
    assert version_of(prefix) == "0.1.0"
    assert {path.name for path in prefix.iterdir()} == {".lock", "bin", "current", "keys", "releases", "state.json"}


def test_the_environment_has_the_packages_of_the_kit_alone(installed: Path) -> None:
    python = installed / "current" / "python" / "bin" / "python"
    code = "import sys, library.part3, ortkit; print(sys.prefix, ortkit.__file__, *sys.path[1:], sep='\\n')"
    shown = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True, env={}).stdout

    folder, package, *path = shown.splitlines()
    release = (installed / "releases" / "1").resolve()
    assert Path(folder).resolve() == release / "python"
    assert Path(package).resolve().is_relative_to(release)
    assert not [
        entry for entry in path if "site-packages" in entry and not Path(entry).resolve().is_relative_to(release)
    ]
    assert (
        subprocess.run([python, "-I", "-c", "import pytest"], capture_output=True, check=False, env={}).returncode == 1
    )


def test_bundles_are_found_by_name(installed: Path) -> None:
    """By ORTKIT_BUNDLES, which is that of the release that runs, unless the user set another."""
    command = (installed / "bin" / "ortkit").read_text()
    shown = command.replace('exec "$python" -I -m ortkit "$@"', 'echo "$ORTKIT_BUNDLES"')
    assert shown != command
    for environment, expected in (({}, f"{installed}/releases/1/bundles"), ({"ORTKIT_BUNDLES": "/srv"}, "/srv")):
        found = subprocess.run(["sh", "-c", shown], env=environment, capture_output=True, text=True, check=True).stdout
        assert found == f"{expected}\n"


@pytest.mark.parametrize("kit", ["line2", "update"])
def test_an_update_shares_what_did_not_change(installed: Path, installer: Installer, kits: Kits, kit: str) -> None:
    """The kit that leaves out what `line1` has gives the same release as the whole one."""
    ran = installer("update", kits.path(kit))

    assert (ran.code, ran.out) == (0, f"line: release 2 in {installed}, with tiny\n"), ran.err
    assert "unpacking 1 packages, sharing 1" in ran.err
    assert version_of(installed) == "99.0"
    first, second = installed / "releases" / "1", installed / "releases" / "2"
    assert tree(second / "bundles" / "tiny") == tree(kits.plans["line2"].bundles[0].path)
    site = next((second / "python" / "lib").glob("*/site-packages")).relative_to(second)
    for shared in ("bundles/tiny/model.onnx", "bundles/tiny/tokenizer.json", site / "library/part3.py"):
        assert (first / shared).samefile(second / shared)
    for new in ("bundles/tiny/manifest.json", "bundles/tiny/notes", site / "ortkit/__main__.py"):
        assert not (first / new).samefile(second / new)
    writable = [
        path for path in second.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o222
    ]
    assert {path.name for path in writable if "__pycache__" not in path.parts} == {"pyvenv.cfg", "release.json"}


def test_an_update_kit_carries_only_what_is_new(kits: Kits) -> None:
    with Kit.open(kits.path("line2")) as whole, Kit.open(kits.path("update")) as update:
        assert whole.digest == update.digest
        missing = update.layout.missing(update.bundles["tiny"])
        assert sorted(missing) == ["model.onnx", "tokenizer.json"]
        assert [name.split("-")[0] for name in update.layout.missing(update.wheels)] == ["library"]
        assert not any(whole.layout.missing(artifact) for artifact in whole.layout.artifacts)


def test_an_update_kit_alone_is_refused(installer: Installer, kits: Kits, prefix: Path) -> None:
    ran = installer("install", kits.path("update"), "--trusted-key", kits.key.public_file)

    assert (ran.code, ran.out) == (7, "")
    assert (
        "error: the kit leaves out `library-1.0-py3-none-any.whl` of `ortkit-wheels`, which is not installed here"
        in ran.err
    )
    assert "hint: it was made for a machine that has an earlier release: use a kit that was made without" in ran.err
    assert not prefix.exists()


def test_an_update_kit_where_the_installed_copy_was_changed(installed: Path, installer: Installer, kits: Kits) -> None:
    path = installed / "releases/1/bundles/tiny/tokenizer.json"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b" ")

    ran = installer("update", kits.path("update"))

    assert ran.code == 7
    assert "error: the kit leaves out `tokenizer.json` of `tiny`, and the installed copy of it was changed" in ran.err
    assert "hint: use a kit that was made without `--since` and `--have`" in ran.err
    assert version_of(installed) == "0.1.0"
    # A whole kit replaces it.
    assert installer("update", kits.path("line2")).code == 0
    assert (installed / "current/bundles/tiny/tokenizer.json").read_bytes() == content


def test_a_changed_package_is_not_shared(installed: Path, installer: Installer, kits: Kits) -> None:
    site = next((installed / "releases/1/python/lib").glob("*/site-packages"))
    (site / "library/part3.py").unlink()
    (site / "library/part3.py").write_text("x = 'changed'")

    ran = installer("update", kits.path("update"))
    assert ran.code == 7
    assert "error: the kit leaves out `library-1.0-py3-none-any.whl`, and its installed files were changed" in ran.err

    assert installer("update", kits.path("line2")).code == 0
    new = next((installed / "current/python/lib").glob("*/site-packages"))
    assert (new / "library/part3.py").read_text() == "x = 3\n"


def test_a_package_that_was_changed_with_its_record_is_not_shared(
    installed: Path, installer: Installer, kits: Kits
) -> None:
    """The kit has the hash of each package's RECORD, and that the hashes of its files."""
    site = next((installed / "releases/1/python/lib").glob("*/site-packages"))
    content = b"x = 'changed'"
    for path, text in (
        (site / "library/part3.py", content.decode()),
        (
            site / "library-1.0.dist-info/RECORD",
            (site / "library-1.0.dist-info/RECORD")
            .read_text()
            .replace(
                f"library/part3.py,{record_hash(b'x = 3' + bytes([10]))},6",
                f"library/part3.py,{record_hash(content)},13",
            ),
        ),
    ):
        path.unlink()
        path.write_text(text)
    assert record_hash(content) in (site / "library-1.0.dist-info/RECORD").read_text()

    ran = installer("update", kits.path("update"))
    assert ran.code == 7
    assert "error: the kit leaves out `library-1.0-py3-none-any.whl`, and its installed files were changed" in ran.err

    assert installer("update", kits.path("line2")).code == 0
    new = next((installed / "current/python/lib").glob("*/site-packages"))
    assert (new / "library/part3.py").read_text() == "x = 3\n"


def test_a_release_that_does_not_verify_here_is_refused(installed: Path, installer: Installer, kits: Kits) -> None:
    assert installer("update", kits.path("line2")).code == 0
    before = tree(installed)

    ran = installer("update", kits.path("broken"))

    assert (ran.code, ran.out) == (7, "")
    assert ran.err.endswith(
        "error: `ortkit verify tiny` of the new release ended with exit code 7:\n"
        "  | error: the logits are others than certified\n\n"
        "hint: release 2 is in use as before; show these lines to who made the kit\n"
    )
    assert tree(installed) == before
    assert version_of(installed) == "99.0"


def test_what_is_fine_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kits: Kits) -> None:
    """And the machine's policy is named, not the temporary one."""
    machine = tmp_path / "policy.toml"
    machine.write_text(f'trusted_keys = ["{kits.key.public_file}"]\nrequire_signature = true\n')
    monkeypatch.setenv("ORTKIT_POLICY", str(machine))

    class Doctor:
        def run(self, *_: str, bundles: Path, policy: Path) -> subprocess.CompletedProcess[str]:
            assert bundles == tmp_path
            printed = (
                f"ok       clock: well\nerror    bundle-signature: refused by `{policy}`\n           do:  sign it\n"
            )
            return subprocess.CompletedProcess([], 7, printed, "")

    with pytest.raises(checks.CheckError) as raised:
        checks._run(Doctor(), tmp_path, "doctor", "tiny", policy=Path("/tmp/ortkit-policy-1/policy.toml"))

    assert raised.value.exit_code == 7
    assert raised.value.message == (
        "`ortkit doctor tiny` of the new release ended with exit code 7:\n"
        f"  | error    bundle-signature: refused by `{machine}`\n"
        "  |            do:  sign it"
    )


@pytest.mark.parametrize(("release", "named"), [(".new-01234567", "FOLDER"), ("3", "{}")])
def test_a_folder_that_is_gone_afterwards_is_not_named(tmp_path: Path, release: str, named: str) -> None:
    """The hints of a check name the folder of a release only if the release stays."""
    bundles = tmp_path / "releases" / release / "bundles"

    class Doctor:
        def run(self, *_: str, bundles: Path, policy: Path | None) -> subprocess.CompletedProcess[str]:  # noqa: ARG002
            return subprocess.CompletedProcess([], 7, f"error    x: y\n  do:  run `ortkit verify {bundles}/tiny`\n", "")

    with pytest.raises(checks.CheckError) as raised:
        checks._run(Doctor(), bundles, "doctor", str(bundles / "tiny"))

    shown = named.format(bundles)
    assert raised.value.message == (
        "`ortkit doctor tiny` of the new release ended with exit code 7:\n"
        f"  | error    x: y\n  |   do:  run `ortkit verify {shown}/tiny`"
    )
    assert raised.value.hint == (
        "show these lines to who made the kit; `ortkit unpack KIT -o FOLDER` writes its bundles to a folder, for the "
        "commands in them"
        if shown == "FOLDER"
        else None
    )


def test_a_release_that_cannot_start_is_refused(
    installed: Path, installer: Installer, kits: Kits, tmp_path: Path
) -> None:
    """It passes its checks, and then its Python is not there any more: `current` goes back."""
    python = tmp_path / "python"
    python.symlink_to(os.path.realpath(sys.executable))

    def then_gone(*_: object, **__: object) -> None:
        new = next((installed / "releases").glob(".new-*"))
        (new / "python/bin/python").unlink()
        (new / "python/bin/python").symlink_to("/nonexistent/python")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(install, "check_release", then_gone)
        ran = installer("update", kits.path("line2"))

    assert ran.code == 1
    assert re.search(r"error: `.*/python` cannot be started: No such file or directory", ran.err)
    assert version_of(installed) == "0.1.0"
    assert [path.name for path in (installed / "releases").iterdir()] == ["1"]


def test_rollback(installed: Path, installer: Installer, kits: Kits) -> None:
    assert installer("rollback").code == 5
    assert installer("update", kits.path("line2")).code == 0

    ran = installer("rollback")

    assert (ran.code, ran.out) == (0, f"line: release 1 in {installed}\n"), ran.err
    assert version_of(installed) == "0.1.0"
    assert installer("rollback", "--to", 2).code == 0
    assert version_of(installed) == "99.0"

    ran = installer("rollback", "--to", 7)
    assert ran.code == 5
    assert ran.err == (
        f"error: there is no release 7 in `{installed}`\n\n"
        f"hint: its releases: 1, 2; `{installed}/bin/ortkit-install status` shows what they are\n"
    )


def test_rollback_without_a_release_before(installed: Path, installer: Installer) -> None:
    ran = installer("rollback")

    assert ran.code == 5
    assert f"error: there is no release before 1 in `{installed}`" in ran.err
    assert f"hint: `{installed}/bin/ortkit-install status` lists the releases" in ran.err


def test_the_two_last_releases_are_kept(installed: Path, installer: Installer, kits: Kits) -> None:
    for kit, options in (("line2", ()), ("line1", ("--allow-downgrade",)), ("line2", ())):
        assert installer("update", kits.path(kit), *options).code == 0

    assert sorted(path.name for path in (installed / "releases").iterdir()) == ["3", "4"]
    assert (installed / "current").readlink() == Path("releases/4")
    # After going back, the next update keeps the release that was gone back to.
    assert installer("rollback").code == 0
    assert installer("update", kits.path("line2"), "--reinstall").code == 0
    assert sorted(path.name for path in (installed / "releases").iterdir()) == ["3", "5"]


def test_the_same_kit_again_changes_nothing(installed: Path, installer: Installer, kits: Kits) -> None:
    before = tree(installed)

    ran = installer("install", kits.path("line1"))

    assert (ran.code, ran.out) == (0, f"line: release 1 in {installed}, with tiny\n")
    assert "the kit is installed already, as release 1" in ran.err
    assert tree(installed) == before


def test_a_damaged_release_is_installed_again(installed: Path, installer: Installer, kits: Kits) -> None:
    damaged = installed / "releases/1/bundles/tiny/model.onnx"
    damaged.unlink()
    damaged.write_bytes(b"damaged")

    ran = installer("install", kits.path("line1"), "--reinstall")

    assert (ran.code, ran.out) == (0, f"line: release 2 in {installed}, with tiny\n"), ran.err
    assert tree(installed / "current/bundles/tiny") == tree(kits.plans["line1"].bundles[0].path)


def test_an_older_release_is_refused(installed: Path, installer: Installer, kits: Kits) -> None:
    assert installer("update", kits.path("line2")).code == 0

    ran = installer("update", kits.path("line1"))

    assert ran.code == 7
    assert (
        f"error: `{kits.path('line1')}` is release 1, and release 2 of `line` was installed in `{installed}`" in ran.err
    )
    assert (
        "hint: an older kit may have faults that a newer one repairs; to install it all the same, add `--allow-downg"
        in ran.err
    )
    # Nor after going back, or where the record of it is gone.
    assert installer("rollback").code == 0
    (installed / "state.json").unlink()
    assert installer("update", kits.path("line1"), "--reinstall").code == 7
    assert installer("update", kits.path("line1"), "--reinstall", "--allow-downgrade").code == 0
    assert version_of(installed) == "0.1.0"


def test_the_highest_release_counts_when_it_was_removed(installed: Path, installer: Installer, kits: Kits) -> None:
    assert installer("update", kits.path("line2")).code == 0
    assert json.loads((installed / "state.json").read_text()) == {"releases": {"line": 2}}
    assert installer("rollback").code == 0
    shutil.rmtree(installed / "releases/2")

    assert installer("update", kits.path("line1"), "--reinstall").code == 7


def test_a_kit_without_a_counter_is_older_than_one_with(
    installed: Path, installer: Installer, kits: Kits, tmp_path: Path
) -> None:
    plan = dataclasses.replace(kits.plans["line2"], release=0)
    write_kit(plan, tmp_path / "any.kit", sign=kits.key)

    ran = installer("update", tmp_path / "any.kit")

    assert ran.code == 7
    assert f"any.kit` has no release counter, and release 1 of `line` was installed in `{installed}`" in ran.err


@pytest.mark.usefixtures("installed")
def test_status(installer: Installer, kits: Kits) -> None:
    assert installer("update", kits.path("line2")).code == 0

    lines = installer("status").out.splitlines()
    assert [line for line in lines if "signed" not in line] == [
        "  1  line, release 1 of it, ortkit 0.1.0: tiny",
        "* 2  line, release 2 of it, ortkit 99.0: tiny",
    ]
    assert sum("signed by key" in line for line in lines) == 2
    shown = json.loads(installer("status", "--json").out)
    assert (shown["current"], sorted(shown["releases"]), shown["error"]) == (2, ["1", "2"], None)
    assert shown["releases"]["2"]["bundles"] == ["tiny"]


@pytest.mark.usefixtures("installed")
def test_what_is_installed_as_a_list_of_digests(installer: Installer, kits: Kits) -> None:
    digests = installer("have").out.split()

    with Kit.open(kits.path("line1")) as kit:
        tiny = kit.bundles["tiny"].layers
        listed = {blob.digest for blob in (*kit.wheels.layers.values(), *tiny.values())}
    assert set(digests) == listed - {tiny[SBOM_FILE].digest}
    assert digests == sorted(digests)


@pytest.mark.parametrize("command", ["status", "have", "rollback", "uninstall"])
def test_commands_where_nothing_is_installed(command: str, installer: Installer, prefix: Path) -> None:
    prefix.mkdir(parents=True)

    ran = installer(command)

    assert (ran.code, ran.out) == (5, "")
    assert f"error: nothing is installed in `{prefix}`" in ran.err
    assert not any(prefix.iterdir())


def test_uninstall(installed: Path, installer: Installer, kits: Kits) -> None:
    assert installer("update", kits.path("line2")).code == 0

    ran = installer("uninstall")

    assert (ran.code, ran.out) == (0, f"removed the installation in {installed}\n"), ran.err
    assert not installed.exists()


def test_uninstall_leaves_what_others_made(installed: Path, installer: Installer) -> None:
    (installed / "bin" / "other").write_text("mine")
    (installed / "notes.txt").write_text("mine")
    (installed / "state.json").unlink()
    (installed / "state.json").mkdir()
    (installed / "state.json" / "own.txt").write_text("mine")

    ran = installer("uninstall")

    assert ran.code == 0
    assert f"note: `{installed}` still has bin, notes.txt, state.json, which the installer did not make" in ran.err
    assert set(tree(installed)) == {"bin/other", "notes.txt", "state.json/own.txt"}


# What keeps an installation from happening, each with a way on.


def test_current_that_somebody_made_a_folder(installed: Path, installer: Installer, kits: Kits) -> None:
    (installed / "current").unlink()
    (installed / "current").mkdir()

    for arguments in (("update", kits.path("line2")), ("status",)):
        ran = installer(*arguments)
        assert ran.code == 7
        assert f"error: `{installed}/current` was changed: it is not the link that the installer made" in ran.err
        assert f"hint: move it away, then choose a release: `{installed}/bin/ortkit-install rollback --to 1`" in ran.err
    ran = installer("rollback", "--to", 1)
    assert ran.code == 7
    assert "was changed: it is not the link that the installer made (Is a directory)" in ran.err
    (installed / "current").rmdir()
    assert installer("rollback", "--to", 1).code == 0
    assert version_of(installed) == "0.1.0"


@pytest.mark.parametrize("target", ["/opt/other", "releases/7", "releases/../releases/1", "releases/1/bundles"])
def test_current_that_leads_elsewhere(target: str, installed: Path, installer: Installer, kits: Kits) -> None:
    (installed / "current").unlink()
    (installed / "current").symlink_to(target)

    ran = installer("update", kits.path("line2"))

    assert ran.code == 7
    assert (
        f"error: `{installed}/current` was changed: it leads to `{target}`, which is not a whole release of this folder"
        in ran.err
    )
    assert f"hint: choose a release: `{installed}/bin/ortkit-install rollback --to 1`" in ran.err
    # The command that the hint names does not need `current`.
    command = [installed / "bin" / "ortkit-install", "rollback", "--to", "1"]
    assert subprocess.run(command, capture_output=True, check=False, env={}).returncode == 0
    assert version_of(installed) == "0.1.0"


@pytest.mark.parametrize("target", [None, "/", "releases/9"])
def test_the_command_without_a_current_release(target: str | None, installed: Path) -> None:
    (installed / "current").unlink()
    if target is not None:
        (installed / "current").symlink_to(target)

    finished = run(installed, "--version")

    assert finished.returncode == 1
    assert finished.stderr == (
        f"error: there is no release at `{installed}/current`\n\n"
        f"hint: `{installed}/bin/ortkit-install status` shows what is there\n"
    )


def test_the_command_without_its_python(installed: Path) -> None:
    python = installed / "current/python/bin/python"
    python.unlink()
    python.symlink_to("/nonexistent/python")

    finished = run(installed, "--version")

    assert finished.returncode == 1
    version = ".".join(map(str, sys.version_info[:2]))
    assert (
        f"error: `{os.path.realpath(Host.this().executable)}`, which this release was installed for, is not there"
        in finished.stderr
    )
    assert f"hint: install Python {version} again, or a kit for the Python that is there" in finished.stderr


@pytest.mark.parametrize("name", ["bin/ortkit", "releases/mine"])
def test_a_folder_that_is_something_elses_is_refused(name: str, prefix: Path, installer: Installer, kits: Kits) -> None:
    (prefix / name).parent.mkdir(parents=True)
    (prefix / name).write_text("mine")

    ran = installer("install", kits.path("line1"), "--trusted-key", kits.key.public_file)

    assert ran.code == 1
    assert f"error: `{prefix / name}` was not made by the installer, so `{prefix}` is not used" in ran.err
    assert "hint: choose another folder with `--prefix`" in ran.err
    assert set(tree(prefix)) == {name}


def test_a_second_installer_is_refused(installed: Path, installer: Installer, kits: Kits) -> None:
    held = os.open(installed / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        for arguments in (("update", kits.path("line2")), ("rollback", "--to", 1), ("uninstall",)):
            ran = installer(*arguments)
            assert (ran.code, ran.out) == (1, "")
            assert f"error: another installer is working in `{installed}`" in ran.err
            assert "hint: wait until it has finished, and try again" in ran.err
    finally:
        os.close(held)
    assert installer("update", kits.path("line2")).code == 0


def test_another_user_cannot_keep_updates_away(installed: Path, installer: Installer) -> None:
    """Whoever can read a folder can lock it; the file that counts is of its owner alone."""
    held = os.open(installed, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert installer("rollback", "--to", 1).code == 0
    finally:
        os.close(held)
    assert (installed / ".lock").stat().st_mode & 0o777 == 0o600


def test_the_lock_of_an_installation_that_was_removed(
    installed: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another installer, between the opening of the file and the lock."""
    monkeypatch.setattr(installation_module.fcntl, "flock", lambda *_: (installed / ".lock").unlink())

    ran = installer("rollback", "--to", 1)

    assert ran.code == 1
    assert "error: another installer is working in" in ran.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("place", ["opt", "opt/ortkit"])
def test_root_does_not_install_where_another_user_can_write(
    place: str, installer: Installer, kits: Kits, prefix: Path, tmp_path: Path
) -> None:
    """They could replace what root is about to run."""
    (tmp_path / place).mkdir(parents=True)
    os.chown(tmp_path / place, 12345, -1)
    arguments = ("install", kits.path("line1"), "--trusted-key", kits.key.public_file)

    ran = installer(*arguments)

    assert (ran.code, ran.out) == (1, "")
    assert (
        f"error: the folder `{prefix}` is not used, because other users can change it: `{tmp_path / place}` belongs to "
        "the user 12345\n\nhint: run the installer as that user, or choose another folder with `--prefix`\n"
    ) in ran.err
    assert not any((tmp_path / place).iterdir())
    os.chown(tmp_path / place, 0, -1)
    (tmp_path / place).chmod(0o777)
    assert "is writable for its group or for all users" in installer(*arguments).err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("place", [".", "bin", "keys", "releases", "releases/1"])
def test_root_does_not_update_what_another_user_installed(
    place: str, installed: Path, installer: Installer, kits: Kits
) -> None:
    """Wholly, or in part, as after `chown root` of the folder alone."""
    os.chown(installed / place, 12345, -1)

    for arguments in (("update", kits.path("line2")), ("rollback", "--to", "1"), ("uninstall",)):
        ran = installer(*arguments)
        assert (ran.code, ran.out) == (1, "")
        assert f"because other users can change it: `{installed / place}` belongs to the user 12345" in ran.err
        assert ran.err.endswith("hint: run the installer as that user, or choose another folder with `--prefix`\n")
    assert [path.name for path in (installed / "releases").iterdir()] == ["1"]


def test_a_release_whose_bundles_cannot_be_recorded_is_not_kept(
    installed: Path, installer: Installer, kits: Kits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a policy, with a record that this user cannot write: opening the new bundles would be refused."""

    def refuse(*_: object, **__: object) -> None:
        raise OutputError("release 2 cannot be recorded")

    monkeypatch.setattr(install, "record_releases", refuse)
    ran = installer("update", kits.path("line2"))

    assert (ran.code, ran.out) == (1, "")
    assert "error: release 2 cannot be recorded" in ran.err
    assert str((installed / "current").readlink()) == "releases/1"
    assert [path.name for path in (installed / "releases").iterdir()] == ["1"]


class FakeStatvfs:
    """As os.statvfs answers for a file system with these properties."""

    def __init__(self, free: int = 1 << 40, flags: int = 0) -> None:
        self.f_flag, self.f_bavail, self.f_frsize = flags, free // 4096, 4096


@pytest.mark.parametrize(
    ("state", "message", "hint"),
    [
        (FakeStatvfs(flags=os.ST_RDONLY), "is on a file system that is mounted read-only", "`mount -o remount,rw ...`"),
        (
            FakeStatvfs(flags=os.ST_NOEXEC),
            "is on a file system that is mounted noexec, so no library in it can be loaded",
            "choose a folder on another file system with `--prefix`",
        ),
        (
            FakeStatvfs(free=1 << 20),
            "and 1.0 MB are free",
            "make room, or choose a folder on another disk with `--prefix`",
        ),
    ],
)
def test_a_target_that_cannot_take_it(
    state: FakeStatvfs,
    message: str,
    hint: str,
    installer: Installer,
    kits: Kits,
    prefix: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks.os, "statvfs", lambda _: state)

    ran = installer("install", kits.path("line1"), "--trusted-key", kits.key.public_file)

    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert hint in ran.err
    assert not prefix.exists()


def test_the_free_space_that_is_asked_for_is_what_is_written(
    installed: Path, installer: Installer, kits: Kits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update needs less by what it shares."""
    asked: list[int] = []
    monkeypatch.setattr(install, "check_target", lambda _, needed: asked.append(needed))
    new = sum(
        path.stat().st_size
        for path in (kits.plans["line2"].bundles[0].path / name for name in ("manifest.json", "notes"))
    )

    assert installer("update", kits.path("line2")).code == 0

    site = next((installed / "current/python/lib").glob("*/site-packages"))
    unpacked = sum(
        path.stat().st_size
        for name in ("ortkit", "ortkit-99.0.dist-info")
        for path in (site / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    wheel = next(kits.plans["line2"].wheels.glob("ortkit-*.whl")).stat().st_size
    assert asked == [new + unpacked + wheel]


def test_no_space_on_the_way(
    installed: Path, installer: Installer, kits: Kits, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(installed)

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr(install, "flush_all", full)
    ran = installer("update", kits.path("line2"))

    assert (ran.code, ran.out) == (1, "")
    assert "cannot be written: No space left on device" in ran.err
    assert "hint: make room and run the installer again; what is installed was not changed" in ran.err
    assert tree(installed) == before


def test_a_folder_of_another_user(
    installer: Installer, kits: Kits, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.os, "access", lambda *_: False)

    ran = installer("install", kits.path("line1"), "--trusted-key", kits.key.public_file)

    assert ran.code == 1
    assert f"error: `{prefix}` cannot be written by this user: no permission in `" in ran.err
    assert "hint: run the installer as root, or choose a folder of yours: `--prefix ~/ortkit`" in ran.err


def test_a_clock_in_1970(installer: Installer, kits: Kits, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.time, "time", lambda: 60.0)
    monkeypatch.setattr(cli.time, "strftime", lambda _: "1970-01-01")

    ran = installer("install", kits.path("line1"), "--trusted-key", kits.key.public_file)

    assert ran.code == 0, ran.err
    assert "note: the clock of this machine says 1970-01-01; the installation does not depend on it" in ran.err
    assert version_of(prefix) == "0.1.0"


def test_leftovers_of_an_interrupted_run_are_removed(installed: Path, installer: Installer, kits: Kits) -> None:
    new, old = installed / "releases/.new-01234567", installed / "releases/.old-1-01234567"
    shutil.copytree(installed / "releases/1", new, symlinks=True)
    old.mkdir()
    (installed / ".current.new").symlink_to("releases/9")

    ran = installer("update", kits.path("line2"))

    assert ran.code == 0
    assert "removed what an interrupted run left: .current.new, .new-01234567, .old-1-01234567" in ran.err.replace(
        ".old-1-01234567, .new-01234567", ".new-01234567, .old-1-01234567"
    )
    assert sorted(path.name for path in (installed / "releases").iterdir()) == ["1", "2"]


def test_a_release_that_was_added_but_not_switched_to(installed: Path, installer: Installer, kits: Kits) -> None:
    """As a run leaves it that is killed between the two renames: the next one verifies it and switches."""
    assert installer("update", kits.path("line2")).code == 0
    Installation(installed).switch(1)

    ran = installer("update", kits.path("line2"))

    assert (ran.code, ran.out) == (0, f"line: release 2 in {installed}, with tiny\n")
    assert "release 2 was made from this kit before" in ran.err
    assert "verifying tiny on this machine" in ran.err
    assert version_of(installed) == "99.0"


def test_a_record_that_a_later_installer_wrote(installed: Path, installer: Installer) -> None:
    path = installed / "releases/1/release.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new": "field"}))

    assert "* 1  line, release 1 of it" in installer("status").out


DAMAGE = (
    "{",
    "[" * 100_000,
    "[]",
    {"bundles": []},
    {"bundles": {"tiny": 1}},
    {"release": "1"},
    {"wheels": {"a": None}},
)


@pytest.mark.parametrize("damage", DAMAGE, ids=map(str, range(len(DAMAGE))))
def test_a_damaged_record_of_a_release(damage: str | dict, installed: Path, installer: Installer, kits: Kits) -> None:
    """Whatever it says: the release cannot be used, and another kit can be installed."""
    path = installed / "releases/1/release.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage))

    for command in ("status", "rollback"):
        ran = installer(command)

        assert ran.code == 7
        assert f"error: `{path}` was changed, and cannot be read" in ran.err
        assert f"hint: `rm -r {installed}/releases/1`, then install a kit that leaves nothing out" in ran.err
    ran = installer("update", kits.path("line2"))
    assert (ran.code, version_of(installed)) == (0, "99.0"), ran.err


STATES = (
    "",
    "{",
    "[]",
    "{}",
    '{"release": 1}',
    '{"releases": {"line": "x"}}',
    '{"releases": {"line": 1e400}}',
    "[" * 100_000,
)


@pytest.mark.parametrize("content", STATES, ids=map(str, range(len(STATES))))
def test_damaged_highest_releases(content: str, installed: Path, installer: Installer, kits: Kits) -> None:
    """Counted as none, an older kit would be installed unasked; the release that is installed stays in use."""
    path = installed / "state.json"
    path.write_text(content)

    ran = installer("update", kits.path("line2"))

    assert (ran.code, ran.out) == (7, "")
    assert (
        f"error: `{path}`, which has the highest releases that were installed, was changed and cannot be read: "
    ) in ran.err
    assert f"hint: restore it from a backup; or remove it (`rm {path}`), and a kit that is older than the" in ran.err
    assert path.read_text() == content
    assert [installer(command).code for command in ("status", "have")] == [0, 0]
    path.unlink()
    assert installer("update", kits.path("line2")).code == 0
    assert json.loads(path.read_text()) == {"releases": {"line": 2}}


def test_a_kit_of_another_line(installed: Path, installer: Installer, kits: Kits, tmp_path: Path) -> None:
    """Signed with the same key, and with a higher counter; it does not replace the installed one unasked."""
    plan = dataclasses.replace(kits.plans["line2"], name="pumps", release=1)
    write_kit(plan, tmp_path / "pumps.kit", sign=kits.key)

    ran = installer("update", tmp_path / "pumps.kit")

    assert (ran.code, ran.out) == (7, "")
    assert (
        f"error: `{tmp_path}/pumps.kit` is a kit named `pumps`, and `line` is installed in `{installed}`\n\n"
        "hint: an update has the name of what it updates (`ortkit kit --name line`); to replace `line` by this kit, "
        "add `--other-kit`, or install it beside with `--prefix`\n"
    ) in ran.err
    assert version_of(installed) == "0.1.0"

    ran = installer("update", tmp_path / "pumps.kit", "--other-kit")
    assert (ran.code, ran.out) == (0, f"pumps: release 2 in {installed}, with tiny\n"), ran.err
    # Each line has a counter of its own.
    assert json.loads((installed / "state.json").read_text()) == {"releases": {"line": 1, "pumps": 1}}
    assert installer("update", kits.path("line1")).code == 7
    assert installer("update", kits.path("line2"), "--other-kit").code == 0
    assert installer("update", kits.path("line1"), "--allow-downgrade").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("install",), 2, "error: name the kit to install"),
        (("install", "--prefxi", "x"), 2, "error: unrecognized arguments: --prefxi"),
        (("rollback", "--to", "x"), 2, "error: argument --to: invalid int value: 'x'"),
        (
            ("/proc/none/a.kit",),
            5,
            "error: there is no kit at `/proc/none/a.kit`\n\nhint: there is no folder `/proc/none`\n",
        ),
        ((__file__,), 7, f"error: `{__file__}` is not a kit"),
    ],
)
def test_usage(arguments: tuple[str, ...], code: int, message: str, installer: Installer) -> None:
    ran = installer(*arguments)

    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_the_short_form(installer: Installer, kits: Kits, prefix: Path) -> None:
    """`ortkit-install KIT`."""
    ran = installer(kits.path("line1"), "--trusted-key", kits.key.public_file)

    assert (ran.code, ran.out) == (0, f"line: release 1 in {prefix}, with tiny\n"), ran.err


def test_files_that_cannot_be_linked_are_copied(
    installed: Path, installer: Installer, kits: Kits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT, or where the earlier release belongs to another user."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(files.os, "link", refused)
    ran = installer("update", kits.path("update"))

    assert ran.code == 0, ran.err
    assert tree(installed / "releases/2/bundles/tiny") == tree(kits.plans["line2"].bundles[0].path)
    first, second = (installed / f"releases/{number}/bundles/tiny/model.onnx" for number in (1, 2))
    assert not first.samefile(second)
    assert second.stat().st_mode & 0o777 == 0o444


def test_files_that_others_can_write_to_are_copied(installed: Path, installer: Installer, kits: Kits) -> None:
    """Else they could change the new release after it was verified."""
    first, second = (installed / f"releases/{number}/bundles/tiny/tokenizer.json" for number in (1, 2))
    first.chmod(0o664)

    assert installer("update", kits.path("line2")).code == 0

    assert second.read_bytes() == first.read_bytes()
    assert not first.samefile(second)
    assert second.stat().st_mode & 0o777 == 0o444


def test_another_key_with_the_same_name_is_kept_beside(
    installed: Path, installer: Installer, kits: Kits, tmp_path: Path
) -> None:
    """Rotation: the new key is trusted from the installation on that names it."""
    other = OpensslKey.make(tmp_path)
    write_kit(kits.plans["line2"], tmp_path / "line2.kit", sign=other)
    assert installer("update", tmp_path / "line2.kit").code == 7

    assert installer("update", tmp_path / "line2.kit", "--trusted-key", other.public_file).code == 0

    assert len(list((installed / "keys").iterdir())) == 2
    assert installer("update", tmp_path / "line2.kit", "--reinstall").code == 0
