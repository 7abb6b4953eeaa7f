"""The record of hashes: an unchanged file is not read again, and a changed one always is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle, BundleError
from ortkit.runtime import file_hash
from ortkit.runtime.bundle import verified_files
from ortkit.runtime.bundle.verified_files import NAME, VerifiedFiles
from ortkit.runtime.file_hash import hash_of
from tests.tiny_bundles import rehash, write_embedder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder; files count as unchanged at once, whatever their size."""
    monkeypatch.setenv("ORTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified_files, "_SMALLEST", 1)
    monkeypatch.setattr(verified_files, "_SETTLED", -1)
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to be hashed."""
    names: list[str] = []

    def recorded(file: object) -> str:
        names.append(Path(file.name).name)  # type: ignore[attr-defined]
        return hash_of(file)  # type: ignore[arg-type]

    monkeypatch.setattr(verified_files, "hash_of", recorded)
    monkeypatch.setattr(file_hash, "hash_of", recorded)
    return names


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_embedder(tmp_path / "bundle").path


FILES = ["model.onnx", "tokenizer.json"]


def test_an_unchanged_bundle_is_hashed_once(cache: Path, bundle: Path, hashed: list[str]) -> None:
    Bundle.open(bundle)
    assert sorted(hashed) == FILES
    Bundle.open(bundle)
    assert sorted(hashed) == FILES
    # `verify` reads everything.
    Bundle.open(bundle, read_all=True)
    assert sorted(hashed) == sorted(FILES * 2)
    assert (cache / NAME).stat().st_mode & 0o077 == 0 or cache.stat().st_mode & 0o077 == 0


def test_the_policy_forbids_it(
    cache: Path, bundle: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.toml").write_text("always_hash = true\n")
    monkeypatch.setenv("ORTKIT_POLICY", str(tmp_path / "policy.toml"))
    Bundle.open(bundle)
    Bundle.open(bundle)

    assert sorted(hashed) == sorted(FILES * 2)
    assert not cache.exists()


def same_size(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:
        file.write(content)


def same_times(path: Path) -> None:
    """As an attacker would: another byte, and the time of before."""
    status = path.stat()
    same_size(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"x")


def mapped(path: Path) -> None:
    """Through a memory map, which calls no write."""
    import mmap

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[-1] ^= 1
        memory.flush()


def other_link(path: Path) -> None:
    """Through another name of the same file."""
    os.link(path, path.parent.parent / "other name")
    same_times(path.parent.parent / "other name")


@pytest.mark.parametrize("change", [same_size, same_times, replaced, mapped, other_link])
@pytest.mark.usefixtures("cache", "hashed")
def test_a_changed_file_is_read(bundle: Path, change: Callable[[Path], None]) -> None:
    Bundle.open(bundle)
    # A change within the resolution of the file system's clock is what `_SETTLED` is for.
    time.sleep(0.02)
    change(bundle / "model.onnx")

    with pytest.raises(BundleError, match=r"`model.onnx` in the bundle .* was changed: its sha256 is"):
        Bundle.open(bundle)


@pytest.mark.parametrize("others", [0o020, 0o002, None])
@pytest.mark.usefixtures("cache")
def test_a_file_that_others_can_write_to_is_always_read(bundle: Path, hashed: list[str], others: int | None) -> None:
    """Linux gives a mapped page a new time at its first change alone, until it has been written to disk."""
    import mmap

    graph = bundle / "model.onnx"
    if others is not None:
        graph.chmod(0o644 | others)
    elif os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    with graph.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[-1] = memory[-1]
        if others is None:
            os.chown(graph, 12345, -1)
        Bundle.open(bundle)
        # Without another time, unless the system has just written the page to disk.
        memory[-1] ^= 1

        with pytest.raises(BundleError, match=r"`model.onnx` in the bundle .* was changed: its sha256 is"):
            Bundle.open(bundle)
    assert hashed.count("tokenizer.json") == 1, "nobody else can write to that one"


@pytest.mark.usefixtures("hashed")
def test_a_file_that_was_just_written_is_not_recorded(
    cache: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change again without another time; nor is one from the future, where the clock was set back."""
    monkeypatch.setattr(verified_files, "_SETTLED", 2_000_000_000)
    Bundle.open(bundle)
    assert not (cache / NAME).exists()

    monkeypatch.setattr("time.time_ns", lambda: 0)
    Bundle.open(bundle)
    assert not (cache / NAME).exists()
    monkeypatch.setattr("time.time_ns", lambda: 1 << 62)
    Bundle.open(bundle)
    assert len(json.loads((cache / NAME).read_text())["files"]) == 2


@pytest.mark.usefixtures("cache")
def test_small_files_are_hashed_each_time(bundle: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified_files, "_SMALLEST", 1 << 20)
    Bundle.open(bundle)
    Bundle.open(bundle)

    assert sorted(hashed) == sorted(FILES * 2)


def test_a_file_that_changes_while_it_is_hashed_is_not_recorded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def changing(file: object) -> str:
        digest = hash_of(file)  # type: ignore[arg-type]
        path.write_bytes(b"after, and longer")
        return digest

    monkeypatch.setattr(verified_files, "hash_of", changing)
    files = VerifiedFiles()
    files.sha256_of(path)
    files.save()

    assert not (cache / NAME).exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"files": [[1, 2]]}',
        b'{"files": [["a", 1, 1, 1, 1, "x"]]}',
        b"[" * 100_000,
        b" " * ((1 << 20) + 1),
        b"\xff",
    ],
)
def test_a_damaged_record_is_made_anew(cache: Path, bundle: Path, hashed: list[str], content: bytes) -> None:
    cache.mkdir()
    (cache / NAME).write_bytes(content)
    Bundle.open(bundle)
    Bundle.open(bundle)

    assert sorted(hashed) == FILES


@pytest.mark.parametrize("place", [".", NAME])
def test_a_record_that_others_can_write_is_not_used(cache: Path, bundle: Path, hashed: list[str], place: str) -> None:
    """They could record that a file which they changed was verified."""
    Bundle.open(bundle)
    (cache / place).chmod(0o777)
    Bundle.open(bundle)

    assert sorted(hashed) == sorted(FILES * 2)


def test_a_link_instead_of_a_record_is_not_followed(cache: Path, bundle: Path, hashed: list[str]) -> None:
    Bundle.open(bundle)
    (cache / NAME).rename(cache / "elsewhere")
    (cache / NAME).symlink_to(cache / "elsewhere")
    Bundle.open(bundle)

    assert sorted(hashed) == sorted(FILES * 2)


def test_a_cache_that_cannot_be_written(bundle: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("/dev/null/cache", ""):
        monkeypatch.setenv("ORTKIT_CACHE", folder)
        Bundle.open(bundle)

    assert sorted(hashed) == sorted(FILES * 2)


def test_the_record_does_not_grow_without_bound(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest entries stay."""
    monkeypatch.setattr(verified_files, "_MOST", 3)
    for number in range(5):
        files = VerifiedFiles()
        (tmp_path / str(number)).write_text(str(number))
        digest = files.sha256_of(tmp_path / str(number))
        files.save()

    entries = json.loads((cache / NAME).read_text())["files"]
    assert len(entries) == 3
    assert entries[-1][5] == digest


@pytest.mark.usefixtures("cache", "hashed")
def test_a_copy_of_a_verified_bundle_is_hashed(bundle: Path, tmp_path: Path) -> None:
    """The record is of files, not of names: what lies elsewhere was not verified."""
    import shutil

    Bundle.open(bundle)
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx").write_bytes(b"x" * (bundle / "model.onnx").stat().st_size)

    with pytest.raises(BundleError, match="was changed"):
        Bundle.open(tmp_path / "copy")


@pytest.mark.usefixtures("cache")
def test_another_manifest_of_the_same_files(bundle: Path) -> None:
    """A recorded hash is compared with the manifest each time."""
    Bundle.open(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match="the manifest says 0000000000000000"):
        Bundle.open(bundle)
    rehash(bundle)
    Bundle.open(bundle)
