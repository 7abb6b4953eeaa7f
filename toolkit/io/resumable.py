"""Resumable output: a hidden file with the rows, a state file, and a lock.

The state file is replaced only after the rows are on disk, so it never counts a row that is missing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import click

from ...runtime.bundle.records import read_record, write_record
from ...runtime.errors import InputError, OutputError
from ...runtime.output_path import flush_folder, try_lock
from ..console.progress import fresh_line
from .embed_run import RunOptions
from .input_format import InputFormat, Position, Source
from .texts import InputOptions, RecordReader
from .warnings_report import TextWarnings
from .writers import Record

_BLOCK = 1 << 20


@dataclass(frozen=True)
class ResumeState:
    """How much of the output is on disk, and the bundle, input and options that it belongs to."""

    bundle: str
    """The bundle's digest."""
    options: RunOptions
    input_size: int
    """Bytes of the whole input."""
    position: Position = field(default_factory=Position)
    """Format of the input and position in it."""
    read: int = 0
    """Bytes of the input that are embedded; for a table, the rows or the bytes of texts."""
    read_sha256: str = ""
    rows: int = 0
    output_size: int = 0
    failed: int = 0
    failed_size: int = 0
    warnings: TextWarnings = field(default_factory=TextWarnings)


@dataclass(frozen=True)
class OutputFiles:
    """The output, its hidden temporary files, and the lists of failed records and ranges, which stay."""

    target: Path

    @property
    def partial(self) -> Path:
        return self.target.with_name(f".{self.target.name}.partial")

    @property
    def state(self) -> Path:
        return self.target.with_name(f".{self.target.name}.state")

    @property
    def next_state(self) -> Path:
        return self.target.with_name(f".{self.target.name}.state.next")

    @property
    def failed(self) -> Path:
        return self.target.with_name(f"{self.target.name}.failed.jsonl")

    @property
    def ranges(self) -> Path:
        return self.target.with_name(f"{self.target.name}.ranges.npy")

    @property
    def failed_partial(self) -> Path:
        return self.target.with_name(f".{self.target.name}.failed.partial")

    @property
    def table(self) -> Path:
        """The table that is written when all vectors are in `partial`."""
        return self.target.with_name(f".{self.target.name}.table.partial")

    @property
    def hidden(self) -> tuple[Path, ...]:
        return (self.partial, self.state, self.next_state, self.failed_partial, self.table)

    def discard(self) -> None:
        for path in self.hidden:
            path.unlink(missing_ok=True)


class HashedSource(Source):
    """A source that hashes the bytes read so far."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.hash = hashlib.sha256()

    def skip(self, size: int) -> None:
        """Skip the bytes of an earlier run."""
        while self.size < size and (block := self.stream.read(min(_BLOCK, size - self.size))):
            self.take(block)

    def take(self, data: bytes) -> None:
        super().take(data)
        self.hash.update(data)


class ResumableRecords(Protocol):
    """The records of an input that can be read again, and how much of it was read."""

    input_size: int | None
    """Bytes of the whole input; None for a pipe, which cannot be read again."""

    @property
    def size(self) -> int:
        """How much of the input was read; of a table, rows or the bytes of texts."""

    @property
    def digest(self) -> str:
        """The sha256 of what was read."""

    @property
    def position(self) -> Position: ...

    def skip(self, size: int) -> None:
        """Read what an earlier run embedded."""

    def records(self, position: Position | None) -> Iterable[Record]:
        """The records from the position of an earlier run on, None to begin."""


class StreamRecords:
    """The records of a stream of text, JSON or CSV."""

    def __init__(self, stream: BinaryIO, options: InputOptions) -> None:
        self.input_size = _regular_size(stream)
        self._source = HashedSource(stream)
        self._options = options
        self._reader: RecordReader | None = None

    @property
    def size(self) -> int:
        return self._source.size

    @property
    def digest(self) -> str:
        return self._source.hash.hexdigest()

    @property
    def position(self) -> Position:
        return Position() if self._reader is None else self._reader.position

    def skip(self, size: int) -> None:
        self._source.skip(size)

    def records(self, position: Position | None) -> RecordReader:
        self._reader = RecordReader(self._source, self._options, position=position)
        return self._reader


def _regular_size(stream: BinaryIO) -> int | None:
    """The size of a regular file; None for a pipe, which cannot be read again."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def open_regular(path: Path, flags: int) -> int:
    """Open a hidden file beside an output; raises OutputError for a link, whose target would be overwritten."""
    try:
        number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        # A link, or a pipe without a reader.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _link_error(path) from error
        raise
    status = os.fstat(number)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return number
    os.close(number)
    raise _link_error(path)


def _link_error(path: Path) -> OutputError:
    return OutputError(
        f"`{path}` is a link or not a regular file, and would be overwritten",
        hint=f"remove it: `rm {shlex.quote(str(path))}`",
    )


def _write_new(path: Path, text: str) -> None:
    """Write a small file to disk, and replace what has its name."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(files: OutputFiles) -> Iterator[BinaryIO]:
    """Open and lock the hidden file; raises OutputError if another process holds the lock."""
    while True:
        with os.fdopen(open_regular(files.partial, os.O_RDWR | os.O_CREAT), "r+b") as file:
            if not try_lock(file):
                raise OutputError(
                    f"`{files.target}` is being written by another process, or its file system has no locks",
                    hint="wait for that process, or choose another file with `--output`",
                )
            # The process that held the lock may have renamed the file meanwhile.
            if _is_at(file, files.partial):
                yield file
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def resume_state(files: OutputFiles, begun: ResumeState, *, records: ResumableRecords) -> ResumeState:
    """The state of an interrupted run, with `records` advanced to it; `begun` if there is none.

    Raises InputError if the unfinished output has another bundle, input or options than `begun`.
    """
    try:
        found = _checked(read_record(ResumeState, json.loads(files.state.read_bytes())))
    except FileNotFoundError:
        return begun
    # RecordError and the errors of JSON and UTF-8 are ValueErrors.
    except (ValueError, RecursionError, OSError) as error:
        _note_unusable(files, f"{error}" or type(error).__name__)
        return begun
    if not files.failed_partial.exists() and files.failed.exists():
        # The run was killed between the two renames at the end.
        files.failed.replace(files.failed_partial)
    if _size_of(files.partial) < found.output_size or _size_of(files.failed_partial) < found.failed_size:
        _note_unusable(files, "its rows are missing")
        return begun
    other = None
    if found.bundle != begun.bundle:
        other = "another bundle"
    elif found.options != begun.options:
        other = "other options"
    elif found.input_size != begun.input_size:
        other = "another input"
    else:
        records.skip(found.read)
        if records.digest != found.read_sha256:
            other = "another input"
    if other is not None:
        raise InputError(
            f"`{files.target}` was started with {other}, and {found.rows} records are complete",
            hint="repeat the original command to resume, or add `--restart` to start from the beginning",
        )
    return found


def _checked(done: ResumeState) -> ResumeState:
    """Check a state that was read; raises ValueError for inconsistent figures."""
    figures = (done.read, done.rows, done.output_size, done.failed, done.failed_size, done.position.number)
    if min(figures) < 0 or done.position.format is InputFormat.AUTO or len(done.position.delimiter) != 1:
        raise ValueError("its figures are inconsistent")
    return done


def _note_unusable(files: OutputFiles, why: str) -> None:
    shown = "".join(character if character.isprintable() else "\ufffd" for character in why)
    click.echo(
        f"{fresh_line()}note: starting from the beginning: the state of an earlier run in `{files.state}` "
        f"cannot be used: {shown}",
        err=True,
    )


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def save_state(files: OutputFiles, done: ResumeState, *written: BinaryIO) -> None:
    """Flush the written files to disk, then replace the state file."""
    for file in written:
        file.flush()
        os.fsync(file.fileno())
    _write_new(files.next_state, json.dumps(write_record(done)))
    files.next_state.replace(files.state)
    flush_folder(files.target.parent)
