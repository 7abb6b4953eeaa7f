"""One generation of an index, open for reading: mapped vectors, and connections to its texts."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue

import numpy as np
from numpy.typing import NDArray

from ....runtime.errors import BundleError
from ....runtime.session.cores import find_cores
from ..chunks import Chunk
from ..globs import Globs
from . import full_text
from .index_file import BUILD_AGAIN, IndexFile, missing, read_index_file, rows_name, texts_name
from .open_files import OpenFiles
from .store import check_schema, chunk_of, connect, file_name, in_parts, read_names, sqlite_errors, value_errors
from .vectors import Segment, Vectors, mapped

_ATTEMPTS = 20
"""How often a reader starts again because a writer published meanwhile and removed the older files."""
_MOST_CONNECTIONS = 8
_CACHED_FILTERS = 16


@dataclass(frozen=True)
class Located:
    """Where a chunk is: its vector, and its place in the order of files, which breaks ties."""

    chunk: int
    file: str
    number: int
    row: int
    """Numbered through all segments."""

    @property
    def order(self) -> tuple[str, int]:
        return self.file, self.number


@dataclass(frozen=True)
class Filter:
    """The files to which a search is limited."""

    allowed: NDArray[np.bool_]
    """By id."""
    ids: str
    """JSON array of the ids."""

    def __bool__(self) -> bool:
        return bool(self.allowed.any())


class Snapshot:
    """An open generation. Files that a writer removes meanwhile stay readable. Thread-safe.

    It is closed once it is retired and no search uses it.
    """

    def __init__(self, folder: Path, index: IndexFile) -> None:
        """Open the files; raises FileNotFoundError where one is missing, and BundleError for a damaged one."""
        self.folder, self.index = folder, index
        self._files = OpenFiles(folder, index)
        segments = [Segment.open(folder, record, index.origin.bundle.dimension) for record in index.segments]
        rows = mapped(folder / rows_name(index.generation), "<i8", (2, index.rows))
        self.vectors = Vectors(segments, *rows)
        self._starts = {one.record.number: start for one, start in zip(segments, self.vectors.starts, strict=False)}
        self._texts = folder / texts_name(index.generation)
        self._filters: OrderedDict[tuple[str, ...], Filter] = OrderedDict()
        self._names: dict[int, str] | None = None
        self._counted: dict[str, int] = {}
        self._lock = threading.Lock()
        self._users, self._retired = 0, False
        # All are opened now: a writer may remove the file's name later.
        self._connections: LifoQueue[sqlite3.Connection] = LifoQueue()
        count = min(find_cores().usable, _MOST_CONNECTIONS)
        try:
            with sqlite_errors(self._texts), value_errors(self._texts):
                for _ in range(count):
                    self._connections.put(self._connect())
        except BaseException:
            self._close_connections()
            raise
        self.beside = ThreadPoolExecutor(count, thread_name_prefix="ortkit-search")
        """For what runs while the calling thread does something else: SQLite and numpy release the interpreter."""

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._texts, read_only=True)
        try:
            check_schema(connection)
            full_text.prepare(connection)
            # So that a damaged file is refused now.
            connection.execute("SELECT rowid FROM words WHERE words MATCH 'a' LIMIT 1").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    @classmethod
    def newest(cls, folder: Path) -> Snapshot:
        """Open the newest generation, again where a writer replaced it meanwhile."""
        index = read_index_file(folder)
        for _ in range(_ATTEMPTS):
            try:
                return cls(folder, index)
            except FileNotFoundError as error:
                newer = read_index_file(folder)
                if newer == index:
                    raise missing(folder, error) from error
                index = newer
        raise BundleError(f"the index `{folder}` was replaced {_ATTEMPTS} times while it was opened")

    def check_files(self) -> None:
        """Raise BundleError where a file was cut since it was opened; each search asks before it reads."""
        self._files.check()

    def acquire(self) -> bool:
        """Keep it open until `release`; False where it was retired meanwhile."""
        with self._lock:
            if not self._retired:
                self._users += 1
            return not self._retired

    def release(self) -> None:
        with self._lock:
            self._users -= 1
        self._close_unused()

    def retire(self) -> None:
        """Close it once the running searches are done."""
        with self._lock:
            self._retired = True
        self._close_unused()

    def _close_unused(self) -> None:
        with self._lock:
            if not self._retired or self._users:
                return
            self.beside.shutdown(wait=False)
            self._close_connections()
            self._files.close()

    def _close_connections(self) -> None:
        while not self._connections.empty():
            self._connections.get().close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = self._connections.get()
        try:
            with sqlite_errors(self._texts):
                yield connection
        finally:
            self._connections.put(connection)

    def filter(self, paths: Sequence[str]) -> Filter:
        """The files that match any of these globs; raises InputError."""
        globs = Globs(paths, "path")
        key = tuple(paths)
        with self._lock:
            if key in self._filters:
                self._filters.move_to_end(key)
                return self._filters[key]
        names = self._file_names()
        ids = [number for number, name in names.items() if globs.match(name)]
        allowed = np.zeros(max(names, default=0) + 1, np.bool_)
        allowed[ids] = True
        made = Filter(allowed, f"[{','.join(map(str, ids))}]")
        with self._lock:
            self._filters[key] = made
            while len(self._filters) > _CACHED_FILTERS:
                self._filters.popitem(last=False)
        return made

    def _file_names(self) -> dict[int, str]:
        if self._names is None:
            with self._connection() as connection, value_errors(self._texts):
                self._names = read_names(connection)
        return self._names

    def full_text(self, query: str, count: int, limit: Filter | None, *, alone: bool) -> list[tuple[int, float]]:
        """The best chunks by BM25; none where no word of the query is in the index, or all are too frequent."""
        with self._connection() as connection:
            expression = full_text.match_expression(
                connection, query, self.index.chunks, alone=alone, counted=self._counted
            )
            if expression is None:
                return []
            return full_text.ranked(connection, expression, count, files=None if limit is None else limit.ids)

    def locate(self, chunks: Sequence[int]) -> dict[int, Located]:
        """Files and vectors of chunks; raises BundleError where vectors and texts do not belong together."""
        found = {}
        with self._connection() as connection, value_errors(self._texts):
            for part, marks in in_parts(chunks):
                sql = f"{_LOCATE} WHERE chunks.id IN ({marks})"
                for chunk, name, number, segment, row in connection.execute(sql, tuple(part)):
                    start = self._starts.get(segment)
                    if start is None or not 0 <= row < self.index.rows - start:
                        raise self._inconsistent()
                    found[chunk] = Located(chunk, file_name(name), int(number), int(start + row))
        if len(found) < len(set(chunks)):
            raise self._inconsistent()
        return found

    def texts(self, chunks: Sequence[int]) -> dict[int, Chunk]:
        """Chunks with their texts."""
        found = {}
        with self._connection() as connection, value_errors(self._texts):
            for part, marks in in_parts(chunks):
                sql = (
                    "SELECT id, text, title, context, first_line, last_line, page, headings FROM chunks "  # noqa: S608
                    f"WHERE id IN ({marks})"
                )
                for number, text, title, context, first, last, page, headings in connection.execute(sql, tuple(part)):
                    found[number] = chunk_of(text, title, context, (first, last), page, headings)
        if len(found) < len(set(chunks)):
            raise self._inconsistent()
        return found

    def _inconsistent(self) -> BundleError:
        return BundleError(
            f"the vectors and texts of the index `{self.folder}` do not belong together", hint=BUILD_AGAIN
        )


_LOCATE = (
    "SELECT chunks.id, files.name, chunks.number, chunks.segment, chunks.row "
    "FROM chunks JOIN files ON files.id = chunks.file"
)
