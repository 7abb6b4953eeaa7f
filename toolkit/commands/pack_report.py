"""What `ortkit inspect` prints of a pack, without unpacking it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...runtime.bundle.folder import MANIFEST
from ...runtime.bundle.manifest import manifest_fields
from ...runtime.bundle.records import write_record
from ..console.progress import byte_progress, megabytes
from ..console.terminal import escaped_json, say
from .descriptions import describe_bundle

if TYPE_CHECKING:
    from ...runtime.bundle.manifest import Manifest
    from ...runtime.bundle.oci_layout import Artifact, OciLayout


def is_pack(path: str) -> bool:
    """Whether a path is a file, or a folder with an OCI image layout: anything but a bundle."""
    from ...runtime.bundle.blob_store import MARKER

    return Path(path).is_file() or (Path(path) / MARKER).is_file()


def inspect_pack(path: str, *, as_json: bool) -> None:
    """Print the bundles of a pack as those of folders; all its files are hashed first."""
    from ...runtime.bundle.oci_layout import BUNDLE
    from ...runtime.installer.open_layout import open_layout

    with open_layout(path) as layout:
        with byte_progress("checking", sum(artifact.size for artifact in layout.artifacts)) as progress:
            layout.check(progress=progress)
        if as_json:
            fields = [_fields(layout, artifact) for artifact in layout.artifacts]
            click.echo(escaped_json(json.dumps(fields, indent=2, ensure_ascii=False)))
            return
        for place, artifact in enumerate(layout.artifacts):
            if place:
                say("")
            lines = _bundle_lines(layout, artifact) if artifact.kind == BUNDLE else _lines(artifact)
            for label, text in lines:
                say(f"{label:<12} {text}")


def _lines(artifact: Artifact) -> list[tuple[str, str]]:
    """Anything but a bundle: the wheels of a kit, for example."""
    return [(artifact.kind[:12], f"{artifact.name}: {megabytes(artifact.size)} in {len(artifact.layers)} files")]


def _bundle_lines(layout: OciLayout, artifact: Artifact) -> list[tuple[str, str]]:
    """A bundle's report, with its name in the pack, its digest, and what the pack leaves out."""
    manifest = _manifest_of(layout, artifact)
    lines = [
        ("bundle", artifact.name),
        *describe_bundle(manifest, _size_of(manifest)),
        ("digest", artifact.layers[MANIFEST].sha256),
    ]
    missing = layout.missing(artifact)
    if missing:
        size = megabytes(sum(blob.size for blob in missing.values()))
        lines.append(("left out", f"{', '.join(sorted(missing))} ({size}): the appliance has them"))
    return lines


def _fields(layout: OciLayout, artifact: Artifact) -> dict[str, Any]:
    """An artifact as JSON: a bundle's manifest as `inspect --json` prints that of a folder, and what is missing."""
    from ...runtime.bundle.oci_layout import BUNDLE
    from ...runtime.decoder.memory_estimate import footprint_of

    if artifact.kind != BUNDLE:
        return {"kind": artifact.kind, "name": artifact.name, "files": len(artifact.layers), "size": artifact.size}
    manifest = _manifest_of(layout, artifact)
    shown: dict[str, Any] = manifest_fields(manifest) | {"digest": artifact.layers[MANIFEST].sha256}
    if manifest.decoder is not None:
        shown["memory"] = write_record(footprint_of(manifest, manifest.decoder))
    return shown | {"packed_as": artifact.name, "left_out": sorted(layout.missing(artifact))}


def _manifest_of(layout: OciLayout, artifact: Artifact) -> Manifest:
    from ...runtime.bundle.unpack import check_signature, packed_manifest

    manifest = packed_manifest(layout, artifact)
    check_signature(layout, artifact, manifest)
    return manifest


def _size_of(manifest: Manifest) -> int:
    return sum(record.size for record in manifest.files.values())


def pack_sbom(path: str) -> bytes:
    """The SBOM of a pack: its own where it is a kit, otherwise one of all its bundles.

    That of a bundle is made from its manifest: the layer with one is not covered by the bundle's signature.
    """
    from ...exporters.packaging.sbom import sbom_json, sbom_of_bundle, sbom_of_kit
    from ...runtime.bundle.unpack import SBOM, bundles_in
    from ...runtime.installer.open_layout import open_layout
    from ...runtime.version import __version__

    with open_layout(path) as layout:
        for artifact in layout.artifacts:
            if artifact.kind == "sbom" and SBOM in artifact.layers:
                return layout.read(artifact.layers[SBOM], _LARGEST_SBOM)
        bundles = bundles_in(layout)
        described = [(_manifest_of(layout, artifact), artifact.layers[MANIFEST].sha256) for artifact in bundles]
        if len(described) == 1:
            return sbom_json(sbom_of_bundle(*described[0]))
        return sbom_json(sbom_of_kit(Path(path).name, described, [], __version__))


_LARGEST_SBOM = 1 << 24
"""Bytes."""
