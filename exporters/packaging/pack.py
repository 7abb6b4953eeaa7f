"""Pack bundles: an OCI image layout that skopeo, oras and registries take, with CNCF ModelPack's media types.

A layer is a file of a bundle, as it is, so its digest is the sha256 that the manifest has. Files are read once: they
are hashed while they are copied.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.bundle import Bundle, is_regular
from ...runtime.bundle.folder import MANIFEST, SBOM_FILE
from ...runtime.bundle.manifest import Kind, Manifest
from ...runtime.bundle.staging import StagingFolder
from ...runtime.errors import InputError, OrtkitError, OutputError
from ...runtime.installer.kit_file import open_layout
from ...runtime.output_path import cannot_write, flush_folder, regular_target_of, replacing
from ...runtime.pack.blob_store import Progress
from ...runtime.pack.layout_writer import NewArtifact, NewLayer, layout_size, write_layout, write_layout_folder
from ...runtime.pack.oci_layout import BUNDLE, DIGEST, Blob
from ...runtime.trust.names import SIGNATURE
from .sbom import sbom_json, sbom_of_bundle

CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_WEIGHTS = "application/vnd.cncf.model.weight.v1.raw"
_WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
_DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"
_WEIGHT_FILES = (".onnx", ".data", ".npz")
_DOCUMENTS = ("LICENSE", "NOTICE", "README.md", SBOM_FILE, SIGNATURE)
_OUTPUTS = {Kind.EMBEDDER: "embedding", Kind.RERANKER: "other", Kind.DECODER: "text"}
"""ModelPack's modality of a model's output."""
_ALWAYS = (MANIFEST, SBOM_FILE, SIGNATURE)
"""Files that say what a bundle is: they are in every pack."""


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote."""

    path: Path
    bundles: int
    size: int
    """Bytes of all files that were written."""
    left_out: int
    """Files that were left out, because the appliance has them."""


def pack(
    bundles: Sequence[str | os.PathLike[str]],
    out: Path,
    *,
    as_folder: bool = False,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> Packed:
    """Write bundles to a tar, or to a new folder; the target appears in one step when all is on the disk.

    Layers whose digests are in `without` are left out. Raises BundleError for a bundle with a changed file, InputError
    for two bundles of one name, and OutputError.
    """
    artifacts = [artifact_of(Bundle.listed(path)) for path in bundles]
    return write_pack(artifacts, out, as_folder=as_folder, without=without, progress=progress)


def write_pack(
    artifacts: Sequence[NewArtifact],
    out: Path,
    *,
    as_folder: bool = False,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> Packed:
    """As `pack`, of artifacts."""
    _check_names(artifacts)
    chosen = _left_out(artifacts, without)
    try:
        if as_folder:
            _write_folder(artifacts, out, chosen, progress)
        else:
            with replacing(regular_target_of(out)) as file:
                write_layout(file, artifacts, without=chosen, progress=progress)
            flush_folder(out.absolute().parent)
    except OrtkitError:
        raise
    except OSError as error:
        raise _cannot_write(error, out, as_folder=as_folder) from error
    return Packed(out, len(artifacts), layout_size(artifacts, without=chosen), len(chosen))


def pack_size(bundles: Sequence[str | os.PathLike[str]], without: Collection[str] = ()) -> int:
    """Bytes that `pack` will write."""
    artifacts = [artifact_of(Bundle.listed(path)) for path in bundles]
    return layout_size(artifacts, without=_left_out(artifacts, without))


def _write_folder(
    artifacts: Sequence[NewArtifact], out: Path, without: Collection[str], progress: Progress | None
) -> None:
    if os.path.lexists(out):
        raise OutputError(f"`{out}` exists, and `--folder` replaces nothing", hint="name a new folder with `-o`")
    with StagingFolder(out) as staging:
        write_layout_folder(staging / "layout", artifacts, without=without, progress=progress)
        os.rename(staging / "layout", out)
        flush_folder(out.absolute().parent)


def _cannot_write(error: OSError, out: Path, *, as_folder: bool) -> OutputError:
    if error.errno == errno.EFBIG and not as_folder:
        return OutputError(
            f"`{out}` cannot be written: {error.strerror}",
            hint="FAT32 takes files up to 4 GiB: use `--folder`, or format the stick as exFAT",
        )
    return cannot_write(error, out)


def _left_out(artifacts: Iterable[NewArtifact], without: Collection[str]) -> set[str]:
    """The digests in `without` that are layers of these bundles and may be left out."""
    return {
        layer.blob.digest
        for artifact in artifacts
        for name, layer in artifact.layers.items()
        if layer.blob.digest in without and name not in _ALWAYS
    }


def _check_names(artifacts: Sequence[NewArtifact]) -> None:
    names = [artifact.name for artifact in artifacts]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two of the bundles are named `{name}`", hint="rename the folder of one of them")


def artifact_of(bundle: Bundle) -> NewArtifact:
    """A bundle as an artifact of a layout; its files are hashed when they are written."""
    manifest, digest = bundle.manifest, bundle.digest
    name = Path(os.path.abspath(bundle.path)).name  # noqa: PTH100 - `resolve` would follow the link `current`
    blobs = {file: (record.sha256, record.size) for file, record in manifest.files.items()}
    blobs[MANIFEST] = (digest, bundle.file(MANIFEST).stat().st_size)
    layers = {
        file: NewLayer(Blob(f"sha256:{sha256}", size, media_type_of(file)), bundle.path / file)
        for file, (sha256, size) in blobs.items()
    }
    if is_regular(bundle.path / SIGNATURE):
        layers[SIGNATURE] = NewLayer.of((bundle.path / SIGNATURE).read_bytes(), media_type_of(SIGNATURE))
    layers[SBOM_FILE] = NewLayer.of(sbom_json(sbom_of_bundle(manifest, digest)), media_type_of(SBOM_FILE))
    config = _config(manifest, [layer.blob.digest for _, layer in sorted(layers.items())])
    annotations = {"org.opencontainers.image.description": _description(manifest)}
    if manifest.source.license is not None:
        annotations["org.opencontainers.image.licenses"] = manifest.source.license
    return NewArtifact(name, BUNDLE, layers, config=NewLayer.of(config, CONFIG_TYPE), annotations=annotations)


def media_type_of(name: str) -> str:
    """ModelPack's media type of a file of a bundle."""
    if name.endswith(_WEIGHT_FILES):
        return _WEIGHTS
    return _DOCUMENT if name in _DOCUMENTS else _WEIGHT_CONFIG


def _description(manifest: Manifest) -> str:
    return f"{manifest.kind.value}, {manifest.precision.value}, for onnxruntime's provider {manifest.provider.value}"


def _config(manifest: Manifest, digests: list[str]) -> bytes:
    """ModelPack's configuration of a model (schema/config-schema.json)."""
    source = manifest.source
    descriptor: dict[str, object] = {"name": manifest.name, "family": manifest.architecture}
    if source.revision is not None:
        descriptor["revision"] = source.revision
    if source.license is not None:
        descriptor["licenses"] = [source.license]
    config = {
        "descriptor": descriptor,
        "config": {
            "architecture": "transformer",
            "format": "onnx",
            "precision": manifest.precision.value,
            "capabilities": {"inputTypes": ["text"], "outputTypes": [_OUTPUTS[manifest.kind]]},
        },
        "modelfs": {"type": "layers", "diffIds": digests},
    }
    return json.dumps(config, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def digests_in(path: Path) -> set[str]:
    """The digests of all files that an earlier pack, kit or bundle lists: what `--since` leaves out."""
    if is_regular(path / MANIFEST):
        return set(digests_of_bundle(Bundle.listed(path)).values())
    with open_layout(path) as layout:
        return {blob.digest for artifact in layout.artifacts for blob in artifact.layers.values()}


def digests_of_bundle(bundle: Bundle) -> dict[str, str]:
    """File -> digest, for a bundle's files and its manifest."""
    digests = {name: f"sha256:{record.sha256}" for name, record in bundle.manifest.files.items()}
    return dict(sorted({**digests, MANIFEST: f"sha256:{bundle.digest}"}.items()))


def read_digests(text: str, name: str) -> set[str]:
    """The digests that `ortkit list --digests` printed: the first word of each line; raises InputError."""
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if DIGEST.fullmatch(words[0]) is None:
            raise InputError(
                f"line {number} of `{name}` does not begin with a digest (`sha256:` and 64 hexadecimal digits)",
                hint="`ortkit list --digests` on the appliance prints them",
            )
        found.add(words[0])
    return found
