import json
import time

import numpy as np
import pytest

from ortkit import Bundle, BundleError
from ortkit.runtime.bundle.manifest import OLDEST, SCHEMA, Certificate, WeightBlocks, manifest_from_json, manifest_to_json, pack_vector, unpack_vector
from ortkit.runtime.bundle.records import write_record


def test_a_manifest_survives_the_way_to_disk_and_back(int8_bundle: Bundle) -> None:
    text = (int8_bundle.path / "manifest.json").read_text(encoding="utf-8")

    assert manifest_from_json(text) == int8_bundle.manifest
    assert manifest_to_json(int8_bundle.manifest) == text


def test_a_manifest_with_the_earlier_spelling_of_license_is_read(int8_bundle: Bundle) -> None:
    content = write_record(int8_bundle.manifest)
    content["source"]["licence"] = content["source"].pop("license")

    assert manifest_from_json(json.dumps(content)).source.license == "apache-2.0"

    content["source"]["license"] = "mit"
    with pytest.raises(BundleError, match=r"`source\.licence` is not a known field"):
        manifest_from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("schema", "advice"), [(SCHEMA + 1, "update ortkit on this machine"), (OLDEST - 1, "export it again")]
)
def test_another_schema_is_refused_whatever_else_it_says(schema: int, advice: str) -> None:
    with pytest.raises(BundleError) as caught:
        manifest_from_json(json.dumps({"schema": schema, "unheard": "of"}))

    assert (
        caught.value.message == f"the bundle has schema {schema}, and this ortkit reads schemas {OLDEST} to {SCHEMA}"
    )
    assert (caught.value.hint or "").startswith(advice)


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
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"`manifest\.json` is not valid JSON"):
        manifest_from_json(text)


def test_endless_brackets_are_refused() -> None:
    with pytest.raises(BundleError) as caught:
        manifest_from_json('{"schema":' + "[" * 100_000)

    assert caught.value.message == "`manifest.json` nests too deep to be read"
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["figures", "layer_errors", "generation"])
def test_numbers_that_compare_as_false(written: tuple[Bundle, object], number: str, place: str) -> None:
    """JSON of Python's may hold them, and whatever is compared with NaN passes or fails by how it is written."""
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


def test_a_key_that_is_there_twice() -> None:
    with pytest.raises(BundleError) as caught:
        manifest_from_json('{"schema": 4, "kind": "embedder", "kind": "decoder"}')

    assert caught.value.message == "`manifest.json` is not valid: `kind` is there twice"


def test_many_numbers_are_read_within_seconds() -> None:
    """As many as a manifest of the largest size holds."""
    numbers = json.dumps([1] * 340_000)
    begun = time.monotonic()
    with pytest.raises(BundleError):
        manifest_from_json(f'{{"schema": 4, "kind": {numbers}}}')

    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("schema", ["true", "null", "4.0", '"4"', "[4]"])
def test_a_schema_that_is_no_number(schema: str) -> None:
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
def test_counts_that_nothing_could_have(
    written: tuple[Bundle, object], part: str, field: str, value: int, allowed: str
) -> None:
    manifest = write_record(written[0].manifest)
    manifest["blocks"] = write_record(WeightBlocks(10, 0, 4, 4, 64, 64, symmetric=False, rounding="importance"))
    manifest_from_json(json.dumps(manifest))
    manifest[part][field] = value

    with pytest.raises(BundleError) as caught:
        manifest_from_json(json.dumps(manifest))

    assert caught.value.message == f"`manifest.json` is not valid: `{part}.{field}` must be {allowed}, not `{value}`"
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("text", ["[]", "{}", "3"])
def test_json_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"`manifest\.json` is not valid"):
        manifest_from_json(text)


def test_a_wrong_field_is_named(int8_bundle: Bundle) -> None:
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
