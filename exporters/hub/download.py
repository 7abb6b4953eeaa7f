"""Files of a repository, into the cache that all Hugging Face tools share, checked by hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from exporters.hub.access import Access, HubFile
from exporters.hub.failures import TRANSPORT_ERROR, host, network_failure
from runtime.bundle import sha256_of
from runtime.errors import CheckpointError, NetworkError, OutputError

WATCH_SECONDS = 0.2

Progress = Callable[[int, int], None]
"""Is told bytes done and bytes in all."""


def download(access: Access, files: Sequence[HubFile], progress: Progress | None = None) -> Path:
    """Bring files of the commit into the Hub's cache and return the folder of that commit.

    What is there is not fetched again, and what was broken off goes on where it was. Raises OutputError when the disk
    is too small, NetworkError when the connection fails, CheckpointError when what came is not what the Hub promised.
    """
    missing = [file for file in files if cached(access, file.name) is None]
    need_space(sum(file.size for file in missing))
    with no_bars(), watched(access, files, progress):
        for file in files:
            fetch(access, file)
    first = cached(access, files[0].name)
    if first is None:
        raise CheckpointError(f"`{files[0].name}` is not in the cache although it was downloaded")
    return first.parents[len(Path(files[0].name).parts) - 1]


def remember(access: Access) -> None:
    """Note in the cache which commit a revision is, as huggingface_hub does, so that it is found offline by name.

    Not before all is there that an export reads: until then an older commit may be the one that is complete.
    """
    name = Path(access.revision)
    if access.revision != access.commit and not name.is_absolute() and ".." not in name.parts:
        path = folder_of(access) / "refs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(access.commit, encoding="utf-8")


def folder_of(access: Access) -> Path:
    """The repository's folder in the cache."""
    return cache() / f"models--{access.repo.replace('/', '--')}"


def fetch(access: Access, file: HubFile) -> None:
    try:
        path = hf_hub_download(
            access.repo,
            file.name,
            revision=access.commit,
            token=access.token.value if access.token is not None else False,
        )
    # OSError: requests' exceptions are some, and so are those that huggingface_hub raises for a wrong length.
    except (OSError, HfHubHTTPError, TRANSPORT_ERROR, EntryNotFoundError) as error:
        raise failure(error, file) from error
    check(Path(path), file)


def failure(error: Exception, file: HubFile) -> Exception:
    broken = network_failure(error)
    if broken is not None:
        return broken
    if isinstance(error, OSError) and error.errno is not None:
        return OutputError(f"`{file.name}` cannot be written to the cache `{cache()}`: {error.strerror}")
    return NetworkError(
        f"the download of `{file.name}` from `{host()}` broke", hint="run the command again, it goes on where it was"
    )


def check(path: Path, file: HubFile) -> None:
    """Compare a file with the hash that the Hub gave; a file that differs is removed from the cache."""
    if file.sha256 is not None:
        expected, found = file.sha256, sha256_of(path)
    elif file.blob is not None:
        expected, found = file.blob, git_hash_of(path)
    else:
        return
    if found != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"`{file.name}` from `{host()}` is not what the Hub promised: its hash is {found[:16]}... "
            f"instead of {expected[:16]}...",
            hint="run the command again; if it stays so, something between here and the Hub changes files",
        )


def git_hash_of(path: Path) -> str:
    """Git's name for a file's content: sha1 over a header with its length, and the content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def cached_commit(repo: str, revision: str) -> Path | None:
    """The folder in the cache that holds a revision of a repository, None when there is none."""
    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def cached(access: Access, name: str) -> Path | None:
    found = try_to_load_from_cache(access.repo, name, revision=access.commit)
    return Path(found) if isinstance(found, str) else None


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def need_space(size: int) -> None:
    """Raise OutputError when the disk of the cache has not that many bytes free."""
    place = cache()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise OutputError(
            f"the download needs {size / 1e6:,.1f} MB in `{cache()}`, and {free / 1e6:,.1f} MB are free",
            hint="free some space, or set HF_HOME to a folder on a larger disk",
        )


@contextmanager
def watched(access: Access, files: Sequence[HubFile], progress: Progress | None) -> Iterator[None]:
    """Tell `progress` how far the download is, by what lies in the cache: no version's own bars are needed for that."""
    if progress is None:
        yield
        return
    total = sum(file.size for file in files)
    blobs = folder_of(access) / "blobs"
    stop = threading.Event()

    def tell() -> None:
        done = sum(file.size for file in files if cached(access, file.name) is not None)
        partial = sum(size_of(path) for path in blobs.glob("*.incomplete")) if blobs.exists() else 0
        progress(min(done + partial, total), total)

    def watch() -> None:
        while not stop.wait(WATCH_SECONDS):
            tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    tell()


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep huggingface_hub's own bars, one for each file, off the terminal."""
    before = are_progress_bars_disabled()
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        disable_progress_bars()
    try:
        yield
    finally:
        if not before and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
            enable_progress_bars()
