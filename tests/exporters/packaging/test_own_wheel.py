"""ortkit's own wheel, from a source folder and from an installation; the reference is the build backend's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ortkit import OrtkitError, __version__
from ortkit.exporters.packaging import own_wheel
from ortkit.exporters.packaging.own_wheel import FILE
from ortkit.exporters.packaging.pip_download import Pip, without_credentials

ROOT = Path(__file__).parents[3]
INFO = f"ortkit-{__version__}.dist-info"
MAKE = """
import sys
from pathlib import Path
from ortkit.exporters.packaging.own_wheel import own_wheel
from ortkit.exporters.packaging.pip_download import Pip
from ortkit.toolkit.cli import exit_code_of
folder = Path(sys.argv[1])
sys.exit(exit_code_of(lambda: print(own_wheel(None, folder / "own", Pip(folder)))))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that hatchling builds."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder), "--target", "wheel"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / FILE


def content_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def installation(built: Path, tmp_path: Path) -> Path:
    """What pip makes of the wheel: its files, and its own beside them."""
    folder = tmp_path / "installed"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder)
    added = {f"{INFO}/INSTALLER": "pip\n", f"{INFO}/REQUESTED": "", "ortkit/__pycache__/x.cpython-311.pyc": "x"}
    for name, text in added.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with (folder / INFO / "RECORD").open("a") as record:
        record.writelines(f"{name},,\n" for name in ("../../bin/ortkit", *added))
    return folder


def make(installation: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    shutil.rmtree(tmp_path / "scratch" / "own", ignore_errors=True)
    return subprocess.run(
        [sys.executable, "-c", MAKE, str(tmp_path / "scratch")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installation), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installation_is_packed_as_the_wheel_that_it_came_from(
    built: Path, installation: Path, tmp_path: Path
) -> None:
    finished = make(installation, tmp_path)

    assert finished.returncode == 0, finished.stderr
    packed = Path(finished.stdout.strip())
    expected, found = content_of(built), content_of(packed)
    records = [sorted(content.pop(f"{INFO}/RECORD").decode().split()) for content in (expected, found)]
    assert found == expected
    assert records[0] == records[1]

    first = packed.read_bytes()
    assert make(installation, tmp_path).returncode == 0
    assert packed.read_bytes() == first


def test_an_installation_that_was_changed_is_refused(installation: Path, tmp_path: Path) -> None:
    with (installation / "ortkit" / "runtime" / "version.py").open("a") as file:
        file.write("# changed\n")

    finished = make(installation, tmp_path)

    assert finished.returncode == 7
    assert "version.py` is not the file that was installed: its sha256 differs" in finished.stderr
    assert "hint: install ortkit again, or name a wheel of ortkit with `--ortkit-wheel FILE`" in finished.stderr


def test_files_that_no_installer_wrote_are_refused(installation: Path, tmp_path: Path) -> None:
    (installation / INFO / "RECORD").unlink()

    finished = make(installation, tmp_path)

    assert finished.returncode == 1
    assert "ortkit was not installed from a wheel, so its wheel cannot be made from it" in finished.stderr
    assert "hint: name a wheel of ortkit with `--ortkit-wheel FILE`" in finished.stderr


@pytest.mark.slow
def test_a_source_folder_is_built(built: Path, tmp_path: Path) -> None:
    made = own_wheel.own_wheel(None, tmp_path / "own", Pip(tmp_path))

    assert made.read_bytes() == built.read_bytes()


def test_a_source_folder_that_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(own_wheel, "_ROOT", tmp_path)

    with pytest.raises(OrtkitError) as caught:
        own_wheel.own_wheel(None, tmp_path / "own", Pip(tmp_path))

    assert f"pip could not build ortkit's wheel from `{tmp_path}`" in caught.value.message
    assert caught.value.hint == "name a wheel of ortkit with `--ortkit-wheel FILE`"
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Looking in https://ada:s3cret@host/simple/x", "Looking in https://****@host/simple/x"),
        ("http://token@h:1/a, http://u:p@ss@h/b", "http://****@h:1/a, http://****@h/b"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_credentials_are_masked(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
