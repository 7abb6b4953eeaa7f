import dataclasses
import json
import time
from typing import Any

import numpy as np
import pytest

from ortkit import Bundle, BundleError
from ortkit.runtime.bundle.golden_vector import pack_vector, unpack_vector
from ortkit.runtime.bundle.manifest import SCHEMA, Certificate, LadderStep, Manifest, Quantization, WeightBlocks
from ortkit.runtime.bundle.manifest_json import OLDEST, manifest_from_json, manifest_to_json
from ortkit.runtime.bundle.records import write_record


def test_a_manifest_is_read_as_it_was_written(int8_bundle: Bundle) -> None:
    text = (int8_bundle.path / "manifest.json").read_text(encoding="utf-8")

    assert manifest_from_json(text) == int8_bundle.manifest
    assert manifest_to_json(int8_bundle.manifest) == text


OLD_NAMES = {
    "source": {"license": "licence"},
    "quantization": {"matmuls": "products", "float32_matmuls": "exact_products", "cls_16bit": "precise_first_token"},
    "blocks": {"matmuls": "products", "float32_matmuls": "exact_products"},
}


def content_with_old_names(manifest: Manifest) -> Any:
    """A manifest as schema 5 spelled it."""
    content = write_record(manifest) | {"schema": 5}
    for section, names in OLD_NAMES.items():
        content[section] = {names.get(key, key): value for key, value in content[section].items()}
    return content


@pytest.fixture
def quantized(int8_bundle: Bundle) -> Manifest:
    """A manifest with every section whose fields were renamed."""
    return dataclasses.replace(
        int8_bundle.manifest,
        quantization=Quantization(24, 1, 0.5, per_token=True, cls_16bit=True),
        blocks=WeightBlocks(9, 2, 4, 4, 64, 32, symmetric=False, rounding="gptq"),
    )


def test_the_field_names_of_schema_5_are_read(quantized: Manifest) -> None:
    content = content_with_old_names(quantized)

    assert content["source"]["licence"] == "apache-2.0"
    assert content["blocks"]["exact_products"] == 2
    assert manifest_from_json(json.dumps(content)) == dataclasses.replace(quantized, schema=5)


@pytest.mark.parametrize(
    ("section", "name", "old"), [(section, *pair) for section, names in OLD_NAMES.items() for pair in names.items()]
)
def test_an_old_field_name_beside_the_new_one_or_in_a_new_manifest(
    quantized: Manifest, section: str, name: str, old: str
) -> None:
    both, new = content_with_old_names(quantized), write_record(quantized)
    both[section][name] = both[section][old]
    new[section][old] = new[section].pop(name)

    for content in (both, new):
        with pytest.raises(BundleError, match=rf"`{section}\.\w+` is not a known field"):
            manifest_from_json(json.dumps(content))


@pytest.mark.parametrize("section", OLD_NAMES)
@pytest.mark.parametrize("value", [None, 3, []])
def test_an_old_manifest_whose_section_is_not_an_object(quantized: Manifest, section: str, value: object) -> None:
    content = content_with_old_names(quantized) | {section: value}
    if value is None and section != "source":
        assert getattr(manifest_from_json(json.dumps(content)), section) is None
        return
    with pytest.raises(BundleError, match=rf"`{section}` must be an object"):
        manifest_from_json(json.dumps(content))


def test_how_a_graph_was_quantized_in_words(quantized: Manifest) -> None:
    assert str(quantized.quantization) == (
        "24 matmuls, 1 of them in float32, per-token activation scales, 16-bit [CLS], SmoothQuant alpha 0.5"
    )
    assert str(quantized.blocks) == (
        "9 matmuls, 2 of them in float32, 4 bits, block size 64, output projection 4 bits, block size 32, "
        "with zero points, GPTQ"
    )
    assert str(Quantization(8, 0, 0.7, per_token=False)) == "8 matmuls, static activation scales, SmoothQuant alpha 0.7"
    assert str(WeightBlocks(9, 0, 8, 8, 32, 32, symmetric=True, rounding="source")) == (
        "9 matmuls, 8 bits, block size 32, symmetric, blocks of the GGUF file"
    )


def test_the_ladder_is_kept_and_left_out_where_there_is_none(quantized: Manifest) -> None:
    steps = (
        LadderStep(per_token=False, cls_16bit=False, float32_matmuls=0, agreement=0.94),
        LadderStep(per_token=True, cls_16bit=True, float32_matmuls=1, agreement=None),
    )
    how = dataclasses.replace(quantized.quantization or Quantization(1, 0, 1, per_token=True), ladder=steps)
    manifest = dataclasses.replace(quantized, quantization=how)

    assert manifest_from_json(manifest_to_json(manifest)) == manifest
    assert [how.is_taken(step) for step in steps] == [False, True]
    assert [str(step) for step in steps] == [
        "static scales",
        "per-token scales + 16-bit [CLS] + float32 matmuls: 1",
    ]
    assert "ladder" not in json.loads(manifest_to_json(quantized))["quantization"]


@pytest.mark.parametrize(
    ("schema", "age", "advice"),
    [(SCHEMA + 1, "a newer", "update ortkit on this machine"), (OLDEST - 1, "an older", "export it again")],
)
def test_a_schema_that_is_not_supported_is_named_before_unknown_fields(schema: int, age: str, advice: str) -> None:
    with pytest.raises(BundleError) as caught:
        manifest_from_json(json.dumps({"schema": schema, "new_field": 1}))

    assert caught.value.message == (
        f"the bundle was made with {age} ortkit: its schema is {schema}; supported: {OLDEST} to {SCHEMA}"
    )
    assert (caught.value.hint or "").startswith(advice)
    assert caught.value.exit_code == 7


def test_a_certificate_without_optional_figures(quantized: Manifest) -> None:
    """An export may leave out what takes long to measure."""
    content = write_record(quantized)
    del content["certificate"]["layer_errors"]
    content["certificate"]["figures"] = {}

    certificate = manifest_from_json(json.dumps(content)).certificate
    assert certificate is not None
    assert (certificate.layer_errors, certificate.figures) == ((), {})


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ({"requested": "intfloat/e5-small"}, "intfloat/e5-small"),
        ({"requested": "my models/x; rm -rf ~"}, "'my models/x; rm -rf ~'"),
        ({"requested": 3}, "MODEL"),
        ({}, "MODEL"),
        (None, "MODEL"),
    ],
)
def test_a_bundle_that_is_too_old_says_how_it_is_exported_again(source: object, command: str) -> None:
    with pytest.raises(BundleError) as caught:
        manifest_from_json(json.dumps({"schema": 1, "source": source}))

    assert caught.value.hint == f"export it again with this version: `ortkit export {command}`"


@pytest.mark.parametrize("text", ["", "{", "[1", "nul"])
def test_text_that_is_not_json(text: str) -> None:
    with pytest.raises(BundleError, match=r"`manifest\.json` is not valid JSON"):
        manifest_from_json(text)


def test_deeply_nested_json() -> None:
    with pytest.raises(BundleError) as caught:
        manifest_from_json('{"schema":' + "[" * 100_000)

    assert caught.value.message == "`manifest.json` is nested too deeply"
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["figures", "layer_errors", "generation"])
def test_nan_and_infinity_are_refused(written: tuple[Bundle, object], number: str, place: str) -> None:
    """Python's JSON parser accepts them, and every comparison with NaN is false."""
    manifest = write_record(written[0].manifest)
    manifest["certificate"] = write_record(Certificate("numpy", "none", "", 1, {}, ()))
    if place == "generation":
        manifest["decoder"]["generation"]["top_p"] = "HERE"
    else:
        manifest["certificate"][place] = {"kl_mean": "HERE"} if place == "figures" else ["HERE"]

    with pytest.raises(
        BundleError, match=r"`manifest\.json` is not valid: `.*` must be a finite number, not `-?(nan|inf)`"
    ):
        manifest_from_json(json.dumps(manifest).replace('"HERE"', number))


def test_a_duplicate_key() -> None:
    with pytest.raises(BundleError) as caught:
        manifest_from_json('{"schema": 4, "kind": "embedder", "kind": "decoder"}')

    assert caught.value.message == "`manifest.json` is not valid: `kind` is a duplicate key"


def test_a_manifest_of_the_largest_size_is_parsed_within_seconds() -> None:
    numbers = json.dumps([1] * 340_000)
    begun = time.monotonic()
    with pytest.raises(BundleError):
        manifest_from_json(f'{{"schema": 4, "kind": {numbers}}}')

    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("schema", ["true", "null", "4.0", '"4"', "[4]"])
def test_a_schema_that_is_not_an_integer(schema: str) -> None:
    with pytest.raises(BundleError, match=r"`manifest\.json` is not valid: "):
        manifest_from_json(f'{{"schema": {schema}}}')


@pytest.mark.parametrize(
    ("part", "field", "value", "allowed"),
    [
        ("decoder", "layers", 0, "from 1 to 65535"),
        ("decoder", "layers", -1, "from 1 to 65535"),
        ("decoder", "head_size", 0, "from 1 to 65536"),
        ("decoder", "kv_heads", 0, "from 1 to 65536"),
        ("decoder", "vocabulary", 10**13, "from 1 to 16777215"),
        ("decoder", "context_length", 1, "from 2 to 2147483647"),
        ("tokenizer", "max_length", -1, "from 1 to 2147483647"),
        ("tokenizer", "max_length", 10**25, "from 1 to 2147483647"),
        ("blocks", "block", 0, "from 1 to 2147483647"),
        ("blocks", "bits", -8, "from 1 to 2147483647"),
    ],
)
def test_numbers_out_of_range(written: tuple[Bundle, object], part: str, field: str, value: int, allowed: str) -> None:
    manifest = write_record(written[0].manifest)
    manifest["blocks"] = write_record(WeightBlocks(10, 0, 4, 4, 64, 64, symmetric=False, rounding="importance"))
    manifest_from_json(json.dumps(manifest))
    manifest[part][field] = value

    with pytest.raises(BundleError) as caught:
        manifest_from_json(json.dumps(manifest))

    assert caught.value.message == f"`manifest.json` is not valid: `{part}.{field}` must be {allowed}, not `{value}`"
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("text", ["[]", "{}", "3"])
def test_json_that_is_not_a_manifest(text: str) -> None:
    with pytest.raises(BundleError, match=r"`manifest\.json` is not valid"):
        manifest_from_json(text)


def test_an_invalid_value_is_named_with_its_field(int8_bundle: Bundle) -> None:
    value = write_record(int8_bundle.manifest)
    value["embedder"]["pooling"] = "middle"

    with pytest.raises(BundleError, match=r"`embedder\.pooling` must be one of cls, mean, max, last_token"):
        manifest_from_json(json.dumps(value))


def test_vectors_are_packed_without_loss() -> None:
    vector = np.random.default_rng(0).normal(size=17).astype(np.float32)

    assert np.array_equal(unpack_vector(pack_vector(vector)), vector)


@pytest.mark.parametrize("text", ["!", "AAA=", "AAAA"])
def test_a_damaged_vector_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="a golden vector in"):
        unpack_vector(text)


def test_a_release_that_was_not_set_is_not_written(quantized: Manifest) -> None:
    """So that versions which do not know the field read the manifest."""
    text = manifest_to_json(quantized)

    assert "release" not in json.loads(text)
    released = manifest_to_json(dataclasses.replace(quantized, release=7))
    assert json.loads(released) == json.loads(text) | {"release": 7}
    assert manifest_from_json(released).release == 7
