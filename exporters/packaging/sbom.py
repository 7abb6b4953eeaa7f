"""The SBOM of a bundle or of a kit, as CycloneDX 1.6 JSON (ECMA-424), from manifests alone.

Deterministic: the same manifests and wheels give the same bytes, so an SBOM has no timestamp. Version 1.6, because
Dependency-Track refuses newer ones until it has the support that was merged in July 2026.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ...runtime.bundle.folder import MANIFEST
from ...runtime.bundle.manifest import Certificate, Kind, Manifest, Source

_NAMESPACE = uuid.NAMESPACE_URL
_TASKS = {
    Kind.EMBEDDER: "feature-extraction",
    Kind.RERANKER: "text-ranking",
    Kind.DECODER: "text-generation",
}
"""Tasks, as the Hugging Face Hub names them."""
_LICENSES = (
    *("AFL-3.0", "AGPL-3.0", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear"),
    *("BSL-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0"),
    *("CC-BY-NC-ND-3.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0"),
    *("CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "CDLA-Sharing-1.0"),
    *("ECL-2.0", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "GFDL-1.3", "GPL-2.0", "GPL-3.0", "ISC", "LGPL-2.1"),
    *("LGPL-3.0", "LPPL-1.3c", "MIT", "MPL-2.0", "MS-PL", "NCSA", "ODbL-1.0", "OFL-1.1", "OSL-3.0", "PDDL-1.0"),
    *("PostgreSQL", "Unlicense", "WTFPL", "Zlib"),
)
"""SPDX identifiers of the licenses that the Hub offers; any other license is listed by its name."""
_SPDX = {identifier.casefold(): identifier for identifier in _LICENSES}

Json = dict[str, Any]


@dataclass(frozen=True)
class Wheel:
    """A wheel that a kit carries."""

    name: str
    version: str
    sha256: str


def sbom_of_bundle(manifest: Manifest, digest: str) -> Json:
    """The SBOM of a bundle; `digest` is the sha256 of its manifest."""
    model = _model(manifest, digest)
    return _document(
        digest, manifest.made_with.get("ortkit"), model, _files(manifest, digest), {model["bom-ref"]: None}
    )


def sbom_of_kit(
    name: str, bundles: Sequence[tuple[Manifest, str]], wheels: Iterable[Wheel], ortkit_version: str
) -> Json:
    """The SBOM of bundles, each with its digest, and of the wheels that run them."""
    manifests = {digest: manifest for manifest, digest in bundles}
    models = [_model(manifest, digest) for digest, manifest in manifests.items()]
    files = [file for digest, manifest in manifests.items() for file in _files(manifest, digest)]
    ordered = sorted(set(wheels), key=lambda wheel: (_normalized(wheel.name), wheel.version, wheel.sha256))
    libraries = [_library(wheel) for wheel in ordered]
    contents = "\n".join([name, *(found["bom-ref"] for found in (*models, *libraries))])
    digest = hashlib.sha256(contents.encode()).hexdigest()
    kit = {"type": "application", "bom-ref": f"kit:{digest}", "name": name}
    depends = {kit["bom-ref"]: [found["bom-ref"] for found in (*models, *libraries)]}
    return _document(digest, ortkit_version, kit, [*models, *files, *libraries], depends)


def sbom_json(sbom: Json) -> bytes:
    """An SBOM as the contents of a file."""
    return (json.dumps(sbom, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _document(
    digest: str, ortkit_version: str | None, subject: Json, components: list[Json], depends: dict[str, list[str]]
) -> Json:
    """The document."""
    tool: Json = {"type": "application", "name": "ortkit"}
    if ortkit_version is not None:
        tool |= {"version": ortkit_version, "purl": _pypi("ortkit", ortkit_version)}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'sha256:{digest}')}",
        "version": 1,
        "metadata": {"tools": {"components": [tool]}, "component": subject},
        "components": components,
        "dependencies": [{"ref": reference, "dependsOn": needed} for reference, needed in depends.items()],
    }


def _model(manifest: Manifest, digest: str) -> Json:
    """A bundle as a component."""
    source = manifest.source
    purl = purl_of(source)
    component: Json = {
        "type": "machine-learning-model",
        "bom-ref": f"bundle:{digest}",
        "name": manifest.name,
        "version": f"{manifest.precision.value}-{manifest.provider.value}",
        "hashes": [_hash(digest)],
        "licenses": _licenses(source),
    }
    if purl is not None:
        component["purl"] = purl
    quantized = manifest.quantization or manifest.blocks
    component["pedigree"] = {"ancestors": [_checkpoint(source, purl)]} | (
        {"notes": f"{manifest.precision.value}: {quantized}"} if quantized is not None else {}
    )
    card: Json = {
        "modelParameters": {
            "task": _TASKS[manifest.kind],
            "architectureFamily": manifest.architecture,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": _output(manifest)}],
        }
    }
    if manifest.certificate is not None:
        card["quantitativeAnalysis"] = {"performanceMetrics": _metrics(manifest.certificate)}
    component["modelCard"] = card
    component["properties"] = [{"name": f"ortkit:{name}", "value": value} for name, value in _properties(manifest)]
    return component


def _checkpoint(source: Source, purl: str | None) -> Json:
    """The checkpoint that a bundle was exported from, with the files that the export read."""
    component: Json = {"type": "machine-learning-model", "name": source.resolved, "licenses": _licenses(source)}
    if source.revision is not None:
        component["version"] = source.revision
    if purl is not None:
        component["purl"] = purl
    component["components"] = [
        {"type": "file", "name": name, "hashes": [_hash(digest)]} for name, digest in sorted(source.files.items())
    ]
    return component


def _files(manifest: Manifest, digest: str) -> list[Json]:
    """The files of a bundle as components."""
    hashes = {name: record.sha256 for name, record in manifest.files.items()} | {MANIFEST: digest}
    return [
        {"type": "file", "bom-ref": f"bundle:{digest}/{name}", "name": name, "hashes": [_hash(found)]}
        for name, found in sorted(hashes.items())
    ]


def _library(wheel: Wheel) -> Json:
    purl = _pypi(wheel.name, wheel.version)
    return {
        "type": "library",
        "bom-ref": f"{purl}#{wheel.sha256}",
        "name": wheel.name,
        "version": wheel.version,
        "purl": purl,
        "hashes": [_hash(wheel.sha256)],
    }


def _output(manifest: Manifest) -> str:
    if manifest.embedder is not None:
        return f"float32[{manifest.embedder.dimension}]"
    if manifest.reranker is not None:
        return f"float32[{len(manifest.reranker.labels)}]"
    return "text"


def _metrics(certificate: Certificate) -> list[Json]:
    measured = f"{certificate.probe}, {certificate.probe_size} samples, sha256 {certificate.probe_sha256}"
    return [
        {"type": name, "value": f"{value:g}" if value.is_integer() else repr(value), "slice": measured}
        for name, value in sorted(certificate.figures.items())
    ]


def _properties(manifest: Manifest) -> Iterable[tuple[str, str]]:
    """Further facts; a chat template is a program, so it is listed with its hash."""
    yield "kind", manifest.kind.value
    yield "precision", manifest.precision.value
    yield "provider", manifest.provider.value
    yield "schema", str(manifest.schema)
    yield "max_length", str(manifest.tokenizer.max_length)
    yield "source:origin", manifest.source.origin
    if manifest.source.gated is not None:
        yield "source:gated", "true" if manifest.source.gated else "false"
    if manifest.decoder is not None and manifest.decoder.chat is not None:
        template = hashlib.sha256(manifest.decoder.chat.template.encode("utf-8")).hexdigest()
        yield "chat_template:sha256", template
    if manifest.certificate is not None:
        yield "certificate:reference", manifest.certificate.reference
        yield "certificate:provider", manifest.certified_on.value
    for name, version in sorted(manifest.requires.items()):
        yield f"requires:{name}", f">={version}"
    for name, version in sorted(manifest.made_with.items()):
        yield f"made_with:{name}", version


def _licenses(source: Source) -> list[Json]:
    if source.license is None:
        return []
    identifier = _SPDX.get(source.license.casefold())
    return [{"license": {"name": source.license} if identifier is None else {"id": identifier}}]


def purl_of(source: Source) -> str | None:
    """The package URL of a checkpoint (package-url/purl-spec): on the Hub, or in a wheel; None for a folder or file."""
    if source.origin == "hub" and source.revision is not None:
        return f"pkg:huggingface/{quote(source.resolved, safe='/')}@{source.revision.lower()}"
    if source.origin == "wheel":
        name, _, version = source.resolved.partition("==")
        return _pypi(name, version)
    return None


def _pypi(name: str, version: str) -> str:
    return f"pkg:pypi/{quote(_normalized(name), safe='')}@{quote(version, safe='')}"


def _normalized(name: str) -> str:
    """A package's name as an index has it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _hash(sha256: str) -> Json:
    return {"alg": "SHA-256", "content": sha256}
