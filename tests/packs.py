"""Packs for tests: a small bundle, its pack, and layouts put together by hand, as `tarfile` writes them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ortkit import Bundle
from ortkit.runtime.pack.oci_layout import (
    FILE_PATH,
    IMAGE_MANIFEST,
    KIND,
    MODEL_ARTIFACT,
    REFERENCE,
    TITLE,
)

Json = dict[str, Any]
OLD_MANIFEST = Path(__file__).parent / "runtime" / "old_manifests" / "embedder-6.json"
GRAPH = b"not a graph, which packing does not need" * 20
TOKENIZER = b'{"version": "1.0"}'
NAME = "tiny"


def bundle_files(graph: bytes = GRAPH, tokenizer: bytes = TOKENIZER) -> dict[str, bytes]:
    """The files of a bundle whose graph cannot be run; nothing but its manifest is true."""
    files = {"model.onnx": graph, "tokenizer.json": tokenizer}
    manifest = json.loads(OLD_MANIFEST.read_text("utf-8"))
    manifest["files"] = {name: {"size": len(content), "sha256": sha256(content)} for name, content in files.items()}
    manifest["embedder"]["dense"] = []
    manifest["certificate"]["golden"] = []
    return files | {"manifest.json": json.dumps(manifest).encode()}


def write_bundle(folder: Path, files: Mapping[str, bytes] | None = None) -> Bundle:
    folder.mkdir(parents=True)
    for name, content in (bundle_files() if files is None else files).items():
        (folder / name).write_bytes(content)
    return Bundle.open(folder)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def unchanged(_value: Any) -> None:
    """Change nothing."""


def layout_of(
    files: Mapping[str, bytes] | None = None,
    *,
    layers: Callable[[list[Json]], object] = unchanged,
    manifest: Callable[[Json], object] = unchanged,
    index: Callable[[Json], object] = unchanged,
    config: bytes = b"{}",
    name: str = NAME,
) -> dict[str, bytes]:
    """The files of a layout with one bundle; the functions change its JSON before the digests are made."""
    blobs: dict[str, bytes] = {}

    def add(content: bytes) -> Json:
        blobs[f"blobs/sha256/{sha256(content)}"] = content
        return {"digest": f"sha256:{sha256(content)}", "size": len(content)}

    descriptors = [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            **add(content),
            "annotations": {FILE_PATH: path, TITLE: path},
        }
        for path, content in (bundle_files() if files is None else files).items()
    ]
    layers(descriptors)
    described = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": MODEL_ARTIFACT,
        "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", **add(config)},
        "layers": descriptors,
        "annotations": {KIND: "bundle", TITLE: name},
    }
    manifest(described)
    entry = {"mediaType": IMAGE_MANIFEST, **add(json.dumps(described).encode()), "annotations": {REFERENCE: name}}
    listed = {"schemaVersion": 2, "manifests": [entry]}
    index(listed)
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(listed).encode(),
        **blobs,
    }


def member(name: str, content: bytes = b"", **settings: Any) -> tuple[tarfile.TarInfo, bytes]:
    """An entry of a tar, with any attributes of `tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in settings.items():
        setattr(info, key, value)
    return info, content


def tar_of(
    files: Mapping[str, bytes],
    *,
    before: Iterable[tuple[tarfile.TarInfo, bytes]] = (),
    after: Iterable[tuple[tarfile.TarInfo, bytes]] = (),
    form: int = tarfile.USTAR_FORMAT,
) -> bytes:
    """A tar of these files, by the standard library, with more entries before and after them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, content in (*before, *(member(name, content) for name, content in files.items()), *after):
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> contents of the files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
