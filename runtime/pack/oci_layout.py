"""OCI image layouts: read, check and extract what `ortkit pack` makes; `layout_writer.py` writes them.

A pack is an OCI image layout with the media types of CNCF ModelPack and one raw layer for each file, so a layer's
digest is the sha256 that the bundle's manifest has. It is one uncompressed tar, a folder, or a tar that begins at an
offset of a larger file. Registries and skopeo take it as it is (image-spec, image-layout.md; modelpack/model-spec).

A layout comes from anywhere: all sizes, counts, names and nesting are bounded before anything is allocated or written,
and whatever `ortkit pack` would not write raises BundleError. Standard library only: the installer of a kit runs this.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from ..bundle.file_names import LONGEST_PART, folded, name_problem, path_problem
from ..errors import BundleError, NotFoundError
from ..output_path import cannot_write, flush_folder
from ..strict_json import RepeatedKeyError, unique_keys
from ..trust.ownership import is_open_to_others
from .blob_store import (
    BLOBS,
    INDEX,
    MARKER,
    MOST_FILES,
    NEW_COPY,
    FolderStore,
    Progress,
    Range,
    Store,
    TarStore,
    copy_range,
    new_file,
    not_found,
    opened_file,
)

IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
"""ModelPack: the type of an artifact that is a model."""
FILE_PATH = "org.cncf.model.filepath"
"""ModelPack's annotation of a layer: the path of its file in the model's folder."""
TITLE = "org.opencontainers.image.title"
"""The name of an artifact, or of a layer's file; `oras pull` writes files under these names."""
REFERENCE = "org.opencontainers.image.ref.name"
"""The tag by which skopeo and oras select an artifact of a layout."""
KIND = "ortkit.kind"
"""Annotation of an artifact: `bundle`, `wheels` or `sbom`."""
BUNDLE = "bundle"
LARGEST_JSON = 1 << 21
"""Bytes of the index, the manifests and the configurations of a layout together. Parsed they can take 60 times as much;
a bundle of 10 files has 5 KB. Registries take manifests up to 4 MiB."""
_LARGEST_PACK = 1 << 38
"""Bytes of one file, and of all files of an artifact."""
_MOST_ARTIFACTS = 256
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
"""How OCI spells a sha256."""
_ARCHIVES = (".tar", ".tar+gzip", ".tar+zstd")
"""Ends of media types: ModelPack has layers of several files too."""


@dataclass(frozen=True)
class Blob:
    """A file of a layout, which is named by its sha256."""

    digest: str
    """`sha256:` and 64 hexadecimal digits."""
    size: int
    media_type: str

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix("sha256:")

    @property
    def file(self) -> str:
        """Its path in the layout."""
        return f"{BLOBS}/{self.sha256}"


@dataclass(frozen=True)
class Artifact:
    """A bundle, a wheelhouse or something else that a layout carries."""

    name: str
    """A file name: that of the bundle's folder."""
    kind: str
    """`bundle`, `wheels`, `sbom`; `other` for what has another tool's type."""
    manifest: Blob
    config: Blob
    layers: dict[str, Blob]
    """Relative path -> blob; the blobs of a pack that carries only what is new may be missing."""
    annotations: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(blob.size for blob in self.layers.values())


class OciLayout:
    """An opened layout; a context manager that closes it. Opening reads and checks all but the layers' contents."""

    def __init__(self, path: Path, store: Store) -> None:
        """Use `OciLayout.open`."""
        self.path = path
        self._store = store
        index = self._content(INDEX, LARGEST_JSON)
        self.index_sha256 = hashlib.sha256(index).hexdigest()
        self.artifacts: tuple[Artifact, ...] = tuple(self._read_index(index))

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, offset: int = 0) -> OciLayout:
        """Open a tar, a folder, or the tar at an offset of a file up to its end.

        Raises NotFoundError, and BundleError for anything that `ortkit pack` would not write.
        """
        where = Path(path)
        try:
            store: Store = FolderStore(where) if where.is_dir() else TarStore(where, offset)
        except FileNotFoundError as error:
            raise not_found(where, "pack") from error
        except OSError as error:
            raise BundleError(f"`{where}` cannot be read: {error.strerror or error}") from error
        try:
            return cls(where, store)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> OciLayout:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def artifact(self, name: str) -> Artifact:
        """The artifact of this name; raises NotFoundError that lists the names."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        names = ", ".join(f"`{artifact.name}`" for artifact in self.artifacts) or "nothing"
        raise NotFoundError(f"`{self.path}` does not contain `{name}`; it contains {names}")

    def files(self) -> dict[str, str]:
        """Relative path -> sha256 of the files of the layout that are there: what a signature of a pack covers.

        The names of blobs are their sha256; their contents are checked while they are extracted, or by `check`.
        """
        blobs = {blob.digest: blob for artifact in self.artifacts for blob in _blobs_of(artifact)}
        present = {blob.file: blob.sha256 for blob in blobs.values() if self._store.size_of(blob.file) is not None}
        marker = hashlib.sha256(self._content(MARKER, LARGEST_JSON)).hexdigest()
        return dict(sorted({**present, INDEX: self.index_sha256, MARKER: marker}.items()))

    def missing(self, artifact: Artifact) -> dict[str, Blob]:
        """The layers that are not in this layout."""
        return {name: blob for name, blob in artifact.layers.items() if self._store.size_of(blob.file) is None}

    def read(self, blob: Blob, largest: int) -> bytes:
        """The verified contents of a blob; raises BundleError where it is missing, or larger than `largest` bytes."""
        if self._store.size_of(blob.file) is None:
            self._refuse(f"`{blob.file}` is missing")
        if blob.size > largest:
            self._refuse(f"`{blob.file}` has {blob.size} bytes; the limit is {largest}")
        content = self._content(blob.file, blob.size)
        if hashlib.sha256(content).hexdigest() != blob.sha256:
            self._refuse_changed(blob.file)
        return content

    def check(self, artifacts: Sequence[Artifact] | None = None, *, progress: Progress | None = None) -> None:
        """Hash the blobs that are there; raises BundleError for the first one that was changed."""
        chosen = self.artifacts if artifacts is None else artifacts
        blobs = {blob.digest: blob for artifact in chosen for blob in artifact.layers.values()}
        for blob in blobs.values():
            if self._store.size_of(blob.file) is not None:
                self._hash(blob, None, progress)

    def extract(
        self,
        artifact: Artifact,
        folder: Path,
        *,
        have: Mapping[str, Path] | None = None,
        names: Collection[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Write the files of an artifact, or those of `names`, to a new or empty folder and flush them to disk.

        `have` maps the digests of files that are on this machine to their paths: what the layout lacks is linked or
        copied from there. Contents are hashed while they are copied. Files are read-only, because a link shares them.
        Raises BundleError for a changed or missing file and OutputError where the folder cannot be written; the caller
        passes a staging folder, and renames or removes it.
        """
        chosen = {name: blob for name, blob in artifact.layers.items() if names is None or name in names}
        sources = have or {}
        lacking = [
            name for name, blob in self.missing(artifact).items() if name in chosen and blob.digest not in sources
        ]
        if lacking:
            shown = ", ".join(f"`{name}`" for name in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            raise BundleError(
                f"`{self.path}` leaves out {len(lacking)} of the files of `{artifact.name}` ({shown}), and they are "
                "not on this machine",
                hint="name the folder of the earlier bundles with `--have-from`, or use a pack of all files",
            )
        try:
            folder.mkdir(exist_ok=True)
            folders = {folder}
            for name, blob in sorted(chosen.items()):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                folders.update(folder / parent for parent in PurePosixPath(name).parents)
                if self._store.size_of(blob.file) is not None:
                    self._copy(blob, target, progress)
                else:
                    self._take(blob, sources[blob.digest], target, progress)
            for written in folders:
                flush_folder(written)
        except OSError as error:
            raise cannot_write(error, folder) from error

    def _copy(self, blob: Blob, target: Path, progress: Progress | None) -> None:
        """Copy a blob to a new file; its hash is checked."""
        with new_file(target) as out:
            self._hash(blob, out, progress)
            os.fsync(out)

    def _take(self, blob: Blob, source: Path, target: Path, progress: Progress | None) -> None:
        """Link or copy a file of this machine, and check its hash after that."""
        try:
            with opened_file(source) as file:
                found = (file.fileno(), 0, os.fstat(file.fileno()).st_size)
                if not _linked(source, target):
                    with new_file(target) as out:
                        copied = copy_range(found, source, out, progress)
                        os.fsync(out)
                else:
                    # What was linked can be another file by now.
                    with opened_file(target) as linked:
                        copied = copy_range((linked.fileno(), 0, found[2]), source, None, progress)
        except FileNotFoundError as error:
            raise BundleError(f"`{source}` is missing: it was there a moment ago") from error
        if (found[2], copied) != (blob.size, blob.sha256):
            raise BundleError(
                f"`{source}` was changed: its sha256 is {copied[:16]}..., not {blob.sha256[:16]}...",
                hint="`ortkit verify` finds the bundles that were changed; unpack a pack that has all files",
            )

    def _hash(self, blob: Blob, out: int | None, progress: Progress | None) -> None:
        """Read a blob that is there, copy it where `out` is a descriptor, and check its hash."""
        with self._opened(blob.file) as (descriptor, start, _):
            found = copy_range((descriptor, start, blob.size), self.path, out, progress)
        if found != blob.sha256:
            self._refuse_changed(blob.file)

    def _content(self, name: str, largest: int) -> bytes:
        """A small file of the layout."""
        with self._opened(name) as (descriptor, start, size):
            if size > largest:
                self._refuse(f"`{name}` has {size} bytes; the limit is {largest}")
            try:
                content = os.pread(descriptor, size, start)
            except OSError as error:
                raise BundleError(f"`{self.path}` cannot be read: {error.strerror or error}") from error
        if len(content) < size:
            self._refuse(f"`{name}` is truncated")
        return content

    @contextmanager
    def _opened(self, name: str) -> Iterator[Range]:
        """Open a file of the layout."""
        try:
            with self._store.opened(name) as found:
                yield found
        except FileNotFoundError:
            self._refuse(f"`{name}` is missing")

    def _read_index(self, content: bytes) -> Iterator[Artifact]:
        """The artifacts that the index lists."""
        marker = self._object(self._content(MARKER, LARGEST_JSON), MARKER)
        if marker.get("imageLayoutVersion") != "1.0.0":
            self._refuse(f"`{MARKER}` must state the version `1.0.0`")
        manifests = self._field(self._object(content, INDEX), "manifests", list, INDEX)
        if len(manifests) > _MOST_ARTIFACTS:
            self._refuse(f"it has {len(manifests)} artifacts; the limit is {_MOST_ARTIFACTS}")
        names: list[str] = []
        sizes: dict[str, int] = {}
        left = LARGEST_JSON - len(content)
        for place, descriptor in enumerate(manifests):
            where = f"{INDEX}: manifests[{place}]"
            blob = self._descriptor(descriptor, where)
            if blob.media_type != IMAGE_MANIFEST:
                self._refuse(f"{where} is `{blob.media_type}`; supported: `{IMAGE_MANIFEST}`")
            artifact = self._read_manifest(blob, self._annotations(descriptor, where).get(REFERENCE), left)
            left -= blob.size + artifact.config.size
            self._check_sizes(artifact, sizes)
            names.append(artifact.name)
            yield artifact
        self._check_unique(names, "artifacts")
        for name in sorted(self._store.blobs() - sizes.keys()):
            self._refuse(f"it contains `{name}`, which its index does not list")

    def _check_sizes(self, artifact: Artifact, sizes: dict[str, int]) -> None:
        """Compare the sizes that an artifact states with the files; adds file -> size to `sizes`."""
        if artifact.size > _LARGEST_PACK:
            self._refuse(f"the files of `{artifact.name}` have {artifact.size} bytes; the limit is {_LARGEST_PACK}")
        for blob in _blobs_of(artifact):
            if sizes.setdefault(blob.file, blob.size) != blob.size:
                self._refuse(f"it states two sizes for `{blob.file}`")
            if len(sizes) > MOST_FILES:
                self._refuse(f"it has more than {MOST_FILES} files")
            actual = self._store.size_of(blob.file)
            if actual not in (None, blob.size):
                self._refuse(f"`{blob.file}` has {actual} bytes instead of {blob.size}")

    def _read_manifest(self, blob: Blob, reference: str | None, largest: int) -> Artifact:
        """An artifact, whose manifest and configuration may have `largest` bytes together."""
        where = blob.file
        manifest = self._object(self.read(blob, largest), where)
        annotations = self._annotations(manifest, where)
        config = self._descriptor(self._field(manifest, "config", dict, where), f"{where}: config")
        # It is not used, but it is checked, as everything else in the layout.
        self.read(config, largest - blob.size)
        name = annotations.get(TITLE, reference)
        if name is None:
            self._refuse(f"{where} has neither the annotation `{TITLE}` nor a name in the index")
        problem = name_problem(name)
        if problem is not None:
            self._refuse(f"an artifact's name, `{name[:LONGEST_PART]}`, {problem}")
        kind = annotations.get(KIND, BUNDLE if manifest.get("artifactType") == MODEL_ARTIFACT else "other")
        layers = self._read_layers(self._field(manifest, "layers", list, where), name, where)
        return Artifact(name, kind, blob, config, layers, annotations)

    def _read_layers(self, values: list[Any], name: str, where: str) -> dict[str, Blob]:
        """Path -> blob of the layers of the artifact `name`."""
        if len(values) > MOST_FILES:
            self._refuse(f"`{name}` has {len(values)} layers; the limit is {MOST_FILES}")
        paths: list[str] = []
        blobs: list[Blob] = []
        for place, value in enumerate(values):
            here = f"{where}: layers[{place}]"
            blob = self._descriptor(value, here)
            labels = self._annotations(value, here)
            path = labels.get(FILE_PATH, labels.get(TITLE))
            if path is None:
                self._refuse(f"{here} has no annotation `{FILE_PATH}`: only layers of one file are supported")
            self._check_path(path, here)
            if blob.media_type.endswith(_ARCHIVES):
                self._refuse(f"the layer `{path}` is an archive (`{blob.media_type}`); only raw layers are supported")
            paths.append(path)
            blobs.append(blob)
        self._check_unique(paths, f"layers of `{name}`")
        layers = dict(zip(paths, blobs, strict=True))
        for path in layers:
            for parent in PurePosixPath(path).parents:
                if str(parent) in layers:
                    self._refuse(f"`{parent}` is both a file and a folder of `{name}`")
        return layers

    def _object(self, content: bytes, where: str) -> dict[str, Any]:
        """A JSON object with unique keys."""
        try:
            value = json.loads(content.decode("utf-8"), object_pairs_hook=unique_keys)
        except RepeatedKeyError as error:
            self._refuse(f"`{where}` repeats the key `{error.key}`")
        except (ValueError, RecursionError):
            self._refuse(f"`{where}` is not valid JSON")
        if not isinstance(value, dict):
            self._refuse(f"`{where}` must be a JSON object")
        return value

    def _field(self, value: dict[str, Any], name: str, kind: type, where: str) -> Any:
        found = value.get(name)
        # A boolean is an int in Python.
        if not isinstance(found, kind) or isinstance(found, bool):
            self._refuse(f"{where} has no valid `{name}`")
        return found

    def _descriptor(self, value: Any, where: str) -> Blob:
        """An OCI content descriptor."""
        if not isinstance(value, dict):
            self._refuse(f"{where} must be an object")
        digest = self._field(value, "digest", str, where)
        if DIGEST.fullmatch(digest) is None:
            self._refuse(f"{where} has no valid sha256 digest")
        size = self._field(value, "size", int, where)
        if not 0 <= size <= _LARGEST_PACK:
            self._refuse(f"{where} has {size} bytes; the limit is {_LARGEST_PACK}")
        return Blob(digest, size, self._field(value, "mediaType", str, where))

    def _annotations(self, value: dict[str, Any], where: str) -> dict[str, str]:
        found = value.get("annotations")
        if found is None:
            return {}
        if not isinstance(found, dict) or not all(isinstance(text, str) and _is_text(text) for text in found.values()):
            self._refuse(f"{where} has annotations that are not strings")
        return found

    def _check_path(self, name: str, where: str) -> None:
        """Refuse a path that is absolute, leaves its folder, is not normalized or too long."""
        problem = path_problem(name)
        if problem is not None:
            self._refuse(f"the path `{name[:LONGEST_PART]}` of {where} {problem}")

    def _check_unique(self, names: Collection[str], what: str) -> None:
        """Refuse names that are equal, or one file on systems that ignore case or Unicode normalization."""
        known: dict[str, str] = {}
        for name in names:
            key = folded(name)
            if key in known:
                self._refuse(f"the {what} `{known[key]}` and `{name}` have the same name on some systems")
            known[key] = name

    def _refuse_changed(self, name: str) -> NoReturn:
        self._refuse(f"`{name}` was changed: its sha256 is not its name", hint=NEW_COPY)

    def _refuse(self, problem: str, *, hint: str | None = None) -> NoReturn:
        raise BundleError(f"the pack `{self.path}` is not valid: {problem}", hint=hint)


def signature_beside(path: Path) -> Path:
    """The signature of a pack: `NAME.sig` beside it."""
    return path.with_name(f"{path.name}.sig")


def _linked(source: Path, target: Path) -> bool:
    """Make a hard link; False where that is not possible, or where another user could write to what it shares."""
    if source.is_symlink():
        return False
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Another file system, one without links, or a file of another user.
        return False
    if is_open_to_others(target.lstat()):
        target.unlink()
        return False
    return True


def _is_text(text: str) -> bool:
    """Whether a text is Unicode: JSON may have unpaired surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _blobs_of(artifact: Artifact) -> list[Blob]:
    return [artifact.manifest, artifact.config, *artifact.layers.values()]
