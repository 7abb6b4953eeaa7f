from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Finished

Ortkit = Callable[..., Finished]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with something of each kind."""
    monkeypatch.setenv("ORTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path / "bundles"))
    files = {
        "cache/compiled/0123-onnxruntime-1.31.1-26.1/1x64/model.mlmodelc/weights.bin": 3_000_000,
        "cache/compiled/0123-onnxruntime-1.31.1-26.1/8x64/model.mlmodelc/weights.bin": 1_000_000,
        "cache/checked/0123.json": 300,
        "cache/notes.txt": 5,
        "cache/checkpoints/all-MiniLM-L6-v2-0123/model.safetensors": 2_000_000,
        "bundles/.SmolLM2-int4.unfinished/layer-0": 500_000,
        "bundles/whole/manifest.json": 7,
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    return tmp_path


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_kept(ortkit: Ortkit, kept: Path) -> None:
    finished = ortkit("cache")

    assert finished.code == 0
    assert [line.split()[:5] for line in finished.out.decode().splitlines()] == [
        ["name", "entries", "size", "folder", "what"],
        ["compiled", "1", "4.0", "MB", str(kept / "cache" / "compiled")],
        ["checked", "1", "0.0", "MB", str(kept / "cache" / "checked")],
        ["checkpoints", "1", "2.0", "MB", str(kept / "cache" / "checkpoints")],
        ["unfinished", "1", "0.5", "MB", str(kept / "bundles")],
    ]


def test_what_is_kept_as_json(ortkit: Ortkit, kept: Path) -> None:
    compiled, checked, checkpoints, unfinished = json.loads(ortkit("cache", "--json").out)

    assert compiled == {
        "name": "compiled",
        "folder": str(kept / "cache" / "compiled"),
        "entries": ["0123-onnxruntime-1.31.1-26.1"],
        "bytes": 4_000_000,
    }
    assert [one["bytes"] for one in (checked, checkpoints, unfinished)] == [300, 2_000_000, 500_000]
    assert unfinished["entries"] == [".SmolLM2-int4.unfinished"]


def test_clearing(ortkit: Ortkit, kept: Path) -> None:
    before = files_in(kept)

    finished = ortkit("cache", "clear")

    assert (finished.code, finished.out.decode()) == (0, "deleted 2 entries, 4.0 MB\n")
    assert before - files_in(kept) == {name for name in before if name.startswith(("cache/compiled", "cache/checked"))}
    assert ortkit("cache", "clear").out == b"deleted 0 entries, 0.0 MB\n"


def test_clearing_downloads_too(ortkit: Ortkit, kept: Path) -> None:
    finished = ortkit("cache", "clear", "--all")

    assert finished.out.decode() == "deleted 3 entries, 6.0 MB\n"
    assert files_in(kept) == {
        "cache/notes.txt",
        "bundles/.SmolLM2-int4.unfinished/layer-0",
        "bundles/whole/manifest.json",
    }


def test_a_link_is_not_followed(ortkit: Ortkit, kept: Path) -> None:
    (kept / "cache" / "compiled" / "link").symlink_to(kept / "bundles")

    assert ortkit("cache", "clear").code == 0
    assert "bundles/whole/manifest.json" in files_in(kept)
    assert not (kept / "cache" / "compiled" / "link").is_symlink()


def test_a_cache_that_is_off_or_empty(ortkit: Ortkit, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTKIT_CACHE", "")
    assert [one["name"] for one in json.loads(ortkit("cache", "--json").out)] == ["checkpoints", "unfinished"]

    monkeypatch.setenv("ORTKIT_CACHE", str(kept / "none"))
    assert [one["bytes"] for one in json.loads(ortkit("cache", "--json").out)][:2] == [0, 0]


def test_what_cannot_be_deleted(ortkit: Ortkit, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)

    finished = ortkit("cache", "clear")

    assert finished.code == 1
    assert finished.err == (
        f"error: `{kept}/cache/compiled/0123-onnxruntime-1.31.1-26.1` cannot be deleted: Permission denied\n\n"
        "hint: close what uses it, or delete it as the user who owns it\n"
    )


def test_usage(ortkit: Ortkit) -> None:
    assert ortkit("cache", "--all").code == 2
    assert ortkit("cache", "empty").code == 2
