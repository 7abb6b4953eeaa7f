"""Packing bundles: reproducible, complete, and what is left out for a small update."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle, BundleError, InputError, OutputError
from ortkit.exporters.packaging.pack import artifact_of, digests_in, digests_of_bundle, pack, pack_size, read_digests
from ortkit.runtime.bundle.folder import SBOM_FILE
from ortkit.runtime.pack.oci_layout import OciLayout
from ortkit.runtime.pack.unpack import bundles_in, files_by_digest, unpack
from tests.packs import bundle_files, contents, names_in, sha256, write_bundle


def unpack_all(path: Path, folder: Path, have: dict[str, Path] | None = None) -> list[Bundle]:
    with OciLayout.open(path) as layout:
        return [unpack(layout, found, folder / found.name, have=have) for found in bundles_in(layout)]


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_real_bundle_comes_back(int8_bundle: Bundle, tmp_path: Path, *, as_folder: bool) -> None:
    steps: list[int] = []
    packed = pack([int8_bundle.path], tmp_path / "a", as_folder=as_folder, progress=steps.append)
    pack([int8_bundle.path], tmp_path / "b", as_folder=as_folder)
    (bundle,) = unpack_all(tmp_path / "a", tmp_path / "out")

    assert (packed.path, packed.bundles, packed.left_out) == (tmp_path / "a", 1, 0)
    assert packed.size == pack_size([int8_bundle.path]) == sum(steps) > int8_bundle.size
    assert contents(bundle.path) == contents(int8_bundle.path)
    assert bundle.path.name == int8_bundle.path.name
    assert bundle.digest == int8_bundle.digest
    if as_folder:
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
    else:
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert names_in(tmp_path) == ["a", "b", "out"]


def test_the_order_and_the_place_of_bundles_do_not_matter(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "one" / "a").path
    second = write_bundle(tmp_path / "one" / "b", bundle_files(graph=b"other")).path
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    pack([first, second], tmp_path / "a.tar")
    pack([tmp_path / "two" / "b", tmp_path / "two" / "a"], tmp_path / "b.tar")

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert [bundle.path.name for bundle in unpack_all(tmp_path / "a.tar", tmp_path / "out")] == ["a", "b"]


def test_a_file_of_two_bundles_is_packed_once(tmp_path: Path) -> None:
    tokenizer = b"t" * 100_000
    paths = [
        write_bundle(tmp_path / name, bundle_files(graph=name.encode(), tokenizer=tokenizer)).path for name in "ab"
    ]
    packed = pack(paths, tmp_path / "a.tar")

    assert packed.size < 2 * len(tokenizer)
    assert [contents(bundle.path) for bundle in unpack_all(tmp_path / "a.tar", tmp_path / "out")] == [
        contents(path) for path in paths
    ]


def test_a_layer_is_a_file_of_the_bundle_under_its_hash(int8_bundle: Bundle, tmp_path: Path) -> None:
    pack([int8_bundle.path], tmp_path / "a.tar")
    with OciLayout.open(tmp_path / "a.tar") as layout:
        (artifact,) = layout.artifacts
        manifest = json.loads(layout.read(artifact.manifest, 1 << 20))
        config = json.loads(layout.read(artifact.config, 1 << 20))

    hashes = {name: record.sha256 for name, record in int8_bundle.manifest.files.items()}
    hashes["manifest.json"] = int8_bundle.digest
    assert {name: blob.sha256 for name, blob in artifact.layers.items() if name != SBOM_FILE} == hashes
    types = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]}
    assert types == {
        "manifest.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "model.onnx": "application/vnd.cncf.model.weight.v1.raw",
        "sbom.cdx.json": "application/vnd.cncf.model.doc.v1.raw",
        "tokenizer.json": "application/vnd.cncf.model.weight.config.v1.raw",
    }
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    assert config["config"]["format"] == "onnx"


def test_an_update_leaves_out_what_the_appliance_has(tmp_path: Path) -> None:
    old = write_bundle(tmp_path / "old" / "model", bundle_files(tokenizer=b"t" * 100_000))
    new = write_bundle(tmp_path / "new" / "model", bundle_files(graph=b"better", tokenizer=b"t" * 100_000))
    pack([old.path], tmp_path / "old.tar")

    for place, without in enumerate(
        [digests_in(tmp_path / "old.tar"), digests_in(old.path), set(digests_of_bundle(old).values())]
    ):
        packed = pack([new.path], tmp_path / f"{place}.tar", without=without)
        assert packed.left_out == 1
        assert packed.size < 50_000
        with pytest.raises(BundleError, match="leaves out 1 of the files of `model`"):
            unpack_all(tmp_path / f"{place}.tar", tmp_path / "out")
        (bundle,) = unpack_all(
            tmp_path / f"{place}.tar", tmp_path / f"out-{place}", files_by_digest([tmp_path / "old"])
        )
        assert contents(bundle.path) == contents(new.path)


def test_the_manifest_is_never_left_out(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "model")
    pack([bundle.path], tmp_path / "a.tar", without=digests_in(bundle.path))

    with OciLayout.open(tmp_path / "a.tar") as layout:
        assert sorted(layout.missing(layout.artifacts[0])) == ["model.onnx", "tokenizer.json"]


def test_a_bundle_that_was_changed_is_not_packed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "model")
    graph = bundle.file("model.onnx")
    graph.write_bytes(b"!" + graph.read_bytes()[1:])
    (tmp_path / "a.tar").write_bytes(b"an earlier file")

    for as_folder in (False, True):
        out = tmp_path / ("folder" if as_folder else "a.tar")
        with pytest.raises(BundleError, match=r"`.*/model.onnx` was changed: its sha256 is not"):
            pack([bundle.path], out, as_folder=as_folder)
    assert names_in(tmp_path) == ["a.tar", "model"]
    assert (tmp_path / "a.tar").read_bytes() == b"an earlier file"


def test_two_bundles_of_one_name(tmp_path: Path) -> None:
    paths = [write_bundle(tmp_path / place / "model").path for place in ("old", "new")]

    with pytest.raises(InputError) as found:
        pack(paths, tmp_path / "a.tar")
    assert (found.value.message, found.value.hint) == (
        "two of the bundles are named `model`",
        "rename the folder of one of them",
    )


@pytest.mark.parametrize("name", [".model", "a:b", "a\\b", "a\x1bb"])
def test_folders_whose_names_a_pack_cannot_have(tmp_path: Path, name: str) -> None:
    bundle = write_bundle(tmp_path / name)

    with pytest.raises(InputError) as found:
        pack([bundle.path], tmp_path / "a.tar")
    assert found.value.message.startswith(f"the name `{name}` cannot be used in a pack: it ")
    assert found.value.hint == "rename the bundle's folder"
    assert names_in(tmp_path) == [name]


def test_the_name_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "model")
    monkeypatch.chdir(bundle.path)

    assert artifact_of(Bundle.listed(".")).name == "model"


def test_a_folder_that_exists(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "model")
    (tmp_path / "out").mkdir()

    with pytest.raises(OutputError, match=r"`.*/out` exists, and `--folder` replaces nothing"):
        pack([bundle.path], tmp_path / "out", as_folder=True)
    with pytest.raises(OutputError, match=r"`.*/out` cannot be written: it is a folder"):
        pack([bundle.path], tmp_path / "out")


FAT: dict[str, tuple[bool, str]] = {
    "a tar": (False, "FAT32 takes files up to 4 GiB: use `--folder`, or format the stick as exFAT"),
    "a folder": (True, "FAT32 takes files up to 4 GiB: format the stick as exFAT"),
}


@pytest.mark.parametrize("case", FAT)
def test_a_stick_with_fat32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    def too_large(*_arguments: object) -> int:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    as_folder, hint = FAT[case]
    bundle = write_bundle(tmp_path / "model")
    monkeypatch.setattr("os.write", too_large)

    with pytest.raises(OutputError, match=r"`.*/out` cannot be written: File too large") as found:
        pack([bundle.path], tmp_path / "out", as_folder=as_folder)
    assert found.value.hint == hint
    assert names_in(tmp_path) == ["model"]


def test_a_signature_is_a_layer(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "model")
    (tmp_path / "model" / "model.sig").write_bytes(b'{"signed": true}')
    artifact = artifact_of(bundle)

    assert artifact.layers["model.sig"].blob.sha256 == sha256(b'{"signed": true}')
    assert artifact.layers["model.sig"].blob.media_type == "application/vnd.cncf.model.doc.v1.raw"


def test_lists_of_digests() -> None:
    first, second = (f"sha256:{sha256(name)}" for name in (b"a", b"b"))

    assert read_digests(f"{first}  a/model.onnx\n\n# a comment\n  {second}\n", "have.txt") == {first, second}


BAD_LISTS: dict[str, Callable[[str], str]] = {
    "no algorithm": lambda digest: digest.removeprefix("sha256:"),
    "too short": lambda digest: digest[:-1],
    "a table": lambda digest: f"{digest}\nname  kind\n",
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_list_that_is_none(case: str) -> None:
    with pytest.raises(InputError, match=r"line [12] of `have.txt` does not begin with a digest"):
        read_digests(BAD_LISTS[case](f"sha256:{sha256(b'a')}"), "have.txt")
