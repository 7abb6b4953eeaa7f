"""`ortkit kit`: what it writes and prints, and what it refuses before it reads a wheel."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit.runtime.installer.kit_file import Kit
from tests.commands import Finished
from tests.kits import PLATFORM, PYTHON, bundle, wheelhouse

Ortkit = Callable[..., Finished]
VERSION = ".".join(map(str, PYTHON))
TARGET = ("--target", PLATFORM, "--python", VERSION)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and a wheelhouse."""
    folder = tmp_path_factory.mktemp("made")
    bundle(folder / "tiny", notes=b"first" * 100)
    wheelhouse(folder / "wheels")
    return folder


def test_a_signed_kit_and_its_update(ortkit: Ortkit, made: Path, tmp_path: Path) -> None:
    assert ortkit("keygen", "-o", tmp_path / "key.pem").code == 0
    common = (made / "tiny", *TARGET, "--wheels", made / "wheels", "--sign", tmp_path / "key.pem")

    finished = ortkit("kit", *common, "--release", 4, "-o", tmp_path / "line4.kit")

    assert (finished.code, finished.out.decode()) == (0, f"{tmp_path}/line4.kit\n"), finished.err
    assert "1 bundle, 2 wheels, " in finished.err
    assert "on the appliance: sh line4.kit install --trusted-key KEY.pub" in finished.err
    finished = ortkit("kit", *common, "--release", 5, "--since", tmp_path / "line4.kit", "-o", tmp_path / "line5.kit")
    assert finished.code == 0, finished.err
    assert ", 5 files left out" in finished.err
    with Kit.open(tmp_path / "line4.kit") as old, Kit.open(tmp_path / "line5.kit") as new:
        assert (old.facts().name, old.facts().release) == ("line4", 4)
        # An installer takes an update only under the name of what it updates.
        assert (new.facts().name, new.facts().release) == ("line4", 5)
        assert old.signature
        assert set(new.layout.missing(new.bundles["tiny"])) == {"model.onnx", "tokenizer.json", "notes"}


def test_a_kit_that_leaves_out_what_a_list_has(ortkit: Ortkit, made: Path, tmp_path: Path) -> None:
    common = (made / "tiny", *TARGET, "--wheels", made / "wheels")
    assert ortkit("kit", *common, "-o", tmp_path / "whole.kit").code == 0
    with Kit.open(tmp_path / "whole.kit") as kit:
        digest = kit.bundles["tiny"].layers["notes"].digest
    (tmp_path / "have.txt").write_text(f"{digest}\n")

    finished = ortkit("kit", *common, "--have", tmp_path / "have.txt", "-o", tmp_path / "less.kit")

    assert finished.code == 0, finished.err
    assert ", 1 file left out" in finished.err
    assert "on the appliance: sh less.kit install --allow-unsigned" in finished.err


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (("--python", "3.11"), 2, "missing option '--target'", "usage: ortkit kit"),
        (("--target", "linux-x86_64"), 2, "missing option '--python'", "usage: ortkit kit"),
        (
            ("--target", "macos-arm64", "--python", "3.11"),
            2,
            "a kit cannot be made for `macos-arm64`; supported: `linux-x86_64`, `linux-aarch64`",
            "elsewhere use `ortkit pack` and `ortkit wheelhouse`",
        ),
        (
            ("--target", "armv7l", "--python", "3.11"),
            2,
            "ortkit cannot run on `armv7l`: onnxruntime has no wheels for 32-bit ARM",
            "install a 64-bit system, such as Raspberry Pi OS (64-bit), and use `--target linux-aarch64`",
        ),
        (("--target", "arm64", "--python", "3.11"), 2, "`arm64` is not supported", "use `--target linux-aarch64`"),
        (("--target", "linux-x86_64", "--python", "3.9"), 2, "Python `3.9` is not supported", "install Python 3.11"),
        ((*TARGET, "--wheels", "/nonexistent"), 5, "there is no wheelhouse at `/nonexistent`", "make one with"),
        (
            (*TARGET, "--since", "/proc/none/a.kit"),
            5,
            "there is no kit at `/proc/none/a.kit`",
            "there is no folder `/proc/none`",
        ),
        ((*TARGET, "--have", "/nonexistent.txt"), 2, "`/nonexistent.txt` cannot be read", None),
        ((*TARGET, "--sign", "/nonexistent.pem"), 5, "there is no key `/nonexistent.pem`", "make one with"),
        ((*TARGET, "--name", "a b"), 2, "the name `a b` of the kit has other characters", "choose one with `--name`"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], code: int, message: str, hint: str | None, ortkit: Ortkit, made: Path, tmp_path: Path
) -> None:
    wheels = () if "--wheels" in arguments else ("--wheels", made / "wheels")

    finished = ortkit("kit", made / "tiny", *arguments, *wheels, "-o", tmp_path / "any.kit")

    assert (finished.code, finished.out) == (code, b""), finished.err
    assert message in finished.err
    assert hint is None or f"hint: {hint}" in finished.err or hint in finished.err.partition("hint: ")[2]
    assert not (tmp_path / "any.kit").exists()


def test_what_is_in_a_kit(ortkit: Ortkit, made: Path, tmp_path: Path) -> None:
    assert ortkit("kit", made / "tiny", *TARGET, "--wheels", made / "wheels", "-o", tmp_path / "any.kit").code == 0

    shown = ortkit("inspect", tmp_path / "any.kit")
    sbom = json.loads(ortkit("inspect", tmp_path / "any.kit", "--sbom").out)

    assert shown.code == 0, shown.err
    assert re.search(rb"^bundle +tiny$", shown.out, re.MULTILINE)
    assert re.search(rb"^wheels +ortkit-wheels: .* in 2 files$", shown.out, re.MULTILINE)
    purls = {component.get("purl") for component in sbom["components"]}
    assert {"pkg:pypi/library@1.0", "pkg:pypi/ortkit@0.1.0"} <= purls


def test_the_installer_alone(ortkit: Ortkit, made: Path, tmp_path: Path) -> None:
    """It installs a kit without running anything of it."""
    finished = ortkit("kit", "--installer", tmp_path / "install.zip")
    assert (finished.code, finished.out.decode()) == (0, f"{tmp_path}/install.zip\n"), finished.err
    assert ortkit("kit", made / "tiny", *TARGET, "--wheels", made / "wheels", "-o", tmp_path / "any.kit").code == 0
    with Kit.open(tmp_path / "any.kit") as kit:
        assert kit.files["kit.zip"] == hashlib.sha256((tmp_path / "install.zip").read_bytes()).hexdigest()
    command = [sys.executable, "-I", tmp_path / "install.zip", tmp_path / "any.kit", "--prefix", tmp_path / "opt"]

    refused = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    installed = subprocess.run([*command, "--allow-unsigned"], env={}, capture_output=True, text=True, check=False)

    assert refused.returncode == 7
    assert "any.kit` is not signed" in refused.stderr
    assert (installed.returncode, installed.stdout) == (0, f"any: release 1 in {tmp_path}/opt, with tiny\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TARGET, "-o", "any.kit"), "missing argument 'BUNDLE...'"),
        (("tiny", *TARGET), "missing option '--out'"),
        (
            (*TARGET, "-o", "any.kit", "--installer", "a.zip"),
            "--installer writes the installer alone, and takes neither BUNDLE nor --out",
        ),
    ],
)
def test_what_must_be_named(arguments: tuple[str, ...], message: str, ortkit: Ortkit) -> None:
    finished = ortkit("kit", *arguments)

    assert finished.code == 2
    assert f"error: {message}" in finished.err


def test_a_bundle_that_is_not_there(ortkit: Ortkit, tmp_path: Path) -> None:
    finished = ortkit("kit", tmp_path / "nothing", *TARGET, "-o", tmp_path / "any.kit")

    assert finished.code == 5
    assert "there is no bundle at `" in finished.err


@pytest.mark.parametrize("arguments", [("--installer", "new.zip"), ("tiny", *TARGET, "-o", "new.kit")])
def test_a_read_only_target(
    arguments: tuple[str, ...], ortkit: Ortkit, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the file that the user named, not a temporary one."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), ".temporary")

    monkeypatch.setattr("ortkit.toolkit.commands.kit.replacing", refuse)
    monkeypatch.setattr("ortkit.toolkit.commands.kit.tempfile.TemporaryDirectory", refuse)
    finished = ortkit("kit", *(made / one if one == "tiny" else one for one in arguments))

    assert finished.code == 1
    assert (
        f"error: `{arguments[-1]}` cannot be written: Read-only file system\n\nhint: name a folder that" in finished.err
    )


def test_a_folder_that_cannot_be_written(ortkit: Ortkit, made: Path, tmp_path: Path) -> None:
    finished = ortkit(
        "kit", made / "tiny", *TARGET, "--wheels", made / "wheels", "-o", tmp_path / "nothing" / "any.kit"
    )

    assert finished.code == 1
    assert f"error: `{tmp_path}/nothing/any.kit` cannot be written: No such file or directory" in finished.err
