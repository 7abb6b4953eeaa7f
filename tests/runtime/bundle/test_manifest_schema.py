"""`docs/manifest.schema.json` accepts and refuses what the runtime does."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ortkit import Bundle, BundleError, Provider
from ortkit.runtime.bundle.manifest import Buckets, Manifest, Quantization, WeightBlocks
from ortkit.runtime.bundle.manifest_json import manifest_from_json
from ortkit.runtime.bundle.records import write_record
from tests.manifest_schema import PATH, schema_text
from tests.tiny_bundles import write_certified_decoder, write_embedder, write_reranker

OLD = Path(__file__).parent.parent / "old_manifests"
VALIDATOR = Draft202012Validator(json.loads(PATH.read_text("utf-8")))
Json = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """A manifest of each kind, and two with the sections that others do not have."""
    folder = tmp_path_factory.mktemp("tiny")
    found: dict[str, Manifest] = {
        "embedder": write_embedder(folder / "embedder", dense=True).manifest,
        "reranker": write_reranker(folder / "reranker").manifest,
        "decoder": write_certified_decoder(folder / "decoder").manifest,
    }
    blocks = WeightBlocks(9, 2, 4, 4, 64, 32, symmetric=False, rounding="gptq")
    quantization = Quantization(24, 1, 0.5, per_token=True, cls_16bit=True)
    found["int4"] = dataclasses.replace(found["decoder"], blocks=blocks, release=7)
    found["coreml"] = dataclasses.replace(
        found["embedder"],
        quantization=quantization,
        provider=Provider.COREML,
        buckets=Buckets(tokens=(64, 128), texts=(1, 8)),
        requires={"onnxruntime": "1.30"},
    )
    return found


def is_read(content: Json) -> bool:
    try:
        manifest_from_json(json.dumps(content))
    except BundleError:
        return False
    return True


def test_the_file_is_made_from_the_records() -> None:
    assert PATH.read_text("utf-8") == schema_text(), "write it again: `python -m tests.manifest_schema`"
    Draft202012Validator.check_schema(VALIDATOR.schema)


def test_manifests_of_each_kind_are_valid(tiny: dict[str, Manifest]) -> None:
    for manifest in tiny.values():
        VALIDATOR.validate(write_record(manifest))


def test_manifests_of_bundles_are_valid(int8_bundle: Bundle, smollm_bundle: Bundle) -> None:
    for bundle in (int8_bundle, smollm_bundle):
        VALIDATOR.validate(json.loads(bundle.file("manifest.json").read_text("utf-8")))


def test_manifests_of_older_schemas() -> None:
    """Before 6, some fields had other names."""
    valid = {path.stem: VALIDATOR.is_valid(json.loads(path.read_text("utf-8"))) for path in OLD.glob("*.json")}

    assert {name: int(name[-1]) >= 6 for name in valid} == valid
    assert sum(valid.values()) == 3


REFUSED: dict[str, Json] = {
    "no kind": {"kind": ...},
    "another kind": {"kind": "translator"},
    "a kind in capitals": {"kind": "Embedder"},
    "an unknown field": {"color": "red"},
    "an unknown field within": {"source.color": "red"},
    "a file without its hash": {"files.model.onnx.sha256": ...},
    "a size that is a text": {"files.model.onnx.size": "12"},
    "a size that is true": {"files.model.onnx.size": True},
    "a name that is null": {"name": None},
    "files that are a list": {"files": []},
    "inputs that are a text": {"inputs": "input_ids"},
    "inputs that are numbers": {"inputs": [1]},
    "no tokens": {"tokenizer.max_length": 0},
    "tokens beyond 32 bits": {"tokenizer.max_length": 1 << 31},
    "a vector of 2^17": {"embedder.dimension": 1 << 17},
    "another pooling": {"embedder.pooling": "median"},
    "an embedder that is a list": {"embedder": []},
    "a release of 0": {"release": 0},
    "a later schema": {"schema": 8},
    "a figure that is a text": {"certificate.figures": {"cosine_min": "high"}},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tiny: dict[str, Manifest], case: str) -> None:
    content = write_record(tiny["embedder"])
    ((path, value),) = REFUSED[case].items()
    # The name of the graph has a dot.
    *parents, last = path.replace("model.onnx", "model,onnx").split(".")
    inner = content
    for name in parents:
        inner = inner[name.replace(",", ".")]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value

    assert not is_read(content)
    assert not VALIDATOR.is_valid(content)


VALUES = (None, True, -1, 0, 3, 1.5, 1 << 40, "x", [], ["x"], [1], {}, {"x": 1}, {"x": "y"})


def changed(value: Any) -> Iterator[Any]:
    """The value with each part of it replaced by others, removed, or with one more field."""
    yield from VALUES
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in parts:
        for other in changed(part):
            made = copy.copy(value)
            made[key] = other
            yield made
        if isinstance(value, dict):
            yield {name: kept for name, kept in value.items() if name != key}
    if isinstance(value, dict):
        yield value | {"one_more": 1}


@pytest.mark.parametrize("kind", ["decoder", "reranker", "coreml"])
def test_changed_manifests_are_refused_by_both_or_by_neither(tiny: dict[str, Manifest], kind: str) -> None:
    content = write_record(tiny[kind])
    # Another version has another schema.
    cases = [made for made in changed(content) if isinstance(made, dict) and made.get("schema") in (None, 7)]
    differ = [made for made in cases if is_read(made) != VALIDATOR.is_valid(made)]

    assert not differ, differ[0]
    assert sum(map(is_read, cases)) > 100
    assert len(cases) > 1000
