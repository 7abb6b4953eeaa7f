"""Files, chunks and full text of an index in SQLite: the schema, and the writer's copy of a generation.

A file that changed gets a new row, which counts once it is complete. Older rows go in the same transaction, so that an
interrupted run loses nothing, and so that the embeddings of their chunks are found by the hash of the text.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.bundle.records import read_record, write_record
from ....runtime.errors import BundleError, OrtkitError, OutputError
from ....runtime.output_path import cannot_write
from ..chunks import Chunk
from ..documents.document import Place
from .full_text import COLUMNS, TOKENIZER, searchable
from .index_file import BUILD_AGAIN, Origin, SegmentRecord

_SCHEMA = f"""
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    name BLOB NOT NULL,
    size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    read_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    complete INTEGER NOT NULL
);
CREATE INDEX files_name ON files (name);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    file INTEGER NOT NULL,
    number INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    row INTEGER NOT NULL,
    hash BLOB NOT NULL,
    first_line INTEGER,
    last_line INTEGER,
    page INTEGER,
    headings TEXT NOT NULL,
    title TEXT NOT NULL,
    context TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX chunks_file ON chunks (file, number);
CREATE INDEX chunks_hash ON chunks (hash);
CREATE INDEX chunks_row ON chunks (segment, row, file);
CREATE VIRTUAL TABLE words USING fts5({", ".join(COLUMNS)}, content='', tokenize='{TOKENIZER}');
"""
_STATEMENTS = frozenset(statement.strip() for statement in _SCHEMA.split(";\n") if statement.strip())
_OF_FTS5 = "words\\_%"
"""Names of the tables that FTS5 makes, whose SQL depends on SQLite's version."""
_FTS_VALUES = "title, headings, text"
_VARIABLES = 500
"""Parameters of a statement; old SQLites take 999."""


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is unchanged."""

    size: int
    modified_ns: int
    read_ns: int
    """When it was hashed."""
    sha256: str


@dataclass(frozen=True)
class StoredFile:
    id: int
    stamp: Stamp


@dataclass(frozen=True)
class NewChunk:
    """A chunk to store, and where its vector is."""

    file: int
    number: int
    """In its file, from 0."""
    chunk: Chunk
    hash: bytes
    segment: int
    row: int


@dataclass(frozen=True)
class WorkState:
    """What a writer's copy is based on, and its segments."""

    origin: Origin
    base: int | None
    """The generation that was copied, or that this is, once it is complete; None for a build from nothing."""
    segments: tuple[SegmentRecord, ...]
    next_segment: int
    growing: int | None = None
    """Number of the segment that is being written, which is the last of `segments`."""


def text_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into BundleError, for a damaged file, or OutputError, for one that cannot be written.

    For a file that is missing: FileNotFoundError.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF == sqlite3.SQLITE_FULL:
            raise cannot_write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path.parent) from error
        if code is not None and code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise OutputError(f"`{path}` cannot be read or written: {error}") from error
        if code is not None and code & 0xFF == sqlite3.SQLITE_CANTOPEN:
            _raise_opening(path)
        raise BundleError(f"`{path}` is damaged: {error}", hint=BUILD_AGAIN) from error


def _raise_opening(path: Path) -> None:
    """Raise what SQLite does not tell: FileNotFoundError, where a writer removed a file, or BundleError."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error


@contextmanager
def value_errors(path: Path) -> Iterator[None]:
    """Turn what values of another type raise into BundleError: SQLite's columns take any."""
    try:
        yield
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        if isinstance(error, OrtkitError):
            raise
        raise BundleError(f"`{path}` has a value that is not valid: {error}", hint=BUILD_AGAIN) from error


def check_schema(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError for a database with other tables, views or triggers, which could run what they like.

    SQLite keeps the text of each statement.
    """
    sql = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND NOT (type = 'table' AND name LIKE ? ESCAPE '\\')"
    found = {statement for (statement,) in connection.execute(sql, (_OF_FTS5,))}
    if found != _STATEMENTS:
        raise sqlite3.DatabaseError("it has another schema than an index")


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open a database; one for reading is immutable: no locks, and nothing beside it is read or made."""
    mode = "mode=ro&immutable=1" if read_only else "mode=rwc"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, check_same_thread=False)
    try:
        # What other schemas' views and triggers could call is not called; temporary tables stay in memory.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA mmap_size = {1 << 40 if read_only else 0}")
    except BaseException:
        connection.close()
        raise
    return connection


def file_name(stored: Any) -> str:
    """The name of a file as FoundFile has it; raises ValueError for one that leads out of the folder."""
    if not isinstance(stored, bytes) or b"\0" in stored or not {b"", b".", b".."}.isdisjoint(stored.split(b"/")):
        raise ValueError(f"{stored!r} is not the name of a file in a folder")
    return os.fsdecode(stored)


def read_names(connection: sqlite3.Connection) -> dict[int, str]:
    """The names of all files, by id; raises ValueError."""
    return {number: file_name(name) for number, name in connection.execute("SELECT id, name FROM files")}


def read_files(connection: sqlite3.Connection) -> dict[str, StoredFile]:
    """All complete files, by name; raises ValueError."""
    sql = "SELECT name, id, size, modified_ns, read_ns, sha256 FROM files WHERE complete"
    found = {}
    for name, number, size, modified_ns, read_ns, sha256 in connection.execute(sql):
        if not all(isinstance(value, int) for value in (size, modified_ns, read_ns)):
            raise ValueError(f"{(size, modified_ns, read_ns)} are not the size and times of a file")
        found[file_name(name)] = StoredFile(number, Stamp(size, modified_ns, read_ns, str(sha256)))
    return found


def in_parts(values: Sequence[Any], size: int = _VARIABLES) -> Iterator[tuple[Sequence[Any], str]]:
    """The values in parts, each with its placeholders for an SQL `IN`."""
    for start in range(0, len(values), size):
        part = values[start : start + size]
        yield part, ",".join("?" * len(part))


class WorkingStore:
    """The writer's copy: the next generation's SQLite file, which no reader knows of yet."""

    def __init__(self, path: Path, state: WorkState | None = None) -> None:
        """Open a copy that an earlier run left, or with `state` a new or copied file.

        Raises BundleError where it is damaged or not a copy, and OutputError.
        """
        self.path = path
        with sqlite_errors(path), value_errors(path):
            self.connection = connect(path, read_only=False)
            try:
                self._open(state)
            except BaseException:
                self.connection.close()
                raise

    def _open(self, state: WorkState | None) -> None:
        self.connection.execute("PRAGMA journal_mode = DELETE")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("PRAGMA cache_size = -65536")
        if state is not None:
            if state.base is None:
                self.connection.executescript(_SCHEMA)
            self.state = state
            with self.transaction():
                self._save_state()
            return
        check_schema(self.connection)
        found = self.connection.execute("SELECT value FROM state WHERE key = 'work'").fetchone()
        if found is None:
            raise BundleError(f"`{self.path}` is not a working copy")
        try:
            self.state = read_record(WorkState, json.loads(found[0]))
        except ValueError as error:
            raise BundleError(f"`{self.path}` has no valid state: {error}") from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Turn the errors of a damaged copy into BundleError."""
        with sqlite_errors(self.path), value_errors(self.path):
            yield self.connection

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self.reading(), self.connection:
            yield

    def close(self) -> None:
        self.connection.close()

    def set_state(self, state: WorkState) -> None:
        """Record a state, in a transaction."""
        self.state = state
        self._save_state()

    def _save_state(self) -> None:
        value = json.dumps(write_record(self.state))
        self.connection.execute("INSERT OR REPLACE INTO state VALUES ('work', ?)", (value,))

    def add_file(self, name: str, stamp: Stamp) -> int:
        """Add a file that is not complete yet; returns its id."""
        row = (os.fsencode(name), stamp.size, stamp.modified_ns, stamp.read_ns, stamp.sha256)
        sql = "INSERT INTO files (name, size, modified_ns, read_ns, sha256, complete) VALUES (?, ?, ?, ?, ?, 0)"
        number = self.connection.execute(sql, row).lastrowid
        assert number is not None  # noqa: S101 - it is None before the first INSERT only
        return number

    def complete(self, name: str, number: int) -> None:
        """Make a file's chunks count, in place of those of its older rows."""
        older = self.connection.execute(
            "SELECT id FROM files WHERE name = ? AND id != ?", (os.fsencode(name), number)
        ).fetchall()
        self.remove_files([one for (one,) in older])
        self.connection.execute("UPDATE files SET complete = 1 WHERE id = ?", (number,))

    def set_stamp(self, number: int, stamp: Stamp) -> None:
        """Record that a file was found unchanged."""
        self.connection.execute(
            "UPDATE files SET size = ?, modified_ns = ?, read_ns = ? WHERE id = ?",
            (stamp.size, stamp.modified_ns, stamp.read_ns, number),
        )

    def remove_files(self, numbers: Sequence[int]) -> None:
        """Remove files with their chunks, also from the full-text index, which wants the indexed values for that."""
        for number in numbers:
            rows = self.connection.execute(
                "SELECT id, title, headings, text FROM chunks WHERE file = ?", (number,)
            ).fetchall()
            self.connection.executemany(
                f"INSERT INTO words (words, rowid, {_FTS_VALUES}) VALUES ('delete', ?, ?, ?, ?)",  # noqa: S608
                ((chunk, *_indexed(title, tuple(json.loads(headings)), text)) for chunk, title, headings, text in rows),
            )
            self.connection.execute("DELETE FROM chunks WHERE file = ?", (number,))
            self.connection.execute("DELETE FROM files WHERE id = ?", (number,))

    def files(self) -> dict[str, StoredFile]:
        """All complete files, by name."""
        with self.reading() as connection:
            return read_files(connection)

    def incomplete(self) -> list[int]:
        with self.reading() as connection:
            return [number for (number,) in connection.execute("SELECT id FROM files WHERE NOT complete")]

    def add_chunks(self, chunks: Iterable[NewChunk]) -> None:
        """Add chunks to files that are not complete."""
        (last,) = self.connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
        rows, texts = [], []
        for number, new in enumerate(chunks, last + 1):
            chunk, place = new.chunk, new.chunk.place
            lines = place.lines or (None, None)
            headings = json.dumps(place.headings, ensure_ascii=False)
            of_vector = (new.segment, new.row, new.hash)
            of_place = (*lines, place.page, headings)
            of_text = (chunk.title, chunk.context, chunk.text)
            rows.append((number, new.file, new.number, *of_vector, *of_place, *of_text))
            texts.append((number, *_indexed(chunk.title, place.headings, chunk.text)))
        self.connection.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self.connection.executemany(f"INSERT INTO words (rowid, {_FTS_VALUES}) VALUES (?, ?, ?, ?)", texts)  # noqa: S608

    def known_vectors(self, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Segment and row of the vectors of texts that were embedded before."""
        found: dict[bytes, tuple[int, int]] = {}
        for part, marks in in_parts(hashes):
            sql = f"SELECT hash, segment, row FROM chunks WHERE hash IN ({marks})"  # noqa: S608
            with self.reading() as connection:
                found |= {known: (segment, row) for known, segment, row in connection.execute(sql, tuple(part))}
        return found

    def live_rows(self) -> dict[int, int]:
        """Number of chunks of each segment."""
        with self.reading() as connection:
            return dict(connection.execute("SELECT segment, count(*) FROM chunks GROUP BY segment").fetchall())

    def rows_of(self, segments: Iterable[int]) -> NDArray[np.int64]:
        """(chunks, 4): id, segment, row and file of the chunks of some segments, in order of segment and row."""
        parts = [np.empty((0, 4), np.int64)]
        for segment in segments:
            sql = "SELECT id, segment, row, file FROM chunks WHERE segment = ? ORDER BY row"
            with self.reading() as connection:
                parts.append(np.array(connection.execute(sql, (segment,)).fetchall(), np.int64).reshape(-1, 4))
        return np.concatenate(parts)

    def move_rows(self, moved: Iterable[tuple[int, int, int]]) -> None:
        """Record (segment, row, id) of chunks whose vectors were copied."""
        self.connection.executemany("UPDATE chunks SET segment = ?, row = ? WHERE id = ?", moved)

    def counts(self) -> tuple[int, int]:
        """Number of complete files, and of all chunks."""
        with self.reading() as connection:
            (files,) = connection.execute("SELECT count(*) FROM files WHERE complete").fetchone()
            (chunks,) = connection.execute("SELECT count(*) FROM chunks").fetchone()
        return files, chunks

    def optimize(self) -> None:
        """Merge the full-text index into one b-tree, which is searched faster."""
        self.connection.execute("INSERT INTO words (words) VALUES ('optimize')")


def _indexed(title: str, headings: Sequence[str], text: str) -> tuple[str, str, str]:
    """What the full-text index has of a chunk, in the order of COLUMNS."""
    return searchable(title), searchable("\n".join(headings)), searchable(text)


def chunk_of(text: str, title: str, context: str, lines: tuple[Any, Any], page: int | None, headings: str) -> Chunk:
    """A chunk from its columns; raises ValueError, TypeError and RecursionError."""
    first, last = lines
    names = json.loads(headings)
    if not all(isinstance(value, str) for value in (text, title, context, *names)):
        raise ValueError("a text, title or heading is not text")
    if not all(isinstance(value, int | None) for value in (first, last, page)) or (first is None) != (last is None):
        raise ValueError("a line or page is not a number")
    return Chunk(text, title, Place(None if first is None else (first, last), page, tuple(names)), context)
