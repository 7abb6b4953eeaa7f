"""An output that is continued after its process was killed: what is done of it, where that is kept, and who may write.

Rows go to a hidden file beside the output. When they are on the disk, a small record of how far it is takes the place
of the one before, so the record never claims a row that is not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from runtime.bundle_writer import flush
from runtime.errors import InputError, OutputError
from runtime.records import RecordError, read_record, write_record
from toolkit.job import Options
from toolkit.notes import Notes
from toolkit.texts import InputFormat

BLOCK = 1 << 20


@dataclass(frozen=True)
class Done:
    """How much is on the disk, and of what."""

    bundle: str
    """sha256 of its manifest, which holds those of all its files."""
    options: Options
    input_size: int
    """Bytes of the whole input."""
    input_format: InputFormat
    """What `auto` took."""
    read: int = 0
    """Bytes of the input that are done."""
    read_sha256: str = ""
    lines: int = 0
    rows: int = 0
    output_size: int = 0
    failed: int = 0
    failed_size: int = 0
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True)
class Files:
    """The output, and what lies beside it until it is done; but for the failed records and the ranges, which stay."""

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
    def hidden(self) -> tuple[Path, ...]:
        return (self.partial, self.state, self.next_state, self.failed_partial)

    def discard(self) -> None:
        for path in self.hidden:
            path.unlink(missing_ok=True)


class HashedLines:
    """The lines of a stream, with the bytes given so far and their hash."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.size = 0
        self.hash = hashlib.sha256()

    def skip(self, size: int) -> None:
        """Pass over so many bytes that were done before."""
        while self.size < size and (block := self.stream.read(min(BLOCK, size - self.size))):
            self.take(block)

    def __iter__(self) -> Iterator[bytes]:
        for line in self.stream:
            self.take(line)
            yield line

    def take(self, data: bytes) -> None:
        self.size += len(data)
        self.hash.update(data)


@contextmanager
def locked(files: Files) -> Iterator[BinaryIO]:
    """The hidden file, open to read and write and locked; raises OutputError when another process has it."""
    while True:
        with os.fdopen(os.open(files.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"`{files.target}` is being written by another process",
                    hint="wait for it, or choose another file with `--output`",
                ) from error
            # Whoever had the lock a moment ago may have made the file the output: then it is not ours to write.
            if is_at(file, files.partial):
                yield file
                return


def is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def done_before(files: Files, begun: Done, *, lines: HashedLines) -> Done:
    """How far a run like `begun` came before it was killed, `lines` put behind that; `begun` when there was none.

    Raises InputError when what is there was begun with another bundle, input or other options.
    """
    try:
        found = read_record(Done, json.loads(files.state.read_bytes()))
    except (FileNotFoundError, RecordError):
        # A record that does not fit is of another version of edgekit.
        return begun
    if not files.failed_partial.exists() and files.failed.exists():
        # Killed between the two renames at the very end.
        files.failed.replace(files.failed_partial)
    if size_of(files.partial) < found.output_size or size_of(files.failed_partial) < found.failed_size:
        return begun
    other = None
    if found.bundle != begun.bundle:
        other = "another bundle"
    elif found.options != begun.options:
        other = "other options"
    elif found.input_size != begun.input_size:
        other = "another input"
    else:
        lines.skip(found.read)
        if lines.hash.hexdigest() != found.read_sha256:
            other = "another input"
    if other is not None:
        raise InputError(
            f"`{files.target}` was begun with {other}, and {found.rows} records of it are done",
            hint="run the command as it was then to go on, or add `--restart` to begin anew",
        )
    return found


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def record(files: Files, done: Done, *written: BinaryIO) -> None:
    """Put on the disk what was written, and then that it is done."""
    for file in written:
        file.flush()
        os.fsync(file.fileno())
    files.next_state.write_text(json.dumps(write_record(done)), encoding="utf-8")
    flush(files.next_state)
    files.next_state.replace(files.state)
    flush(files.target.parent)
