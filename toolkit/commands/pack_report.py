"""What `ortkit inspect` and `ortkit verify` print of a pack or kit, without unpacking it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...runtime.bundle.folder import MANIFEST, SBOM_FILE
from ...runtime.bundle.manifest_json import manifest_fields
from ...runtime.bundle.records import write_record
from ...runtime.errors import NotTrustedError
from ...runtime.sizes import megabytes
from ..console.progress import byte_progress
from ..console.terminal import escaped_json, say
from .descriptions import describe_bundle
from .sign import NO_KEY, NO_SIGNATURE

if TYPE_CHECKING:
    from ...runtime.bundle.manifest import Manifest
    from ...runtime.pack.oci_layout import Artifact, OciLayout
    from ...runtime.trust.public_key import TrustedKey
    from ...runtime.trust.signature import Signer
    from ...runtime.trust.x509 import Certificate


def is_pack(path: str) -> bool:
    """Whether a path is a file, or a folder with an OCI image layout: anything but a bundle."""
    from ...runtime.pack.blob_store import MARKER

    return Path(path).is_file() or (Path(path) / MARKER).is_file()


def inspect_pack(path: str, *, as_json: bool) -> None:
    """Print the bundles of a pack as those of folders; all its files are hashed first."""
    from ...runtime.installer.kit_file import open_layout
    from ...runtime.pack.oci_layout import BUNDLE

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
    from ...runtime.decoder.memory_estimate import footprint_of
    from ...runtime.pack.oci_layout import BUNDLE

    if artifact.kind != BUNDLE:
        return {"kind": artifact.kind, "name": artifact.name, "files": len(artifact.layers), "size": artifact.size}
    manifest = _manifest_of(layout, artifact)
    shown: dict[str, Any] = manifest_fields(manifest) | {"digest": artifact.layers[MANIFEST].sha256}
    if manifest.decoder is not None:
        shown["memory"] = write_record(footprint_of(manifest, manifest.decoder))
    return shown | {"packed_as": artifact.name, "left_out": sorted(layout.missing(artifact))}


def _manifest_of(layout: OciLayout, artifact: Artifact) -> Manifest:
    from ...runtime.pack.unpack import check_signature, packed_manifest

    manifest = packed_manifest(layout, artifact)
    check_signature(layout, artifact, manifest)
    return manifest


def _size_of(manifest: Manifest) -> int:
    return sum(record.size for record in manifest.files.values())


@dataclass(frozen=True)
class VerifiedPack:
    """A pack or kit whose files match their hashes."""

    digest: str
    """The sha256 of its index, which has those of everything else."""
    files: int
    signer: Signer | str
    """Who signed it; or why that is not known."""


def verify_pack(path: str, named: tuple[TrustedKey | Certificate, ...]) -> VerifiedPack:
    """Hash a pack or kit, and verify its signature by the keys that are named, else by the policy's.

    Raises BundleError, and NotTrustedError where the signature is not by one of them, or there is none and keys are
    named. Also where the policy requires signatures of bundles, and refuses one of those in it.
    """
    from ...runtime.installer.kit_file import Kit, is_kit
    from ...runtime.pack.oci_layout import OciLayout, signature_beside
    from ...runtime.trust.policy import read_signature

    where = Path(path)
    if is_kit(where):
        with Kit.open(where) as kit:
            return _verified(kit.layout, _signer_of(where, kit.files, kit.signature, named))
    with OciLayout.open(where) as layout:
        signature = read_signature(signature_beside(where))
        return _verified(layout, _signer_of(where, layout.files(), signature, named))


def _signer_of(
    path: Path, files: dict[str, str], signature: bytes | None, named: tuple[TrustedKey | Certificate, ...]
) -> Signer | str:
    from ...runtime.trust.policy import Policy
    from ...runtime.trust.signature import verify_signature

    keys = named or Policy.current().trusted
    if signature is None and named:
        raise NotTrustedError(
            f"`{path}` is not signed, and a signature is required",
            hint=f"sign it where it is made: `ortkit sign {path.name} --key key.pem`; that of a pack is a file beside "
            f"it, `{path.name}.sig`",
        )
    if signature is None:
        return NO_SIGNATURE
    return verify_signature(files, signature, keys, where=f"the signature of `{path}`") if keys else NO_KEY


def _verified(layout: OciLayout, signer: Signer | str) -> VerifiedPack:
    from ...runtime.pack.oci_layout import BUNDLE

    with byte_progress("checking", sum(artifact.size for artifact in layout.artifacts)) as progress:
        layout.check(progress=progress)
    for artifact in layout.artifacts:
        if artifact.kind == BUNDLE:
            _manifest_of(layout, artifact)
    return VerifiedPack(layout.index_sha256, len(layout.files()), signer)


def pack_sbom(path: str) -> bytes:
    """The SBOM of a pack: its own where it is a kit, otherwise one of all its bundles.

    That of a bundle is made from its manifest: the layer with one is not covered by the bundle's signature.
    """
    from ...exporters.packaging.sbom import sbom_json, sbom_of_bundle, sbom_of_kit
    from ...runtime.installer.kit_file import open_layout
    from ...runtime.installer.kit_format import SBOM
    from ...runtime.pack.unpack import bundles_in
    from ...runtime.version import __version__

    with open_layout(path) as layout:
        for artifact in layout.artifacts:
            if artifact.kind == SBOM and SBOM_FILE in artifact.layers:
                return layout.read(artifact.layers[SBOM_FILE], _LARGEST_SBOM)
        bundles = bundles_in(layout)
        described = [(_manifest_of(layout, artifact), artifact.layers[MANIFEST].sha256) for artifact in bundles]
        if len(described) == 1:
            return sbom_json(sbom_of_bundle(*described[0]))
        return sbom_json(sbom_of_kit(Path(path).name, described, [], __version__))


_LARGEST_SBOM = 1 << 24
"""Bytes."""
