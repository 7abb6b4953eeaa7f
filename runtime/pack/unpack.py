"""Unpack a bundle from a pack: atomic, verified, and with the files that a small pack leaves out from other bundles."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..bundle.bundle import LARGEST_MANIFEST, Bundle, is_regular
from ..bundle.folder import MANIFEST, SBOM_FILE
from ..bundle.manifest import Manifest
from ..bundle.manifest_json import manifest_from_json
from ..bundle.staging import StagingFolder
from ..errors import BundleError, NotFoundError, NotTrustedError, OrtkitError, OutputError
from ..output_path import cannot_write, flush_folder
from ..trust.names import LARGEST_SIGNATURE, SIGNATURE
from ..trust.policy import Policy
from ..trust.signature import verify_signature
from .blob_store import Progress
from .oci_layout import BUNDLE, Artifact, OciLayout

_SPARE = 1 << 20
"""Bytes to leave free on a disk: folders and file systems need some."""


def bundles_in(layout: OciLayout) -> list[Artifact]:
    """The bundles of a pack; raises BundleError where it has none."""
    found = [artifact for artifact in layout.artifacts if artifact.kind == BUNDLE]
    if not found:
        raise BundleError(f"the pack `{layout.path}` contains no bundle")
    return found


def packed_manifest(layout: OciLayout, artifact: Artifact) -> Manifest:
    """The manifest of a bundle in a pack; raises BundleError where the layers are not the files that it lists."""
    blob = artifact.layers.get(MANIFEST)
    if blob is None:
        raise BundleError(f"`{artifact.name}` in the pack `{layout.path}` is not a bundle: it has no `{MANIFEST}`")
    try:
        manifest = manifest_from_json(layout.read(blob, LARGEST_MANIFEST).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(f"`{MANIFEST}` of `{artifact.name}` is not valid UTF-8") from error
    listed = {name: (record.size, record.sha256) for name, record in manifest.files.items()}
    layers = {
        name: (layer.size, layer.sha256)
        for name, layer in artifact.layers.items()
        if name not in (MANIFEST, SBOM_FILE, SIGNATURE)
    }
    for name in sorted(listed.keys() | layers.keys()):
        if listed.get(name) != layers.get(name):
            raise BundleError(
                f"the layer `{name}` of `{artifact.name}` in the pack `{layout.path}` is not the file that its "
                f"`{MANIFEST}` lists"
            )
    return manifest


def check_signature(
    layout: OciLayout, artifact: Artifact, manifest: Manifest, *, allow_downgrade: bool = False
) -> None:
    """Raise NotTrustedError for a bundle that the machine's policy refuses; only files of the pack are read.

    The layers' digests are checked, so after that their contents are what was signed if they have these hashes.
    """
    policy = Policy.current()
    if not policy.require_signature:
        return
    where = f"`{artifact.name}` in the pack `{layout.path}`"
    blob = artifact.layers.get(SIGNATURE)
    if blob is None:
        raise NotTrustedError(
            f"{where} is not signed, and the policy `{policy.path}` requires a signature",
            hint="sign the bundle where it is made, with `ortkit sign`, and pack it again",
        )
    files = {name: layer.sha256 for name, layer in artifact.layers.items() if name not in (SBOM_FILE, SIGNATURE)}
    signature = layout.read(blob, LARGEST_SIGNATURE)
    verify_signature(files, signature, policy.trusted, where=f"the signature of {where}")
    if not allow_downgrade:
        policy.releases.check(manifest.counter, manifest.release)


def unpack(
    layout: OciLayout,
    artifact: Artifact,
    target: Path,
    *,
    have: Mapping[str, Path] | None = None,
    allow_downgrade: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write a bundle of a pack to a new folder, as verified as `Bundle.open` returns it.

    `have` maps digests to files of this machine, for what the pack leaves out. The folder appears in one step when all
    is on the disk, and never where this raises: OutputError for an existing target or a full disk, BundleError, and
    NotTrustedError where the machine's policy refuses the bundle.
    """
    check_targets([target])
    check_signature(layout, artifact, packed_manifest(layout, artifact), allow_downgrade=allow_downgrade)
    try:
        with StagingFolder(target) as staging:
            folder = staging / "bundle"
            left_out = layout.missing(artifact)
            _check_space(staging, sum(blob.size for name, blob in artifact.layers.items() if name not in left_out))
            names = artifact.layers.keys() - {SBOM_FILE}
            layout.extract(artifact, folder, have=have, names=names, progress=progress)
            # Its signature was verified, and its files have the hashes that were signed.
            opened, _ = Bundle.unsigned(folder)
            os.rename(folder, target)
            flush_folder(target.absolute().parent)
    except OrtkitError:
        raise
    except OSError as error:
        raise cannot_write(error, target) from error
    return Bundle(target, opened.manifest)


def check_targets(targets: Iterable[Path]) -> None:
    """Raise OutputError for the first path that exists."""
    for target in targets:
        if os.path.lexists(target):
            raise OutputError(
                f"`{target}` exists, and unpacking replaces nothing",
                hint="name another folder with `-o`, or remove it",
            )


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + _SPARE > free:
        raise OutputError(
            f"`{folder.parent}` has {free / 1e6:.0f} MB free; unpacking needs {size / 1e6:.0f} MB",
            hint="make room, or name a folder on another disk with `-o`",
        )


def files_by_digest(folders: Iterable[Path]) -> dict[str, Path]:
    """Digest -> path of the files of bundles: folders that are bundles, or that have some in them.

    The digests are those of the manifests, so whoever uses a file hashes it. Raises NotFoundError for a folder that
    does not exist; bundles that cannot be used are passed over.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise NotFoundError(f"there is no folder `{folder}`")
        for path in [folder] if is_regular(folder / MANIFEST) else sorted(folder.iterdir()):
            if not path.is_dir():
                continue
            try:
                # Only its files are used, each under its hash.
                bundle, _ = Bundle.unsigned(path)
            except OrtkitError:
                continue
            for name, record in bundle.manifest.files.items():
                found.setdefault(f"sha256:{record.sha256}", path / name)
    return found
