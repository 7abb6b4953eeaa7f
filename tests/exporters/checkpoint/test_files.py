"""What may be read of a checkpoint: no link out of it, nothing endless, nothing without bottom."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ortkit.exporters.checkpoint.checkpoint import Checkpoint, license_of
from ortkit.exporters.checkpoint.files import check_files, read_json, size_limit
from ortkit.exporters.pipeline import copy_licenses
from ortkit.exporters.sources import find_checkpoint
from ortkit import CheckpointError
from ortkit.runtime.bundle.manifest import Source

SOURCE = Source("folder", "x", "x", None, None, None, None, {})


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "token"
    path.parent.mkdir()
    path.write_text("hf_secret")
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("LICENSE", "LICENSE.txt", "README.md", "config.json", "tokenizer.json", "vocab.txt", "chat_template.jinja"),
        *("merges.txt", "added_tokens.json", "spiece.model", "1_Pooling/config.json", "sentence_bert_config.json"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_a_folder(tiny_checkpoint: Path, secret: Path, name: str, *, relative: bool) -> None:
    path = tiny_checkpoint / name
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(secret, path.parent) if relative else secret)

    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(str(tiny_checkpoint))
    assert caught.value.message == (
        f"`{name}` of `{tiny_checkpoint}` is a link to `{secret}`, outside of the checkpoint"
    )
    assert caught.value.hint == "where the links are yours, copy what they lead to: `cp -rL`"


def test_a_folder_that_is_a_link_out_of_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.move(tiny_checkpoint / "1_Pooling", tmp_path / "elsewhere")
    (tiny_checkpoint / "1_Pooling").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CheckpointError, match=r"`1_Pooling/config.json` of .* is a link to"):
        find_checkpoint(str(tiny_checkpoint))


def test_a_module_whose_path_leaves_the_checkpoint(tiny_checkpoint: Path, secret: Path) -> None:
    checkpoint = Checkpoint("x", tiny_checkpoint, {}, SOURCE, None)

    for name in (f"../{secret.parent.name}/{secret.name}", str(secret)):
        with pytest.raises(CheckpointError, match="outside of the checkpoint"):
            checkpoint.read_json(name)


def test_links_that_stay(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Within the folder, to the blobs of a cache of the Hub, and of weights to anywhere; the folder may be a link."""
    blob = tmp_path / "hub" / "models--org--tiny" / "blobs" / ("a" * 40)
    blob.parent.mkdir(parents=True)
    shutil.move(tiny_checkpoint / "tokenizer.json", blob)
    (tiny_checkpoint / "tokenizer.json").symlink_to(blob)
    (tiny_checkpoint / "terms").write_text("the terms")
    (tiny_checkpoint / "LICENSE").symlink_to("terms")
    shutil.move(tiny_checkpoint / "model.safetensors", tmp_path / "weights")
    (tiny_checkpoint / "model.safetensors").symlink_to(tmp_path / "weights")
    (tiny_checkpoint / "train.txt").symlink_to("/etc/hostname")
    (tmp_path / "link").symlink_to(tiny_checkpoint)

    found = find_checkpoint(str(tmp_path / "link"))

    assert {"LICENSE", "tokenizer.json", "model.safetensors"} <= found.source.files.keys()
    (tmp_path / "bundle").mkdir()
    copy_licenses(found, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "LICENSE").read_text() == "the terms"
    assert not (tmp_path / "bundle" / "LICENSE").is_symlink()


def test_a_link_that_is_made_after_the_check_is_not_copied(tiny_checkpoint: Path, secret: Path, tmp_path: Path) -> None:
    found = find_checkpoint(str(tiny_checkpoint))
    (tiny_checkpoint / "LICENSE").symlink_to(secret)
    (tmp_path / "bundle").mkdir()

    with pytest.raises(CheckpointError, match=r"`LICENSE` of .* is a link to"):
        copy_licenses(found, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "LICENSE").exists()


def test_a_blob_under_another_name_is_no_blob(tmp_path: Path) -> None:
    for target in ("hub/models--org--x/blobs/../../token", "hub/models--org--x/blobs/token", "hub/blobs/" + "a" * 40):
        folder = tmp_path / target.replace("/", "_")
        folder.mkdir()
        (folder / "LICENSE").symlink_to(tmp_path / target)

        with pytest.raises(CheckpointError, match="outside of the checkpoint"):
            check_files(folder)


def test_a_folder_of_licenses_is_not_a_license(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tiny_checkpoint / "LICENSES").mkdir()
    (tiny_checkpoint / "LICENSES" / "MIT.txt").write_text("terms")
    (tiny_checkpoint / "LICENSE").write_text("the terms")
    (tmp_path / "bundle").mkdir()

    copy_licenses(find_checkpoint(str(tiny_checkpoint)), tmp_path / "bundle")

    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["LICENSE"]


@pytest.mark.parametrize("name", ["LICENSE", "config.json", "special_tokens_map.json"])
def test_a_pipe_is_not_waited_for(tiny_checkpoint: Path, name: str) -> None:
    (tiny_checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(tiny_checkpoint / name)

    with pytest.raises(CheckpointError, match=f"`{name}` of `{tiny_checkpoint}` is not a file"):
        find_checkpoint(str(tiny_checkpoint))


@pytest.mark.parametrize("name", ["config.json", "LICENSE", "README.md", "modules.json", "tokenizer.json"])
def test_a_file_of_gigabytes(tiny_checkpoint: Path, name: str) -> None:
    """With holes for content, which cost no disk."""
    with (tiny_checkpoint / name).open("wb") as file:
        file.truncate(8 << 30)

    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(str(tiny_checkpoint))
    assert caught.value.message == (
        f"`{name}` of `{tiny_checkpoint}` has 8,589.9 MB, and such a file may have {size_limit(name) / 1e6:,.1f} MB"
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", ["[" * 1_000_000, '{"a":' * 100_000])
def test_json_without_a_bottom(tiny_checkpoint: Path, name: str, content: str) -> None:
    (tiny_checkpoint / name).write_text(content)

    with pytest.raises(CheckpointError) as caught:
        read_json(tiny_checkpoint / name)
    assert caught.value.message == f"`{tiny_checkpoint / name}` has more levels than JSON is read with"


@pytest.mark.parametrize("header", ["license: " + "[" * 30_000, "license: 2024-13-45", "a: &a [x]\nlicense: *b", "\0"])
def test_a_card_that_cannot_be_read_states_no_license(tmp_path: Path, header: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")

    assert license_of(tmp_path) is None
