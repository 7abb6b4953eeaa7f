"""Write OCI image layouts: what `ortkit pack` and `ortkit kit` make, the same to the byte for the same artifacts."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..bundle.file_names import name_problem, path_problem
from ..errors import BundleError, InputError
from ..output_path import flush_folder
from .blob_store import BLOBS, INDEX, MARKER, NEW_COPY, Progress, copy_range, opened_file
from .oci_layout import (
    FILE_PATH,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    KIND,
    LARGEST_JSON,
    MODEL_ARTIFACT,
    REFERENCE,
    TITLE,
    Blob,
)
from .strict_tar import END, header_of, padding_of

_MARKER_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""A tag, as registries have it."""


@dataclass(frozen=True)
class NewLayer:
    """A file to put into a layout: its blob, and where its contents come from."""

    blob: Blob
    source: Path | bytes

    @classmethod
    def of(cls, content: bytes, media_type: str) -> NewLayer:
        """A layer of bytes in memory."""
        return cls(_blob_of(content, media_type), content)


@dataclass(frozen=True)
class NewArtifact:
    """An artifact to put into a layout; the same as `Artifact`, with the contents."""

    name: str
    kind: str
    layers: Mapping[str, NewLayer]
    """Relative path -> file."""
    artifact_type: str = MODEL_ARTIFACT
    config: NewLayer = field(default_factory=lambda: NewLayer.of(_EMPTY, _EMPTY_TYPE))
    annotations: Mapping[str, str] = field(default_factory=dict)


def write_layout(
    out: BinaryIO,
    artifacts: Sequence[NewArtifact],
    *,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> None:
    """Write a layout as an uncompressed tar, the same to the byte for the same artifacts.

    Layers whose digests are in `without` are left out. Files are hashed while they are copied: raises BundleError where
    one is not what its blob states, InputError for names and numbers of files that a layout cannot have, and OSError.
    """
    for name, layer in _files_of(artifacts, without):
        out.write(header_of(name, layer.blob.size))
        _write_layer(out, layer, progress)
        out.write(bytes(padding_of(layer.blob.size)))
    out.write(END)


def write_layout_folder(
    folder: Path,
    artifacts: Sequence[NewArtifact],
    *,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> None:
    """As `write_layout`, to the files of a new or empty folder, flushed to disk."""
    (folder / BLOBS).mkdir(parents=True)
    for name, layer in _files_of(artifacts, without):
        with (folder / name).open("xb") as out:
            _write_layer(out, layer, progress)
            out.flush()
            os.fsync(out.fileno())
    for written in (folder / BLOBS, folder / "blobs", folder):
        flush_folder(written)


def layout_size(artifacts: Sequence[NewArtifact], *, without: Collection[str] = ()) -> int:
    """Bytes of the files of a layout that will be written, without the headers of a tar."""
    return sum(layer.blob.size for _, layer in _files_of(artifacts, without))


def _write_layer(out: BinaryIO, layer: NewLayer, progress: Progress | None) -> None:
    """Copy the contents of a layer and check them."""
    blob, source = layer.blob, layer.source
    if isinstance(source, bytes):
        out.write(source)
        if progress is not None:
            progress(len(source))
        return
    out.flush()
    with opened_file(source) as file:
        size = os.fstat(file.fileno()).st_size
        copied = copy_range((file.fileno(), 0, min(size, blob.size)), source, out.fileno(), progress)
    if (size, copied) != (blob.size, blob.sha256):
        raise BundleError(f"`{source}` was changed: its sha256 is not {blob.sha256[:16]}...", hint=NEW_COPY)


def _files_of(artifacts: Sequence[NewArtifact], without: Collection[str]) -> list[tuple[str, NewLayer]]:
    """The files of a layout in the order in which they are written: what says what is in it first."""
    described: dict[str, NewLayer] = {}
    layers: dict[str, NewLayer] = {}
    entries = []
    ordered = sorted(artifacts, key=lambda artifact: artifact.name)
    for artifact in ordered:
        _check_new(artifact)
        manifest = NewLayer.of(_manifest_of(artifact), IMAGE_MANIFEST)
        entries.append(_descriptor_of(manifest.blob, {REFERENCE: _tag_of(artifact.name), TITLE: artifact.name}))
        described |= {layer.blob.file: layer for layer in (manifest, artifact.config)}
        layers |= {layer.blob.file: layer for layer in artifact.layers.values() if layer.blob.digest not in without}
    index = _json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries})
    if len(index) + sum(layer.blob.size for layer in described.values()) > LARGEST_JSON:
        raise InputError("the bundles have too many files for one pack", hint="write them to several packs")
    # A layer can be equal to a configuration.
    rest = {name: layer for name, layer in layers.items() if name not in described}
    return [
        (MARKER, NewLayer.of(_MARKER_CONTENT, "")),
        (INDEX, NewLayer.of(index, IMAGE_INDEX)),
        *sorted(described.items()),
        *sorted(rest.items()),
    ]


def _check_new(artifact: NewArtifact) -> None:
    """Raise InputError for names that reading would refuse."""
    problem = name_problem(artifact.name)
    if problem is not None:
        raise InputError(
            f"the name `{artifact.name}` cannot be used in a pack: it {problem}", hint="rename the bundle's folder"
        )
    for path in artifact.layers:
        problem = path_problem(path)
        if problem is not None:
            raise InputError(f"the file `{path}` of `{artifact.name}` cannot be packed: its path {problem}")


def _manifest_of(artifact: NewArtifact) -> bytes:
    """The OCI manifest of an artifact."""
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": artifact.artifact_type,
            "config": _descriptor_of(artifact.config.blob),
            "layers": [
                _descriptor_of(layer.blob, {FILE_PATH: path, TITLE: path})
                for path, layer in sorted(artifact.layers.items())
            ],
            "annotations": dict(sorted({**artifact.annotations, KIND: artifact.kind, TITLE: artifact.name}.items())),
        }
    )


def _descriptor_of(blob: Blob, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    described: dict[str, Any] = {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}
    return described | ({"annotations": dict(annotations)} if annotations else {})


def _tag_of(name: str) -> str:
    """A name as a tag: other characters become hyphens."""
    return name if _TAG.fullmatch(name) else re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-")[:128] or "bundle"


def _blob_of(content: bytes, media_type: str) -> Blob:
    return Blob(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content), media_type)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")
