"""The embedder of an index: queries must be embedded by the very bundle that embedded the passages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ...runtime.bundle.folder import MANIFEST
from ...runtime.encoder.embedder import Embedder
from ...runtime.errors import BundleError, NotFoundError
from ...runtime.output_path import bundles_folder
from .storage.index_file import BUILD_AGAIN, BundleRecord, path_of, uri_of

_ANOTHER = f"give the bundle that it was built with, or {BUILD_AGAIN}"


def bundle_record(embedder: Embedder) -> BundleRecord:
    """What an index records of its bundle."""
    bundle = embedder.bundle
    path = Path(os.path.abspath(bundle.path))  # noqa: PTH100 - `resolve` would follow links that are there to be kept
    return BundleRecord(bundle.manifest.name, bundle.digest, uri_of(path), embedder.dimension)


def open_embedder(
    index: Path, record: BundleRecord, embedder: Embedder | str | os.PathLike[str] | None
) -> tuple[Embedder, bool]:
    """The embedder for an index's queries, and whether it was opened here.

    Raises BundleError for another bundle than the index was built with, NotFoundError where it is nowhere, and what
    opening a bundle raises.
    """
    if isinstance(embedder, Embedder):
        check_digest(index, record, embedder.bundle.path, embedder.bundle.digest)
        return embedder, False
    if embedder is None:
        embedder = find_bundle(index, record)
    opened = Embedder(embedder)
    try:
        check_digest(index, record, opened.bundle.path, opened.bundle.digest)
    except BundleError:
        opened.close()
        raise
    return opened, True


def check_digest(index: Path, record: BundleRecord, path: Path, digest: str) -> None:
    """Raise BundleError for another bundle than that of an index."""
    if digest != record.digest:
        raise BundleError(
            f"the index `{index}` was built with the bundle `{record.name}` ({record.digest[:16]}...), and `{path}` is "
            f"another ({digest[:16]}...)",
            hint=_ANOTHER,
        )


def find_bundle(index: Path, record: BundleRecord) -> Path:
    """The bundle of an index where it was, beside the index, or in the folder of bundles; raises as `open_embedder`."""
    others = []
    for path in _places(index, record):
        try:
            digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
        except (OSError, ValueError):
            continue
        if digest == record.digest:
            return path
        others.append((path, digest))
    if others:
        check_digest(index, record, *others[0])
    raise NotFoundError(
        f"the bundle `{record.name}` of the index `{index}` is not at `{path_of(record.path)}`, nor in "
        f"`{bundles_folder()}`",
        hint="give its path: `--bundle PATH`, in Python `embedder=`",
    )


def _places(index: Path, record: BundleRecord) -> Iterator[Path]:
    was = path_of(record.path)
    yield was
    beside = Path(os.path.abspath(index)).parent  # noqa: PTH100
    for folder in (bundles_folder(), beside / "bundles", beside):
        yield folder / was.name
