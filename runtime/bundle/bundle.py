"""A bundle: the folder that an export writes and the runtime opens.

Opening checks the manifest, that no file is missing, unlisted, a link or changed, and that no path leaves the folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..arguments import checked_path
from ..errors import BundleError, NotFoundError
from ..file_hash import sha256_of
from ..output_path import bundles_folder
from ..trust.names import LARGEST_SIGNATURE, SIGNATURE
from ..trust.policy import Policy
from .file_names import DEPTH, folded, path_problem
from .folder import MANIFEST, SBOM_FILE, BundleFolder
from .manifest import FileRecord
from .manifest_json import manifest_from_json
from .verified_files import VerifiedFiles

GRAPH = "model.onnx"
GRAPH_DATA = f"{GRAPH}.data"
"""ONNX external data: all decoders, and any model over protobuf's 2 GiB limit."""
PREFILL_GRAPH = "prefill.onnx"
"""A decoder's second graph, for prompts, where a bundle has one; its weights are in `prefill.onnx.data`."""
TOKENIZER = "tokenizer.json"
LARGEST_MANIFEST = 1 << 20
"""Bytes. Most of it is golden vectors: less than 400 KB for 4,096 dimensions."""
_LARGEST = {GRAPH: (1 << 31) - 1, PREFILL_GRAPH: (1 << 31) - 1, TOKENIZER: 1 << 26}
"""Bytes of files that a library loads into memory: protobuf's limit, and twice the largest published tokenizer."""
_BESIDE = {SIGNATURE: LARGEST_SIGNATURE, SBOM_FILE: 1 << 24}
"""Files that may lie beside those of the manifest, and the most bytes of each.

The signature is verified where the policy requires one. `oras pull` writes the SBOM of a pack; the runtime reads none.
"""
_LARGEST_BUNDLE = 1 << 38
"""Bytes of all files; hashing reads them."""
MOST_FILES = 10_000
"""A manifest of LARGEST_MANIFEST bytes cannot list more."""
_NEW_COPY = "copy the bundle again from the machine that made it, or export it again"
"""The hint for a changed file: it cannot be repaired."""


@dataclass(frozen=True)
class Bundle(BundleFolder):
    """A bundle whose manifest and files were verified; pass it to a model to verify it only once.

    >>> bundle = Bundle.open(embedder_bundle)
    >>> bundle.manifest.kind, bundle.manifest.embedder.dimension
    (<Kind.EMBEDDER: 'embedder'>, 384)
    """

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_all: bool = False,
        allow_downgrade: bool = False,
        record: bool = True,
    ) -> Bundle:
        """Open a bundle and verify all hashes, and its signature where the machine's policy requires one.

        A large file that was verified before and is unchanged since is not read again (`verified_files.py`), unless
        `read_all` or the policy says so. `allow_downgrade` accepts a release that is older than one that was trusted
        before. Without `record`, the release is not recorded as trusted; call `accept` once it is.

        Raises NotFoundError, BundleError for a missing or modified file, NotTrustedError for a bundle that the policy
        refuses, and InputError for a policy that cannot be used.
        """
        policy = Policy.current()
        bundle = cls._listed(path, policy, allow_downgrade=allow_downgrade)
        bundle.check_hashes(bundle.manifest.files, read_all=read_all or policy.always_hash)
        if record:
            policy.accept(bundle.manifest.counter, bundle.manifest.release, allow_downgrade=allow_downgrade)
        return bundle

    def accept(self, *, allow_downgrade: bool = False) -> None:
        """Record the release of a verified bundle, where the policy requires signatures; older ones are refused then.

        Raises NotTrustedError for an older one without `allow_downgrade`, and OutputError.
        """
        Policy.current().accept(self.manifest.counter, self.manifest.release, allow_downgrade=allow_downgrade)

    @classmethod
    def listed(cls, path: str | os.PathLike[str], *, allow_downgrade: bool = False) -> Bundle:
        """Open a bundle and check file names, sizes, and its signature where the policy requires one.

        Call `check_hashes` before using a file. Raises InputError for anything but a path, NotFoundError, BundleError
        where the files are not those of the manifest, and NotTrustedError for a bundle that the policy refuses.
        """
        return cls._listed(path, Policy.current(), allow_downgrade=allow_downgrade)

    @classmethod
    def _listed(cls, path: str | os.PathLike[str], policy: Policy, *, allow_downgrade: bool = False) -> Bundle:
        bundle, files = cls.unsigned(path)
        if policy.require_signature:
            policy.verify(bundle.path, files)
            policy.check_ownership(bundle.path, (*files, SIGNATURE))
            if not allow_downgrade:
                policy.releases.check(bundle.manifest.counter, bundle.manifest.release)
        return bundle

    @classmethod
    def unsigned(cls, path: str | os.PathLike[str]) -> tuple[Bundle, dict[str, str]]:
        """As `listed`, whatever the policy requires: for signing a bundle, and for verifying its signature.

        Also returns all files with their sha256 by the manifest, and that of the manifest as it was read.
        """
        folder = checked_path(path, "bundle")
        # False for a name that is too long too, where `Path.is_dir` raises OSError.
        if not os.path.isdir(folder):  # noqa: PTH112
            raise NotFoundError(f"there is no bundle at `{folder}`", hint=_hint_at_bundle(folder))
        manifest_file = folder / MANIFEST
        if not is_regular(manifest_file):
            raise BundleError(
                f"`{folder}` is not a bundle: it has no `{MANIFEST}`",
                hint=f"if it is a checkpoint, run `ortkit export {folder}`"
                if (folder / "config.json").exists()
                else None,
            )
        content = _read_manifest(manifest_file)
        manifest = manifest_from_json(_text_of(content))
        _check_names(folder, manifest.files)
        for layer in manifest.embedder.dense if manifest.embedder is not None else ():
            if layer.file not in manifest.files:
                raise BundleError(
                    f"the manifest of `{folder}` names a dense layer `{layer.file}` that is not one of its files"
                )
        if manifest.prefill is not None and PREFILL_GRAPH not in manifest.files:
            raise BundleError(
                f"the manifest of `{folder}` describes the graph `{PREFILL_GRAPH}`, which is not one of its files"
            )
        files = {name: record.sha256 for name, record in manifest.files.items()}
        return cls(folder, manifest), files | {MANIFEST: hashlib.sha256(content).hexdigest()}

    def check_hashes(self, names: Iterable[str], *, read_all: bool = True) -> None:
        """Raise BundleError for the first of these files whose sha256 is not the manifest's.

        Without `read_all`, large files that were verified before and are unchanged since are not read.
        """
        verified = None if read_all else VerifiedFiles()
        for name in names:
            expected = self.manifest.files[name].sha256
            path = self.path / name
            found = sha256_of(path) if verified is None else verified.sha256_of(path)
            if found != expected:
                raise BundleError(
                    f"`{name}` in the bundle `{self.path}` was changed: its sha256 is {found[:16]}..., "
                    f"the manifest says {expected[:16]}...",
                    hint=_NEW_COPY,
                )
        if verified is not None:
            verified.save()

    def __repr__(self) -> str:
        return f"<Bundle {str(self.path)!r}: {self.manifest.kind.value}, {self.manifest.precision.value}>"

    @property
    def size(self) -> int:
        """Bytes of all files in the manifest."""
        return sum(record.size for record in self.manifest.files.values())


def _read_manifest(path: Path) -> bytes:
    """Read a manifest, with a limit on its size."""
    try:
        # Only a regular file gets here; if it was replaced by a pipe meanwhile, do not wait for it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(LARGEST_MANIFEST + 1)
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST_MANIFEST:
        raise BundleError(f"`{path}` has more than {LARGEST_MANIFEST} bytes, the limit for a manifest")
    return content


def _text_of(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"`{MANIFEST}` is not valid UTF-8") from error


def _check_names(folder: Path, files: dict[str, FileRecord]) -> None:
    """Compare a folder with its manifest's files: names first, then sizes."""
    for name in files:
        check_path(name)
    _check_spelling(files)
    check_sizes(folder, files)
    found = set(walk(folder)) - {MANIFEST}
    for name, most in _BESIDE.items():
        if name in found and name not in files:
            _check_file_beside(folder / name, most)
            found.remove(name)
    for name in sorted(found - set(files)):
        raise BundleError(
            f"`{folder}` holds `{name}`, which its manifest does not list",
            hint=f"remove `{folder / name}` if it is yours",
        )
    for name in sorted(set(files) - found):
        raise BundleError(f"`{name}` is missing from the bundle `{folder}`", hint=_NEW_COPY)
    for name, record in files.items():
        path = folder / name
        if not is_regular(path):
            raise BundleError(f"`{name}` in the bundle `{folder}` is a link or not a regular file", hint=_NEW_COPY)
        size = path.stat().st_size
        if size != record.size:
            raise BundleError(
                f"`{name}` in the bundle `{folder}` has {size} bytes instead of {record.size}", hint=_NEW_COPY
            )


def _check_file_beside(path: Path, most: int) -> None:
    """Refuse a link, or a file of more bytes than this; nothing in it is read here."""
    if not is_regular(path):
        raise BundleError(f"`{path}` is a link or not a regular file", hint=_NEW_COPY)
    size = path.stat().st_size
    if size > most:
        raise BundleError(f"`{path}` has {size} bytes; the limit is {most}", hint=_NEW_COPY)


def check_path(name: str) -> None:
    """Refuse a path that is absolute, leaves its folder, is not normalized or too long."""
    problem = path_problem(name)
    if problem is not None:
        raise BundleError(f"the path `{name}` {problem}")


def _check_spelling(files: Iterable[str]) -> None:
    """Refuse names that are the same file on some systems, and those of files that are never listed."""
    known: dict[str, str] = {}
    for name in files:
        if name in {MANIFEST, SIGNATURE}:
            raise BundleError(f"the manifest lists `{name}`, which is not one of the files that it can list")
    for name in (*files, MANIFEST, SIGNATURE):
        other = known.setdefault(folded(name), name)
        if other != name:
            raise BundleError(f"the manifest lists `{other}` and `{name}`, which are the same file on some systems")


def check_sizes(folder: Path, files: dict[str, FileRecord]) -> None:
    """Refuse files that are too large, before any is read."""
    for name, record in files.items():
        most = _LARGEST.get(name, _LARGEST_BUNDLE)
        if not 0 <= record.size <= most:
            raise BundleError(f"`{name}` in the bundle `{folder}` has {record.size} bytes; the limit is {most}")
    total = sum(record.size for record in files.values())
    if total > _LARGEST_BUNDLE:
        raise BundleError(f"the files of `{folder}` have {total} bytes; the limit is {_LARGEST_BUNDLE}")


def walk(folder: Path) -> Iterator[str]:
    """Relative paths of all files below a folder; links are not followed.

    Raises BundleError where there are more files or nested folders than a bundle can have.
    """
    pending = [""]
    count = 0
    while pending:
        prefix = pending.pop()
        if prefix.count("/") > DEPTH:
            raise BundleError(f"the folders in `{folder}` are nested deeper than {DEPTH}")
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    count += 1
                    if count > MOST_FILES:
                        raise BundleError(f"`{folder}` is not a bundle: it contains more than {MOST_FILES} files")
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{prefix}{entry.name}/")
                    else:
                        yield f"{prefix}{entry.name}"
        except OSError as error:
            raise BundleError(f"`{folder / prefix}` cannot be read: {error.strerror or error}") from error


def _hint_at_bundle(folder: Path) -> str:
    """What to do where a folder is none."""
    if is_regular(folder):
        return f"it is a file: `ortkit unpack {folder}` writes the bundles of a pack or kit"
    named = bundles_folder() / folder.name
    if folder.name == str(folder) and is_regular(named / MANIFEST):
        return f"a bundle of this name is at `{named}`: in Python give its path"
    return "create one with `ortkit export MODEL`, which prints its folder"


def is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    # ValueError: a name with a zero byte.
    except (OSError, ValueError):
        return False
