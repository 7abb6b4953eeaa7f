from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ortkit.runtime.installer.cli import main
from ortkit.runtime.installer.environment import write_commands
from ortkit.runtime.installer.host import Host
from tests.kits import Kits, write_kits


@dataclass(frozen=True)
class Ran:
    """What the installer printed, and its exit code."""

    code: int
    out: str
    err: str


Installer = Callable[..., Ran]


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return write_kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "opt" / "ortkit"


@pytest.fixture
def installer(prefix: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Run the installer in this process, on `prefix`."""
    monkeypatch.delenv("ORTKIT_POLICY", raising=False)

    def run(*arguments: object) -> Ran:
        code = main(["--prefix", str(prefix), *map(str, arguments)])
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def first_installation(kits: Kits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("first") / "ortkit"
    arguments = ["install", kits.path("line1"), "--prefix", prefix, "--trusted-key", kits.key.public_file]
    assert main([*map(str, arguments)]) == 0
    return prefix


@pytest.fixture
def installed(first_installation: Path, prefix: Path) -> Path:
    """A prefix with `line1`: a copy, with the commands for where it is."""
    prefix.parent.mkdir(parents=True)
    shutil.copytree(first_installation, prefix, symlinks=True)
    write_commands(prefix, Host.this())
    return prefix
