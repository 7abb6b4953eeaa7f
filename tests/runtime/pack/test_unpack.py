"""Unpacking bundles: verified, in one step, and completed with the files of other bundles."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ortkit import Bundle, BundleError, NotFoundError, OutputError
from ortkit.runtime.pack import oci_layout
from ortkit.runtime.pack.oci_layout import OciLayout
from ortkit.runtime.pack.unpack import bundles_in, files_by_digest, packed_manifest, unpack
from tests.packs import bundle_files, contents, layout_of, names_in, sha256, tar_of, write_bundle

FILES = bundle_files()


def unpacked(pack: Path, target: Path, have: dict[str, Path] | None = None) -> Bundle:
    with OciLayout.open(pack) as layout:
        (artifact,) = bundles_in(layout)
        return unpack(layout, artifact, target, have=have)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(layout_of()))
    return path


def test_a_bundle_is_unpacked(tmp_path: Path, pack: Path) -> None:
    bundle = unpacked(pack, tmp_path / "new" / "tiny")

    assert contents(tmp_path / "new" / "tiny") == FILES
    assert Bundle.open(tmp_path / "new" / "tiny") == bundle
    assert names_in(tmp_path / "new") == ["tiny"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_nothing_is_replaced(tmp_path: Path, pack: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "tiny")

    with pytest.raises(OutputError) as found:
        unpacked(pack, tmp_path / "tiny")

    assert found.value.message == f"`{tmp_path / 'tiny'}` exists, and unpacking replaces nothing"
    assert found.value.hint == "name another folder with `-o`, or remove it"
    assert names_in(tmp_path) == ["a.tar", "tiny"]


def files_with(**changes: bytes | None) -> dict[str, bytes]:
    changed = FILES | {name.replace("_", "."): content for name, content in changes.items()}
    return {name: content for name, content in changed.items() if content is not None}


def with_manifest(change: Callable[[dict], object]) -> dict[str, bytes]:
    manifest = json.loads(FILES["manifest.json"])
    change(manifest)
    return FILES | {"manifest.json": json.dumps(manifest).encode()}


BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "no manifest": (files_with(manifest_json=None), "`tiny` in the pack .* is not a bundle: it has no `manifest.json`"),
    "another graph": (files_with(model_onnx=b"!"), "the layer `model.onnx` of `tiny` .* is not the file that its"),
    "a file more": (files_with(evil_so=b"!"), "the layer `evil.so` of `tiny` .* is not the file that its"),
    "a file less": (
        files_with(tokenizer_json=None),
        "the layer `tokenizer.json` of `tiny` .* is not the file that its",
    ),
    "a manifest that is not JSON": (files_with(manifest_json=b"{"), "`manifest.json` is not valid JSON"),
    "a manifest that is not UTF-8": (files_with(manifest_json=b"\xff"), "`manifest.json` of `tiny` is not valid UTF-8"),
    "a giant manifest": (files_with(manifest_json=b" " * ((1 << 20) + 1)), "the limit is 1048576"),
    "a newer schema": (with_manifest(lambda m: m.update(schema=99)), "made with a newer ortkit: its schema is 99"),
    "a path in the manifest": (
        with_manifest(lambda m: m["files"].update({"../evil": {"size": 1, "sha256": sha256(b"!")}})),
        "the layer `../evil` of `tiny` .* is not the file",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_layers_that_are_not_a_bundle(tmp_path: Path, case: str) -> None:
    files, message = BROKEN[case]
    (tmp_path / "a.tar").write_bytes(tar_of(layout_of(files)))

    with pytest.raises(BundleError, match=message) as found:
        unpacked(tmp_path / "a.tar", tmp_path / "tiny")

    assert found.value.exit_code == 7
    assert names_in(tmp_path) == ["a.tar"]


def test_a_changed_file_leaves_nothing(tmp_path: Path) -> None:
    layout = layout_of()
    name = f"blobs/sha256/{sha256(FILES['model.onnx'])}"
    (tmp_path / "a.tar").write_bytes(tar_of(layout | {name: b"!" + layout[name][1:]}))

    with pytest.raises(BundleError, match="was changed: its sha256 is not its name"):
        unpacked(tmp_path / "a.tar", tmp_path / "tiny")

    assert names_in(tmp_path) == ["a.tar"]


def test_a_pack_without_bundles(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_of(layout_of(manifest=lambda m: m["annotations"].update({oci_layout.KIND: "wheels"})))
    )

    with pytest.raises(BundleError, match=r"the pack `.*/a.tar` contains no bundle"):
        unpacked(tmp_path / "a.tar", tmp_path / "tiny")


def test_no_room(tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=10_000))

    with pytest.raises(OutputError, match=r"`.*` has 0 MB free; unpacking needs [0-9]+ MB") as caught:
        unpacked(pack, tmp_path / "tiny")
    assert caught.value.hint == "make room, or name a folder on another disk with `-o`"
    assert names_in(tmp_path) == ["a.tar"]


def test_a_disk_that_fills_up(tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device") as caught:
        unpacked(pack, tmp_path / "tiny")
    assert caught.value.hint == "make room, or name a folder on another disk; what was there is unchanged"
    assert names_in(tmp_path) == ["a.tar"]


def test_a_worn_stick(tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worn(*_arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with OciLayout.open(pack) as layout:
        monkeypatch.setattr("os.preadv", worn)
        with pytest.raises(BundleError, match=r"`.*/a.tar` cannot be read: Input/output error"):
            unpack(layout, layout.artifacts[0], tmp_path / "tiny")
    assert names_in(tmp_path) == ["a.tar"]


def test_a_read_only_target(tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only file system: the tests may be root, who may write to any folder."""

    def read_only(path: Path, *_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OutputError, match=r"`.*/folder/tiny` cannot be written: Read-only file system") as caught:
        unpacked(pack, tmp_path / "folder" / "tiny")
    assert caught.value.hint == "name a folder that you can write to"


def test_a_target_below_a_file(pack: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: Not a directory"):
        unpacked(pack, pack / "tiny")


def test_what_a_pack_leaves_out_is_taken_from_other_bundles(tmp_path: Path) -> None:
    old = write_bundle(tmp_path / "bundles" / "old")
    write_bundle(tmp_path / "bundles" / "other", bundle_files(graph=b"other"))
    (tmp_path / "bundles" / "broken").mkdir()
    (tmp_path / "bundles" / "broken" / "manifest.json").write_text("{")
    name = f"blobs/sha256/{sha256(FILES['model.onnx'])}"
    layout = {key: content for key, content in layout_of().items() if key != name}
    (tmp_path / "a.tar").write_bytes(tar_of(layout))

    have = files_by_digest([tmp_path / "bundles"])
    bundle = unpacked(tmp_path / "a.tar", tmp_path / "new" / "tiny", have)

    assert have == files_by_digest([old.path]) | have
    assert contents(bundle.path) == FILES
    assert bundle.file("model.onnx").samefile(old.file("model.onnx"))
    assert not bundle.file("tokenizer.json").samefile(old.file("tokenizer.json"))
    # The old bundle can go.
    shutil.rmtree(old.path)
    Bundle.open(bundle.path)


@pytest.mark.parametrize("others", [0o020, 0o002, None])
def test_what_others_can_write_to_is_copied_and_not_linked(tmp_path: Path, others: int | None) -> None:
    """Else they could change the unpacked bundle after it was verified."""
    old = write_bundle(tmp_path / "old" / "tiny").file("model.onnx")
    if others is not None:
        old.chmod(0o644 | others)
    elif os.geteuid() == 0:
        os.chown(old, 12345, -1)
    else:
        pytest.skip("only root can give a file to another user")
    name = f"blobs/sha256/{sha256(FILES['model.onnx'])}"
    (tmp_path / "a.tar").write_bytes(tar_of({key: found for key, found in layout_of().items() if key != name}))

    new = unpacked(tmp_path / "a.tar", tmp_path / "new", files_by_digest([tmp_path / "old"])).file("model.onnx")

    assert new.read_bytes() == FILES["model.onnx"]
    assert not new.samefile(old)
    assert (new.stat().st_uid, new.stat().st_mode & 0o777) == (os.geteuid(), 0o444)


def test_a_folder_of_earlier_bundles_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no folder `.*/none`"):
        files_by_digest([tmp_path / "none"])


def test_the_manifest_is_read_without_unpacking(pack: Path) -> None:
    with OciLayout.open(pack) as layout:
        manifest = packed_manifest(layout, layout.artifacts[0])

    assert manifest.name == "tiny-embedder"
    assert {name: record.sha256 for name, record in manifest.files.items()} == {
        name: sha256(content) for name, content in FILES.items() if name != "manifest.json"
    }
