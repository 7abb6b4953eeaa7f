from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import Bundle, BundleError, Embedder, NotFoundError
from runtime.bundle import check_path

EditManifest = Callable[[Callable[[dict], None]], Path]


def refusal(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    return caught.value


def test_a_bundle_opens_under_a_link_to_its_folder(int8_bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(int8_bundle.path)

    assert Bundle.open(link).manifest == int8_bundle.manifest


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no bundle at") as caught:
        Bundle.open(tmp_path / "nothing")
    assert caught.value.hint == "`edgekit export MODEL` makes one, and names the folder"


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    assert refusal(tmp_path).message == f"`{tmp_path}` is no bundle: it holds no `manifest.json`"


def test_a_checkpoint_is_no_bundle_and_says_what_to_do(checkpoint: Path) -> None:
    assert refusal(checkpoint).hint == f"if it is a checkpoint, run `edgekit export {checkpoint}`"


@pytest.mark.parametrize("position", [0, 1_000_000, -1])
def test_a_changed_byte(bundle_copy: Path, position: int) -> None:
    path = bundle_copy / "model.onnx"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)

    assert "`model.onnx` in the bundle" in refusal(bundle_copy).message
    assert "was changed: its sha256 is" in refusal(bundle_copy).message


def test_a_file_cut_short(bundle_copy: Path) -> None:
    os.truncate(bundle_copy / "model.onnx", 1000)

    assert "has 1000 bytes instead of" in refusal(bundle_copy).message


def test_a_missing_file(bundle_copy: Path) -> None:
    (bundle_copy / "tokenizer.json").unlink()

    assert refusal(bundle_copy).message == f"`tokenizer.json` is missing from the bundle `{bundle_copy}`"


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt"])
def test_an_extra_file(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).parent.mkdir(exist_ok=True)
    (bundle_copy / name).write_text("mine")

    assert refusal(bundle_copy).message == f"`{bundle_copy}` holds `{name}`, which its manifest does not list"


def test_a_link_instead_of_a_file(bundle_copy: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    (bundle_copy / "tokenizer.json").rename(real)
    (bundle_copy / "tokenizer.json").symlink_to(real)

    assert "is a link or no regular file" in refusal(bundle_copy).message


def test_a_link_instead_of_the_manifest(bundle_copy: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    (bundle_copy / "manifest.json").rename(real)
    (bundle_copy / "manifest.json").symlink_to(real)

    assert "holds no `manifest.json`" in refusal(bundle_copy).message


def test_a_linked_folder_inside(edit_manifest: EditManifest, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = edit_manifest(lambda manifest: manifest["files"].update({"sub/a": {"size": 1, "sha256": "0" * 64}}))
    (elsewhere / "a").write_text("x")
    (path / "sub").symlink_to(elsewhere)

    assert "holds `sub`, which its manifest does not list" in refusal(path).message


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../b", "a\\b", "C:x", "./a", "a//b", "", ".", "a/"]
)
def test_a_path_that_leaves_the_folder(edit_manifest: EditManifest, name: str) -> None:
    path = edit_manifest(lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0" * 64}}))

    assert refusal(path).message == f"the path `{name}` leaves the folder or is not written plainly"


@pytest.mark.parametrize("name", ["model.onnx", "sub/model.onnx", "a b/ü.json", "..data"])
def test_plain_paths_are_fine(name: str) -> None:
    check_path(name)


def test_a_newer_schema(edit_manifest: EditManifest) -> None:
    path = edit_manifest(lambda manifest: manifest.update(schema=99))

    assert refusal(path).message == "the bundle has schema 99, and this edgekit reads schemas 2 to 4"


def test_a_manifest_that_is_no_text(bundle_copy: Path) -> None:
    (bundle_copy / "manifest.json").write_bytes(b"\xff\xfe")

    assert refusal(bundle_copy).message == "`manifest.json` is no UTF-8 text"


def test_other_inputs_than_the_manifest_says(edit_manifest: EditManifest) -> None:
    path = edit_manifest(lambda manifest: manifest.update(inputs=["input_ids", "attention_mask"]))

    with pytest.raises(
        BundleError, match=r"wants the inputs \['input_ids', 'attention_mask'\], and known are `input_ids`"
    ):
        Embedder(path)


def test_external_data_outside_the_folder_is_not_read(edit_manifest: EditManifest, tmp_path: Path) -> None:
    """A graph whose weights point out of the bundle: every hash is right, and still nothing outside is opened."""
    import onnx

    from runtime.bundle import sha256_of

    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4 * 30522))
    path = tmp_path / "copy"
    model = onnx.load(path / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("token_type_0"))
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "../secret.bin", "offset": "0", "length": str(size)}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (path / "model.onnx").write_bytes(model.SerializeToString())
    record = {"size": (path / "model.onnx").stat().st_size, "sha256": sha256_of(path / "model.onnx")}
    edit_manifest(lambda manifest: manifest["files"].update({"model.onnx": record}))

    with pytest.raises(BundleError, match=r"onnxruntime cannot open .*(?i:escapes|outside|directory)"):
        Embedder(path)


def test_the_manifest_lists_every_file(int8_bundle: Bundle) -> None:
    on_disk = {path.name for path in int8_bundle.path.iterdir()} - {"manifest.json"}

    assert set(int8_bundle.manifest.files) == on_disk
    assert json.loads((int8_bundle.path / "manifest.json").read_text())["files"].keys() == on_disk


def test_the_size_is_that_of_the_files(int8_bundle: Bundle) -> None:
    assert int8_bundle.size == sum((int8_bundle.path / name).stat().st_size for name in int8_bundle.manifest.files)


def test_a_file_that_is_not_there(int8_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no `model\.bin`"):
        int8_bundle.file("model.bin")
