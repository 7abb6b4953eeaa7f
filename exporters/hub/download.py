"""Files of a repository, into the cache that all Hugging Face tools share, checked by hash.

The cache has huggingface_hub's layout: `blobs/HASH`, and in `snapshots/COMMIT` links to them by name. A blob's name is
the hash of its content and a commit is a hash too, so nothing that a Hub says decides where a file is written.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import constants

from ...runtime.errors import CheckpointError, InputError, NetworkError, OrtkitError, OutputError
from ...runtime.output_path import try_lock
from ...runtime.sizes import megabytes
from ..checkpoint.files import LARGE, check_file, size_limit
from ..checkpoint.hashed_file import FileState, HashedFile, changed_meanwhile, hash_file
from ..progress import DownloadCounter, Progress
from .access import Access, HubFile
from .errors import ASKING_FAILED, HubAnswerError, SlowHubError, host, network_failure
from .names import hash_in, is_file_name, is_hash
from .settings import endpoint
from .transport import Answer, opened, refuse

_ATTEMPTS = 5
"""How often an interrupted download resumes by itself, as long as each time something comes."""
_PARTIAL = ".ortkit.incomplete"


@dataclass(frozen=True)
class Downloaded:
    """Files of a commit in the Hub's cache."""

    folder: Path
    hashed: dict[str, HashedFile]
    """By their paths in the repository."""


def download(
    access: Access,
    files: Sequence[HubFile],
    progress: Progress | None = None,
    *,
    known: Mapping[str, HashedFile] | None = None,
) -> Downloaded:
    """Bring files of the commit into the Hub's cache, and hash each of them once.

    Files in the cache are checked and not downloaded again, and those that are `known` not checked again; a download
    that was interrupted resumes. Raises OutputError when the disk is too small, NetworkError when the connection fails,
    CheckpointError for content that does not have the Hub's hash.
    """
    hashed = dict(known or {})
    missing = [file for file in files if cached(access, file.name) is None]
    need_space(sum(file.size or 0 for file in missing))
    counter = DownloadCounter(progress, sum(file.size or 0 for file in files))
    try:
        for file in files:
            earlier = hashed.get(file.name)
            if earlier is None or not earlier.is_current(_snapshot_of(access) / file.name):
                hashed[file.name] = fetch(access, file, counter)
            counter.complete(file.size or 0)
    except OSError as error:
        if isinstance(error, OrtkitError):
            raise
        raise OutputError(
            f"the cache `{cache()}` cannot be written: {error.strerror}",
            hint="set HF_HOME to a folder that you may write to",
        ) from error
    counter.finish()
    return Downloaded(_snapshot_of(access), hashed)


def remember(access: Access) -> None:
    """Note in the cache which commit a revision is, as huggingface_hub does, so that it is found offline by name.

    Not before all is there that an export reads: until then an older commit may be the one that is complete.
    """
    if access.revision != access.commit and is_file_name(access.revision):
        path = _folder_of(access.repo) / "refs" / access.revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(access.commit, encoding="utf-8")


def _folder_of(repo: str) -> Path:
    """A repository's folder in the cache."""
    return cache() / f"models--{repo.replace('/', '--')}"


def _snapshot_of(access: Access) -> Path:
    return _folder_of(access.repo) / "snapshots" / access.commit


def fetch(access: Access, file: HubFile, counter: DownloadCounter) -> HashedFile:
    """Bring one file into the cache, checked by its hash."""
    found = cached(access, file.name)
    if found is not None and file.hash is not None:
        return check(found, file.name, file.hash)
    blobs = _folder_of(access.repo) / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    attempt = 0
    while True:
        attempt += 1
        before = counter.current
        try:
            blob, hashed = _fetch_blob(access, file, blobs, counter)
        except ASKING_FAILED as error:
            if isinstance(error, OrtkitError) or (isinstance(error, OSError) and error.errno in _DISK):
                raise
            if counter.current > before and attempt < _ATTEMPTS and not isinstance(error, SlowHubError):
                continue
            raise failure(error, file) from error
        path = _snapshot_of(access) / file.name
        link(blob, path)
        # Where there are no links, the snapshot has a copy of the file that was hashed.
        return hashed if hashed.is_current(path) else check(path, file.name, blob.name)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EIO)
"""What goes wrong with files, and not with connections."""


def _fetch_blob(access: Access, file: HubFile, blobs: Path, counter: DownloadCounter) -> tuple[Path, HashedFile]:
    """Download the content of a file to where its hash says; raises CheckpointError for any other content."""
    url = f"{endpoint()}/{access.repo}/resolve/{access.commit}/{quote(file.name)}"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if file.hash is None:
        with opened(url, access.token, timeout=timeout) as answer:
            refuse(answer.head)
            blob = blobs / _hash_of(answer, file)
            with _partial_file(blob) as target:
                if not blob.is_file():
                    target.truncate(0)
                    write(answer, file, target, counter)
                return finish(target, blob, file)
    blob = blobs / file.hash
    with _partial_file(blob) as target:
        # Another process may have been faster while this one waited, or another tool.
        if blob.is_file():
            return finish(target, blob, file)
        start = os.fstat(target.fileno()).st_size
        if start == file.size:
            return finish(target, blob, file)
        if file.size is not None and start > file.size:
            target.truncate(0)
            start = 0
        wanted = {"Range": f"bytes={start}-"} if start else {}
        with opened(url, access.token, timeout=timeout, headers=wanted) as answer:
            begins = re.match("bytes ([0-9]{1,18})-", answer.head.headers.get("content-range", ""))
            goes_on = answer.head.status == 206 and begins is not None and int(begins[1]) == start
            if start and not goes_on:
                target.truncate(0)
            refuse(answer.head)
            write(answer, file, target, counter)
        return finish(target, blob, file)


def _hash_of(answer: Answer, file: HubFile) -> str:
    """The hash of a file as the Hub's headers give it; raises NetworkError where they give none."""
    found = hash_in(answer.own.get("x-linked-etag") or answer.own.get("etag"))
    if found is None:
        raise NetworkError(
            f"`{host()}` does not give the hash of `{file.name}`, so what it sends cannot be checked",
            hint="what stands there does not speak the Hub's protocol whole; check HF_ENDPOINT",
        )
    return found


@contextmanager
def _partial_file(blob: Path) -> Iterator[FileIO]:
    """The beginning of a file that is not complete, for one process at a time; writing resumes at its end."""
    path = _partial_of(blob)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        with FileIO(descriptor, "r+") as file:
            # The file itself is locked, not one beside it as by `filelock`: that would stay in the Hub's cache.
            try_lock(file, wait=True)
            # Whoever had the lock may have made a blob of that file, or removed it.
            try:
                if not os.path.samestat(os.fstat(descriptor), path.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield file
            except CheckpointError:
                path.unlink(missing_ok=True)
                raise
            return


def _partial_of(blob: Path) -> Path:
    return blob.with_name(blob.name + _PARTIAL)


def write(answer: Answer, file: HubFile, target: FileIO, counter: DownloadCounter) -> None:
    """Append what comes, and no more than the Hub has announced."""
    limit = _announced_size(answer, file)
    done = os.fstat(target.fileno()).st_size
    counter.current = done
    for block in answer.blocks:
        done += len(block)
        if done > limit:
            raise CheckpointError(
                f"`{file.name}` from `{host()}` is larger than the {limit} bytes that were announced",
                hint="something between here and the Hub changes files; check HF_ENDPOINT",
            )
        rest = memoryview(block)
        while rest:
            rest = rest[target.write(rest) :]
        counter.at(done)
    if file.size is not None and done < file.size:
        raise _broken_off(file)


def _announced_size(answer: Answer, file: HubFile) -> int:
    """Bytes that a file may have: what the API says, or else the answer itself, as far as the disk has room for it."""
    if file.size is not None:
        return file.size
    length = answer.head.headers.get("content-length", "")
    if re.fullmatch("[0-9]{1,18}", length) is None:
        return min(size_limit(file.name), LARGE)
    need_space(min(int(length), size_limit(file.name)))
    return min(int(length), size_limit(file.name))


def finish(target: FileIO, blob: Path, file: HubFile) -> tuple[Path, HashedFile]:
    """Let a complete file be the blob of its hash; raises CheckpointError where its content has another."""
    partial = _partial_of(blob)
    if blob.is_file():
        partial.unlink(missing_ok=True)
        return blob, check(blob, file.name, blob.name)
    hashed = check(partial, file.name, blob.name)
    os.fsync(target.fileno())
    os.replace(partial, blob)
    renamed = FileState.of_open(target.fileno())
    if not hashed.state.same_content(renamed):
        blob.unlink(missing_ok=True)
        raise changed_meanwhile(blob)
    return blob, dataclasses.replace(hashed, state=renamed)


def link(blob: Path, path: Path) -> None:
    """Let a snapshot name a blob, by a link as huggingface_hub makes it, or a copy where there are no links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(blob, path)


def failure(error: Exception, file: HubFile) -> Exception:
    if isinstance(error, HubAnswerError) and network_failure(error) is None:
        return NetworkError(
            f"`{host()}` answers {error.status} for `{file.name}`",
            hint="run the command again: the download resumes",
        )
    return network_failure(error) or _broken_off(file)


def _broken_off(file: HubFile) -> NetworkError:
    return NetworkError(
        f"the download of `{file.name}` from `{host()}` broke", hint="run the command again: the download resumes"
    )


def check(path: Path, name: str, expected: str) -> HashedFile:
    """Compare a file with the hash that the Hub gave; a file that differs is removed from the cache."""
    by_git = len(expected) != 64
    hashed = hash_file(path, git=by_git)
    found = (hashed.git_sha1 if by_git else hashed.sha256) or ""
    if found != expected:
        if path.is_symlink():
            path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"`{name}` from `{host()}` is not what the Hub promised: its hash is {found[:16]}... "
            f"instead of {expected[:16]}...",
            hint="run the command again; if it stays so, something between here and the Hub changes files",
        )
    return hashed


def cached_commit(repo: str, revision: str) -> Path | None:
    """The folder in the cache that holds a revision of a repository, None when there is none."""
    commit = revision
    if not is_hash(revision):
        path = _folder_of(repo) / "refs" / revision
        if not is_file_name(revision) or not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            commit = file.read(100).strip()
    folder = _folder_of(repo) / "snapshots" / commit
    return folder if is_hash(commit) and (folder / "config.json").is_file() else None


def cached(access: Access, name: str) -> Path | None:
    """A file of the commit in the cache; None when it is not there, or a link out of the cache, which is replaced."""
    path = _snapshot_of(access) / name
    try:
        check_file(_snapshot_of(access), name)
    except CheckpointError:
        return None
    return path if path.is_file() else None


def cache() -> Path:
    """The folder that huggingface_hub keeps its downloads in; raises InputError for a user without a home."""
    if constants.HF_HUB_CACHE.startswith("~"):
        raise InputError(
            f"this user, number {os.getuid()}, has no home folder, so there is no place to download to",
            hint="set HF_HOME to a folder for downloads, or HOME",
        )
    return Path(constants.HF_HUB_CACHE)


def need_space(size: int) -> None:
    """Raise OutputError when the disk of the cache has not that many bytes free."""
    place = cache()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise OutputError(
            f"the download needs {megabytes(size)} in `{cache()}`, and {megabytes(free)} are free",
            hint="free some space, or set HF_HOME to a folder on a larger disk",
        )
