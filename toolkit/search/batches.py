"""Read what is new in a folder, in batches of chunks, one batch ahead of the one that is being embedded."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ...runtime.errors import MissingPartError, OrtkitError
from ...runtime.file_hash import hash_of
from .chunks import Chunk, Chunker
from .documents.document import UnreadableFileError
from .documents.reading import read_document
from .folder import FoundFile, SkippedFile
from .storage.store import Stamp, StoredFile, text_hash
from .storage.workspace import PendingChunk, PendingFile

_BATCH_CHUNKS = 2048
"""Chunks of many files that are embedded together, then committed."""
_FIRST_CHUNKS = 256
"""Chunks of the first batch, which is read while none is embedded; each has up to twice as many as the one before."""
_BATCH_CHARACTERS = 1 << 22
"""Characters at which a batch ends early."""
_CERTAIN_NS = 2_000_000_000
"""A file whose time of change is less before it was hashed may have changed since: FAT's times have 2 seconds."""


@dataclass
class Batch:
    """Chunks to embed, and the files that end with them."""

    most: int
    """Chunks at which it is to be embedded."""
    chunks: list[PendingChunk] = field(default_factory=list)
    finished: list[PendingFile] = field(default_factory=list)
    """Files of which all chunks are in this batch or in those before."""
    characters: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is to be embedded before more is read."""
        return len(self.chunks) >= self.most or self.characters >= _BATCH_CHARACTERS


class BatchReader:
    """Reads the files that are not known as they are, and collects their chunks.

    Results other than the batches are complete once all batches are read.
    """

    def __init__(self, chunker: Chunker, known: Mapping[str, StoredFile], advanced: Callable[[], None]) -> None:
        """`advanced` is called as files and chunks are read, in the thread that reads."""
        self._chunker, self._known, self._advanced = chunker, known, advanced
        self._batch = Batch(min(_FIRST_CHUNKS, _BATCH_CHUNKS))
        self._stopped = threading.Event()
        self.files = 0
        """Files looked at."""
        self.chunks = 0
        self.names: set[str] = set()
        """Files that stay in the index."""
        self.skipped: list[SkippedFile] = []
        self.partly_read: list[SkippedFile] = []
        self.stamps: list[tuple[int, Stamp]] = []
        """Files whose content is as it was, by their number, with the times that they have now."""

    def batches(self, found: Sequence[FoundFile | SkippedFile]) -> Generator[Batch]:
        """The batches, each read by another thread while the caller embeds the one before.

        Reading takes an eighth of the time that embedding takes, on one core: the others would wait for it.
        """
        batches = self._read(found)
        with ThreadPoolExecutor(1, "ortkit-read") as thread:
            following = thread.submit(next, batches, None)
            try:
                while (batch := following.result()) is not None:
                    following = thread.submit(next, batches, None)
                    yield batch
            finally:
                # After an interruption, or an error of the embedder: the thread ends at the next chunk.
                self._stopped.set()

    def _read(self, found: Sequence[FoundFile | SkippedFile]) -> Iterator[Batch]:
        for file in found:
            if self._stopped.is_set():
                return
            if isinstance(file, SkippedFile):
                self.skipped.append(file)
            else:
                yield from self._look_at(file)
            self.files += 1
            self._advanced()
        yield self._taken()

    def _taken(self) -> Batch:
        self._advanced()
        batch, self._batch = self._batch, Batch(min(2 * self._batch.most, _BATCH_CHUNKS))
        return batch

    def _look_at(self, file: FoundFile) -> Iterator[Batch]:
        self.names.add(file.name)
        known = self._known.get(file.name)
        if known is not None and is_unchanged(file, known.stamp):
            return
        try:
            stamp = stamp_of(file)
        except OSError as error:
            self._skip(file, error.strerror or str(error))
            return
        if known is not None and known.stamp.sha256 == stamp.sha256:
            self.stamps.append((known.id, stamp))
            return
        yield from self._read_file(file, stamp)

    def _read_file(self, file: FoundFile, stamp: Stamp) -> Iterator[Batch]:
        """Collect the chunks of a file. What was indexed of it stays where it cannot be read for now."""
        pending = PendingFile(file.name, stamp)
        try:
            document = read_document(file)
            for chunk in self._chunker.chunks(document):
                self._add(pending, chunk)
                if self._batch.is_full:
                    yield self._taken()
                if self._stopped.is_set():
                    return
            _check_unchanged(file, stamp)
        except UnreadableFileError as error:
            self._drop(pending)
            self._skip(file, _reason(error))
            # What it was is gone; what it is now has no text.
            self.names.discard(file.name)
        except MissingPartError as error:
            self._drop(pending)
            self._skip(file, _reason(error))
        except OSError as error:
            if isinstance(error, OrtkitError):
                raise
            self._drop(pending)
            self._skip(file, error.strerror or str(error))
        else:
            self._batch.finished.append(pending)
            left_out = document.report.skipped_records
            if left_out:
                noun = "record" if left_out == 1 else "records"
                reason = f"{left_out} {noun} left out: {document.report.first_fault}"
                self.partly_read.append(SkippedFile(file.name, reason))

    def _skip(self, file: FoundFile, reason: str) -> None:
        self.skipped.append(SkippedFile(file.name, reason))

    def _add(self, pending: PendingFile, chunk: Chunk) -> None:
        text = chunk.embedded_text
        self._batch.chunks.append(PendingChunk(pending, pending.chunks, chunk, text_hash(text)))
        self._batch.characters += len(text)
        pending.chunks += 1
        self.chunks += 1

    def _drop(self, pending: PendingFile) -> None:
        """Forget a file's chunks. Those of batches before do not count, and go when the run is finished."""
        self._batch.chunks = [one for one in self._batch.chunks if one.file is not pending]


def stamp_of(found: FoundFile) -> Stamp:
    """Hash a file; raises OSError, also for what is not a regular file any more."""
    read_ns = time.time_ns()
    descriptor = os.open(found.path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "is not a regular file")
        return Stamp(status.st_size, status.st_mtime_ns, read_ns, hash_of(file))


def _check_unchanged(file: FoundFile, stamp: Stamp) -> None:
    """Raise OSError where a file is not what was hashed."""
    status = file.path.stat()
    if (status.st_size, status.st_mtime_ns) != (stamp.size, stamp.modified_ns):
        raise OSError(0, "changed while it was read; the next run reads it again")


def is_unchanged(found: FoundFile, known: Stamp) -> bool:
    """Whether size and time say that a file is as it was, and surely so."""
    same = (found.size, found.modified_ns) == (known.size, known.modified_ns)
    return same and known.modified_ns + _CERTAIN_NS < known.read_ns


def _reason(error: OrtkitError) -> str:
    return error.message if error.hint is None else f"{error.message}; {error.hint}"
