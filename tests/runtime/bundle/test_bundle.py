from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle, BundleError, Embedder, NotFoundError
from ortkit.runtime.bundle.bundle import check_path
from ortkit.runtime.bundle.manifest import SCHEMA

EditManifest = Callable[[Callable[[dict], None]], Path]


def refusal(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    return caught.value


def test_a_bundle_opens_under_a_link_to_its_folder(int8_bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(int8_bundle.path)

    assert Bundle.open(link).manifest == int8_bundle.manifest


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no bundle at") as caught:
        Bundle.open(tmp_path / "nothing")
    assert caught.value.hint == "create one with `ortkit export MODEL`, which prints its folder"


def test_a_folder_that_is_not_a_bundle(tmp_path: Path) -> None:
    assert refusal(tmp_path).message == f"`{tmp_path}` is not a bundle: it has no `manifest.json`"


def test_a_checkpoint_instead_of_a_bundle(checkpoint: Path) -> None:
    assert refusal(checkpoint).hint == f"if it is a checkpoint, run `ortkit export {checkpoint}`"


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

    assert "is a link or not a regular file" in refusal(bundle_copy).message


def test_a_link_instead_of_the_manifest(bundle_copy: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    (bundle_copy / "manifest.json").rename(real)
    (bundle_copy / "manifest.json").symlink_to(real)

    assert "has no `manifest.json`" in refusal(bundle_copy).message


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

    assert refusal(path).message == f"the path `{name}` leaves its folder or is not normalized"


@pytest.mark.parametrize("name", ["model.onnx", "sub/model.onnx", "a b/ü.json", "..data"])
def test_plain_paths_are_fine(name: str) -> None:
    check_path(name)


def test_a_newer_schema(edit_manifest: EditManifest) -> None:
    path = edit_manifest(lambda manifest: manifest.update(schema=99))

    assert refusal(path).message == (
        f"the bundle was made with a newer ortkit: its schema is 99; supported: 2 to {SCHEMA}"
    )


def test_a_manifest_that_is_not_utf8(bundle_copy: Path) -> None:
    (bundle_copy / "manifest.json").write_bytes(b"\xff\xfe")

    assert refusal(bundle_copy).message == "`manifest.json` is not valid UTF-8"


@pytest.fixture
def small(written: tuple[Bundle, object], tmp_path: Path) -> Path:
    """The bundle of a tiny decoder that a test may damage."""
    shutil.copytree(written[0].path, tmp_path / "small")
    return tmp_path / "small"


def add_files(folder: Path, **sizes: int) -> None:
    """List more files in a manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] |= {name: {"size": size, "sha256": "0" * 64} for name, size in sizes.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("size", [(1 << 20) + 1, 8 << 30])
def test_a_manifest_of_gigabytes_is_not_read(small: Path, size: int) -> None:
    os.truncate(small / "manifest.json", size)
    begun = time.monotonic()

    assert refusal(small).message == (
        f"`{small / 'manifest.json'}` has more than 1048576 bytes, the limit for a manifest"
    )
    assert time.monotonic() - begun < 30


def test_a_manifest_of_many_numbers(small: Path) -> None:
    (small / "manifest.json").write_text(f'{{"schema": 4, "inputs": [{"1," * 20_000_000}1]}}')

    assert "has more than 1048576 bytes" in refusal(small).message


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "model.onnx", "more"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(small: Path, name: str) -> None:
    (small / name).unlink(missing_ok=True)
    os.mkfifo(small / name)

    assert refusal(small).message == {
        "manifest.json": f"`{small}` is not a bundle: it has no `manifest.json`",
        "more": f"`{small}` holds `more`, which its manifest does not list",
    }.get(name, f"`{name}` in the bundle `{small}` is a link or not a regular file")


def test_a_device_in_the_place_of_a_file(small: Path) -> None:
    (small / "tokenizer.json").unlink()
    (small / "tokenizer.json").symlink_to("/dev/zero")

    assert "is a link or not a regular file" in refusal(small).message


@pytest.mark.parametrize(
    ("name", "size", "most"),
    [
        ("tokenizer.json", 1 << 40, 1 << 26),
        ("model.onnx", 1 << 31, (1 << 31) - 1),
        ("model.onnx.data", 1 << 39, 1 << 38),
        ("dense-0.npz", -1, 1 << 38),
        ("tokenizer.json", 10**30, 1 << 26),
    ],
)
def test_a_file_that_would_be_read_for_hours(small: Path, name: str, size: int, most: int) -> None:
    add_files(small, **{name: size})
    begun = time.monotonic()

    assert refusal(small).message == f"`{name}` in the bundle `{small}` has {size} bytes; the limit is {most}"
    assert time.monotonic() - begun < 30


def test_files_that_are_too_much_together(small: Path) -> None:
    add_files(small, **{str(number): 1 << 37 for number in range(3)})

    assert refusal(small).message.startswith(f"the files of `{small}` have 4123")


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_size_that_is_another(small: Path, size: int) -> None:
    (small / "more").write_text("four")
    add_files(small, more=size)

    assert refusal(small).message == f"`more` in the bundle `{small}` has 4 bytes instead of {size}"


@pytest.mark.parametrize("depth", [10, 200])
def test_folders_deep_within_one_another(small: Path, depth: int) -> None:
    descriptors = [os.open(small, os.O_RDONLY)]
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=descriptors[-1])
            descriptors.append(os.open("d", os.O_RDONLY, dir_fd=descriptors[-1]))
            os.close(descriptors.pop(0))
    finally:
        os.close(descriptors[-1])

    assert refusal(small).message == f"the folders in `{small}` are nested deeper than 8"
    subprocess.run(["rm", "-r", small], check=True)


def test_a_path_deeper_than_a_bundle_has(small: Path) -> None:
    add_files(small, **{"d/" * 5000 + "a": 1})

    assert refusal(small).message.endswith("leaves its folder or is not normalized")


def test_more_files_than_a_manifest_could_list(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.bundle.bundle.MOST_FILES", 20)
    for number in range(20):
        (small / str(number)).touch()

    assert refusal(small).message == f"`{small}` is not a bundle: it contains more than 20 files"


@pytest.mark.parametrize(
    ("first", "second"), [("a.txt", "A.TXT"), ("manifest.json", "Manifest.json"), ("\u00e9", "e\u0301"), ("ß", "SS")]
)
def test_names_that_are_the_same_on_some_systems(small: Path, first: str, second: str) -> None:
    add_files(small, **{name: 1 for name in (first, second) if name != "manifest.json"})

    assert set(re.findall("`([^`]+)`", refusal(small).message)) == {first, second}
    assert refusal(small).message.endswith("which are the same file on some systems")


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a\u202eb", "a\x9b", "a\u2028"])
def test_names_that_a_terminal_would_obey(small: Path, name: str) -> None:
    add_files(small, **{name: 1})

    assert refusal(small).message == f"the path `{name}` leaves its folder or is not normalized"


def test_other_inputs_than_the_manifest_says(edit_manifest: EditManifest) -> None:
    path = edit_manifest(lambda manifest: manifest.update(inputs=["input_ids", "attention_mask"]))

    with pytest.raises(
        BundleError, match=r"expects the inputs \['input_ids', 'attention_mask'\]; supported: `input_ids`"
    ):
        Embedder(path)


def test_external_data_outside_the_folder_is_not_read(edit_manifest: EditManifest, tmp_path: Path) -> None:
    """A graph whose weights point out of the bundle: every hash is right, and still nothing outside is opened."""
    import onnx

    from ortkit.runtime.file_hash import sha256_of

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
