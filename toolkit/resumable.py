"""An output that is continued after its process was killed: what is done of it, where that is kept, and who may write.

Rows go to a hidden file beside the output. When they are on the disk, a small record of how far it is takes the place
of the one before, so the record never claims a row that is not there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import click

from runtime.bundle_writer import flush
from runtime.errors import InputError, OutputError
from runtime.records import read_record, write_record
from toolkit.inputs import InputFormat, Place, Source
from toolkit.job import Options
from toolkit.progress import fresh_line
from toolkit.warnings_report import Notes

BLOCK = 1 << 20


@dataclass(frozen=True)
class Done:
    """How much is on the disk, and of what."""

    bundle: str
    """sha256 of its manifest, which holds those of all its files."""
    options: Options
    input_size: int
    """Bytes of the whole input."""
    place: Place = field(default_factory=Place)
    """How the input is read, and where that came to."""
    read: int = 0
    """Bytes of the input that are done."""
    read_sha256: str = ""
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


class HashedSource(Source):
    """A source with the hash of the bytes that were read so far."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.hash = hashlib.sha256()

    def skip(self, size: int) -> None:
        """Pass over so many bytes that were done before."""
        while self.size < size and (block := self.stream.read(min(BLOCK, size - self.size))):
            self.take(block)

    def take(self, data: bytes) -> None:
        super().take(data)
        self.hash.update(data)


def open_own(path: Path, flags: int) -> int:
    """Open a file that lies beside an output; raises OutputError for a link, which would have its target written."""
    try:
        number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        # A link, or a pipe that nobody reads.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise linked(path) from error
        raise
    status = os.fstat(number)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return number
    os.close(number)
    raise linked(path)


def linked(path: Path) -> OutputError:
    return OutputError(
        f"`{path}` is a link or no regular file, and what is done would be written there",
        hint=f"remove it: `rm {shlex.quote(str(path))}`",
    )


def write_own(path: Path, text: str) -> None:
    """Write a small file that lies beside an output, in place of whatever has its name."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(files: Files) -> Iterator[BinaryIO]:
    """The hidden file, open to read and write and locked; raises OutputError when another process has it."""
    while True:
        with os.fdopen(open_own(files.partial, os.O_RDWR | os.O_CREAT), "r+b") as file:
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


def done_before(files: Files, begun: Done, *, source: HashedSource) -> Done:
    """How far a run like `begun` came before it was killed, `source` put behind that; `begun` when there was none.

    Raises InputError when what is there was begun with another bundle, input or other options.
    """
    try:
        found = checked(read_record(Done, json.loads(files.state.read_bytes())))
    except FileNotFoundError:
        return begun
    # RecordError is a ValueError, as are those of JSON and UTF-8.
    except (ValueError, RecursionError, OSError) as error:
        tell_unusable(files, f"{error}" or type(error).__name__)
        return begun
    if not files.failed_partial.exists() and files.failed.exists():
        # Killed between the two renames at the very end.
        files.failed.replace(files.failed_partial)
    if size_of(files.partial) < found.output_size or size_of(files.failed_partial) < found.failed_size:
        tell_unusable(files, "what it says was done is not there")
        return begun
    other = None
    if found.bundle != begun.bundle:
        other = "another bundle"
    elif found.options != begun.options:
        other = "other options"
    elif found.input_size != begun.input_size:
        other = "another input"
    else:
        source.skip(found.read)
        if source.hash.hexdigest() != found.read_sha256:
            other = "another input"
    if other is not None:
        raise InputError(
            f"`{files.target}` was begun with {other}, and {found.rows} records of it are done",
            hint="run the command as it was then to go on, or add `--restart` to begin anew",
        )
    return found


def checked(done: Done) -> Done:
    """The same; raises ValueError for figures that nothing could have."""
    figures = (done.read, done.rows, done.output_size, done.failed, done.failed_size, done.place.number)
    if min(figures) < 0 or done.place.format is InputFormat.AUTO or len(done.place.delimiter) != 1:
        raise ValueError("its figures contradict one another")
    return done


def tell_unusable(files: Files, why: str) -> None:
    shown = "".join(character if character.isprintable() else "\ufffd" for character in why)
    click.echo(
        f"{fresh_line()}note: `{files.state}`, which says how far an earlier run came, cannot be used, "
        f"so everything is done anew: {shown}",
        err=True,
    )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def record(files: Files, done: Done, *written: BinaryIO) -> None:
    """Put on the disk what was written, and then that it is done."""
    for file in written:
        file.flush()
        os.fsync(file.fileno())
    write_own(files.next_state, json.dumps(write_record(done)))
    files.next_state.replace(files.state)
    flush(files.target.parent)
