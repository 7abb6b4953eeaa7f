"""The next generation of an index, from the first change to its publication.

What is committed survives a kill at any moment: a batch of vectors is on disk before the transaction that names its
rows, and the working copy carries the name of the next generation, which no `index.json` lists yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....runtime.errors import BundleError
from ..chunks import Chunk
from ..folder import FolderRules
from .index_file import (
    INDEX_FILE,
    LOCK_FILE,
    IndexFile,
    Origin,
    SegmentRecord,
    missing,
    remove_others,
    rows_name,
    texts_name,
    write_index_file,
)
from .store import (
    NewChunk,
    Stamp,
    StoredFile,
    WorkingStore,
    WorkState,
    check_schema,
    connect,
    read_files,
    sqlite_errors,
    value_errors,
)
from .vectors import HEADER_BYTES, INT8_ROWS, Segment, SegmentWriter, save_array, segments_to_merge, write_int8_copy

_OPTIMIZE = 0.1
"""Part of the chunks that must be new for the full-text index to be merged into one b-tree."""


@dataclass
class PendingFile:
    """A file that is being read."""

    name: str
    stamp: Stamp
    chunks: int = 0
    """Chunks so far."""
    id: int | None = None
    """Once its first chunks are committed."""


@dataclass(frozen=True)
class PendingChunk:
    file: PendingFile
    number: int
    chunk: Chunk
    hash: bytes


class Workspace:
    """What a writer makes of a published generation, or of nothing. Nothing is copied before the first change."""

    def __init__(
        self, folder: Path, origin: Origin, rules: FolderRules, published: IndexFile | None, *, restart: bool
    ) -> None:
        self.folder, self.origin, self.rules, self.published = folder, origin, rules, published
        self.generation = 1 if published is None else published.generation + 1
        self._base = None if restart else published
        self._path = folder / texts_name(self.generation)
        self._writer: SegmentWriter | None = None
        self._mapped: dict[int, Segment] = {}
        self.new_chunks = 0
        """Chunks committed by this run."""
        self.store = self._resumed(restart=restart)
        self.resumed = self.store is not None
        """Whether an interrupted run left something to resume."""
        self._clean()

    def _resumed(self, *, restart: bool) -> WorkingStore | None:
        """The copy of an interrupted run, if it was made for the same purpose."""
        if not self._path.exists():
            return None
        try:
            store = WorkingStore(self._path)
        except BundleError:
            return None
        usable = (None,) if restart else (None, self.generation, self.generation - 1)
        if store.state.origin == self.origin and store.state.base in usable and self._complete(store.state):
            return store
        store.close()
        return None

    def _complete(self, state: WorkState) -> bool:
        """Whether the vectors of a copy are on disk."""
        for record in state.segments:
            try:
                if record.number == state.growing:
                    least = HEADER_BYTES + record.rows * self.origin.bundle.dimension * 4
                    if (self.folder / record.vectors).stat().st_size < least:
                        return False
                else:
                    self._segment(record)
            except (BundleError, FileNotFoundError):
                return False
        return True

    def _clean(self) -> None:
        """Remove what neither a reader nor this run needs."""
        keep = {INDEX_FILE, LOCK_FILE, *(() if self.published is None else self.published.names)}
        if self.store is not None:
            keep |= {self._path.name, f"{self._path.name}-journal"}
            keep |= {name for record in self.store.state.segments for name in record.names}
        remove_others(self.folder, keep)

    def known_files(self) -> dict[str, StoredFile]:
        """The files whose chunks are stored."""
        if self.store is not None:
            return self.store.files()
        return {} if self._base is None else published_files(self.folder, self._base)

    def begin(self) -> WorkingStore:
        """The working copy; made at the first call."""
        if self.store is None:
            self.store = self._copy()
        return self.store

    def _copy(self) -> WorkingStore:
        if self._base is None:
            first = 1 + max((one.number for one in self.published.segments), default=0) if self.published else 1
            return WorkingStore(self._path, WorkState(self.origin, None, (), first))
        # An unfinished copy must not have the name of a working copy.
        partial = self._path.with_name(f"{self._path.name}.new")
        shutil.copyfile(self.folder / texts_name(self._base.generation), partial)
        partial.rename(self._path)
        store = WorkingStore(self._path)
        if store.state.origin != self.origin:
            # The folder moved.
            with store.transaction():
                store.set_state(replace(store.state, origin=self.origin))
        return store

    def commit(
        self,
        chunks: Sequence[PendingChunk],
        vectors: NDArray[np.float32],
        finished: Sequence[PendingFile],
    ) -> None:
        """Store chunks with their vectors, and complete files, all or nothing; raises OSError and OutputError."""
        store = self.begin()
        state = store.state
        if chunks:
            state = self._append(state, vectors)
        with store.transaction():
            for pending in (*(chunk.file for chunk in chunks), *finished):
                if pending.id is None:
                    pending.id = store.add_file(pending.name, pending.stamp)
            if chunks:
                segment = state.segments[-1]
                first = segment.rows - len(chunks)
                store.add_chunks(
                    NewChunk(_known_id(one.file), one.number, one.chunk, one.hash, segment.number, row)
                    for row, one in enumerate(chunks, first)
                )
            for pending in finished:
                store.complete(pending.name, _known_id(pending))
            store.set_state(state)
        self.new_chunks += len(chunks)

    def _append(self, state: WorkState, vectors: NDArray[np.float32]) -> WorkState:
        """Write vectors after the committed rows of the growing segment; returns the state with them."""
        if state.growing is None:
            record = SegmentRecord(state.next_segment, 0)
            state = replace(
                state,
                segments=(*state.segments, record),
                next_segment=state.next_segment + 1,
                growing=record.number,
            )
        record = state.segments[-1]
        writer = self._growing(record)
        writer.append(vectors)
        grown = replace(record, rows=writer.rows)
        return replace(state, segments=(*state.segments[:-1], grown))

    def _growing(self, record: SegmentRecord) -> SegmentWriter:
        """The file of the segment that is being written."""
        if self._writer is None:
            path = self.folder / record.vectors
            self._writer = SegmentWriter(path, self.origin.bundle.dimension, rows=record.rows)
        return self._writer

    def known_vectors(self, hashes: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The vectors of texts that were embedded before."""
        store = self.begin()
        with value_errors(self._path):
            return {known: self._vector(store.state, *place) for known, place in store.known_vectors(hashes).items()}

    def _vector(self, state: WorkState, segment: int, row: int) -> NDArray[np.float32]:
        if segment == state.growing:
            return self._growing(state.segments[-1]).read(row)
        record = {one.number: one for one in state.segments}[segment]
        return np.asarray(self._segment(record).vectors[row])

    def _segment(self, record: SegmentRecord) -> Segment:
        if record.number not in self._mapped:
            plain = replace(record, int8=False)
            self._mapped[record.number] = Segment.open(self.folder, plain, self.origin.bundle.dimension)
        return self._mapped[record.number]

    def publish(self) -> IndexFile:
        """Complete the segments, and let readers see this generation."""
        store = self.begin()
        self._finish_growing(store)
        with value_errors(self._path):
            self._merge(store)
            self._copy_as_int8(store)
            files, chunks = store.counts()
            with store.transaction():
                if self.new_chunks > _OPTIMIZE * chunks:
                    store.optimize()
                store.set_state(replace(store.state, base=self.generation))
            self._write_rows(store)
        segments = store.state.segments
        store.close()
        index = IndexFile(
            generation=self.generation,
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            origin=self.origin,
            rules=self.rules,
            files=files,
            chunks=chunks,
            segments=segments,
            sizes={},
        )
        index = dataclasses.replace(
            index, sizes={name: (self.folder / name).stat().st_size for name in sorted(index.names)}
        )
        write_index_file(self.folder, index)
        remove_others(self.folder, index.names)
        return index

    def _finish_growing(self, store: WorkingStore) -> None:
        state = store.state
        if state.growing is None:
            return
        self._growing(state.segments[-1]).finish()
        self._writer = None
        with store.transaction():
            store.set_state(replace(state, growing=None))

    def _merge(self, store: WorkingStore) -> None:
        """Rewrite segments without the rows of removed chunks."""
        state, live = store.state, store.live_rows()
        used = [record for record in state.segments if live.get(record.number)]
        merged = segments_to_merge([live[one.number] for one in used], [one.rows for one in used])
        if not merged:
            if len(used) < len(state.segments):
                with store.transaction():
                    store.set_state(replace(state, segments=tuple(used)))
            return
        old = [record for place, record in enumerate(used) if place in merged]
        rows = store.rows_of(record.number for record in old)
        made = SegmentRecord(state.next_segment, len(rows))
        writer = SegmentWriter(self.folder / made.vectors, self.origin.bundle.dimension)
        with contextlib.closing(writer):
            for record in old:
                own = rows[rows[:, 1] == record.number, 2]
                for start in range(0, len(own), 8192):
                    writer.append(self._segment(record).vectors[own[start : start + 8192]])
            writer.finish()
        kept = [record for place, record in enumerate(used) if place not in merged]
        with store.transaction():
            store.move_rows((made.number, row, int(chunk)) for row, chunk in enumerate(rows[:, 0]))
            store.set_state(replace(state, segments=(*kept, made), next_segment=made.number + 1))

    def _copy_as_int8(self, store: WorkingStore) -> None:
        records = tuple(
            record
            if record.int8 or record.rows < INT8_ROWS
            else write_int8_copy(self.folder, record, self.origin.bundle.dimension)
            for record in store.state.segments
        )
        with store.transaction():
            store.set_state(replace(store.state, segments=records))

    def _write_rows(self, store: WorkingStore) -> None:
        """Write which chunk and which file each row of the vectors belongs to: int64 (2, rows), 0 for neither."""
        segments = store.state.segments
        found = np.zeros((2, sum(record.rows for record in segments)), np.int64)
        start = 0
        for record in segments:
            rows = store.rows_of([record.number])
            found[:, start + rows[:, 2]] = rows[:, [0, 3]].T
            start += record.rows
        save_array(self.folder / rows_name(self.generation), found)

    def discard(self) -> None:
        """Remove the working copy: nothing changed."""
        self.close()
        self.store = None
        self._clean()

    def close(self) -> None:
        """Release the files; what is committed stays for the next run."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self.store is not None:
            self.store.close()
        self._mapped.clear()


def _known_id(pending: PendingFile) -> int:
    if pending.id is None:
        raise ValueError(f"the file {pending.name!r} was not added")
    return pending.id


def published_files(folder: Path, index: IndexFile) -> dict[str, StoredFile]:
    """The files of a published generation; raises BundleError where it is damaged."""
    path = folder / texts_name(index.generation)
    try:
        with sqlite_errors(path), value_errors(path), contextlib.closing(connect(path, read_only=True)) as connection:
            check_schema(connection)
            return read_files(connection)
    except FileNotFoundError as error:
        raise missing(folder, error) from error
