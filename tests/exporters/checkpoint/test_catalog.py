from __future__ import annotations

from pathlib import Path

import pytest

from ortkit import Kind, NotFoundError, OrtkitError, Precision
from ortkit.exporters.checkpoint.catalog import find_model, load_catalog
from ortkit.exporters.sources import find_checkpoint

ENTRY = """
models:
  some-model:
    kind: embedder
    hub: org/some-model
    revision: main
    license: mit
    gated: false
    precision: int8
"""


def catalog(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return path


def test_the_models_that_ortkit_starts_from_are_there() -> None:
    found = {name: (spec.hub, spec.kind, spec.gated) for name, spec in load_catalog().items()}

    assert found == {
        "all-MiniLM-L6-v2": ("sentence-transformers/all-MiniLM-L6-v2", Kind.EMBEDDER, False),
        "jina-embeddings-v2-base-en": ("jinaai/jina-embeddings-v2-base-en", Kind.EMBEDDER, False),
        "ms-marco-MiniLM-L-12-v2": ("cross-encoder/ms-marco-MiniLM-L-12-v2", Kind.RERANKER, False),
        "mistral-7b-instruct-v0.1": ("mistralai/Mistral-7B-Instruct-v0.1", Kind.DECODER, True),
        "SmolLM2-135M-Instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", Kind.DECODER, False),
    }


def test_the_weights_hash_is_that_of_the_hubs_own_file() -> None:
    spec = load_catalog()["all-MiniLM-L6-v2"]

    # Published by the Hub for sentence-transformers/all-MiniLM-L6-v2.
    assert spec.files["model.safetensors"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_an_entry_is_read(tmp_path: Path) -> None:
    (spec,) = load_catalog(catalog(tmp_path, ENTRY)).values()

    assert (spec.name, spec.precision, spec.wheel, spec.files) == ("some-model", Precision.INT8, None, {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: embedder", "kind: embeder", "`kind` must be one of embedder, reranker, decoder, not `embeder`"),
        ("    gated: false\n", "", "`gated` is missing"),
        ("gated: false", "gated: maybe", "`gated` must be true or false, not `maybe`"),
        ("license: mit", "licence: mit", "`licence` is not a known field"),
        ("precision: int8", "precision: int9", "`precision` must be one of fp32, fp16, int8, int4, source, not `int9`"),
        ("revision: main", "revision: 2", "`revision` must be a string, not `2`"),
        ("license: mit", "license: mit\n    wheel: {requirement: a==1}", "`wheel.sha256` is missing"),
        (
            "license: mit",
            "license: mit\n    files: {config.json: abc}",
            "`files.config.json` must be a sha256 of 64 hex digits",
        ),
    ],
)
def test_an_error_names_the_entry_and_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = catalog(tmp_path, ENTRY.replace(old, new))

    with pytest.raises(OrtkitError) as caught:
        load_catalog(path)
    assert caught.value.message == f"in the catalog `{path}`, `some-model`: {message}"


@pytest.mark.parametrize("text", ["", "models: []", "other: {}", "3"])
def test_a_file_without_models(tmp_path: Path, text: str) -> None:
    with pytest.raises(OrtkitError, match="has no `models`"):
        load_catalog(catalog(tmp_path, text))


def test_an_entry_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(OrtkitError, match="`some-model` must be an object"):
        load_catalog(catalog(tmp_path, "models: {some-model: 3}"))


@pytest.mark.parametrize("text", ["models: {", "models: !!python/object/apply:os.system [ls]"])
def test_a_file_that_is_no_plain_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(OrtkitError, match="cannot be read"):
        load_catalog(catalog(tmp_path, text))


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_model_is_found_by_name_and_by_hub_id(name: str) -> None:
    assert find_model(name).name == "all-MiniLM-L6-v2"


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(NotFoundError, match="`minilm` is neither a catalog name nor a Hub id") as caught:
        find_model("minilm")
    assert "`all-MiniLM-L6-v2`" in (caught.value.hint or "")


KNOWN = "; `ortkit models` prints the catalog"
WRITTEN = "models of the Hub are written `owner/name`"


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/org/name",
        "https://huggingface.co/org/name/",
        "http://www.huggingface.co/org/name/tree/main",
        "https://hf.co/org/name?library=transformers#usage",
        "huggingface.co/org/name",
        "https://mirror.example/org/name/blob/main/config.json",
        "https://huggingface.co/api/models/org/name",
        "https://huggingface.co/org/name/resolve/main/model.gguf",
        "hf://org/name",
        "org/name/",
        "org/name/tree/main",
    ],
)
def test_a_pasted_address(address: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_checkpoint(address)
    assert caught.value.message == f"`{address}` is not a folder, a catalog name or a Hub id"
    assert caught.value.hint == f"{WRITTEN}: `org/name`{KNOWN}"


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("mistral", ["mistral-7b-instruct-v0.1"]),
        ("Mistral-7B", ["mistral-7b-instruct-v0.1"]),
        ("smollm", ["SmolLM2-135M-Instruct"]),
        ("smolm2", ["SmolLM2-135M-Instruct"]),
        ("all-MiniLM-L6-v3", ["all-MiniLM-L6-v2"]),
        ("ms-macro-MiniLM-L-12-v2", ["ms-marco-MiniLM-L-12-v2"]),
    ],
)
def test_a_name_like_one_of_the_catalog(name: str, close: list[str]) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_checkpoint(name)
    assert caught.value.hint == f"the catalog has {', '.join(f'`{other}`' for other in close)}, and {WRITTEN}{KNOWN}"


@pytest.mark.parametrize("name", ["gpt2", "https://huggingface.co/datasets/org/texts", "https://huggingface.co/gpt2"])
def test_a_name_like_none_of_the_catalog(name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_checkpoint(name)
    assert caught.value.hint == f"{WRITTEN}, such as `sentence-transformers/all-MiniLM-L6-v2`{KNOWN}"
