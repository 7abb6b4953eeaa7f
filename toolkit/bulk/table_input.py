"""Tables to embed: Parquet files, Arrow files and streams, CSV and plain text; read twice, in bounded memory.

First the texts alone are read and embedded, then all columns, which are written with the vectors. The hash of the texts
must be the same both times, so that a vector is never written beside another text.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ...runtime.errors import InputError, NotFoundError
from ..io.input_format import InputFormat, Position, Source
from ..io.inputs import ItemReader
from ..io.resumable import HashedSource, ResumableRecords, StreamRecords
from ..io.streams import open_input
from ..io.texts import FIELD, InputOptions, RecordReader, TextRecord
from ..io.writers import Record
from .arrow import bytes_of, has_dictionary, pa, record_of, text_index
from .parquet_size import batch_rows

_BATCH_BYTES = 1 << 25
"""Most bytes of a batch of rows in memory, by what its file says of their sizes."""
_BATCH_ROWS = 4096
_BUFFER = 1 << 20
_PARQUET = b"PAR1"
_ENCRYPTED = b"PARE"
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM = b"\xff\xff\xff\xff"
_FEATHER_1 = b"FEA1"
_SUFFIXES = {".parquet": "Parquet", ".pq": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".ipc": "Arrow"}
OPTION = "--column"


class TableInput(Protocol):
    """A table that is read from the beginning as often as needed."""

    schema: pa.Schema
    rows: int | None
    """Number of rows; None where it is known at the end only."""

    def records(self) -> ResumableRecords:
        """The texts."""

    def batches(self) -> HashedBatches:
        """All columns."""

    def close(self) -> None: ...


class HashedBatches(Protocol):
    """Record batches; `digest`, once all are read, is that of the records."""

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...

    @property
    def digest(self) -> str: ...


def open_table(source: str, *, input_format: InputFormat, field: str | None) -> TableInput:
    """Open a file, or a folder of Parquet files.

    Raises NotFoundError, and InputError for a file that cannot be read and for a table without the column.
    """
    path = Path(source)
    if path.is_dir():
        return ParquetFiles(_parquet_files(path), field or FIELD)
    with open_input(source) as stream:
        if not path.is_file():
            raise InputError(
                f"`{source}` is not a regular file, and a table is read twice", hint="write it to a file first"
            )
        beginning = stream.read(len(_ARROW_FILE))
    if input_format is InputFormat.AUTO:
        if beginning.startswith(_PARQUET):
            return ParquetFiles([path], field or FIELD)
        if beginning.startswith((_ARROW_FILE, _ARROW_STREAM)):
            return ArrowFile(path, field or FIELD, stream=not beginning.startswith(_ARROW_FILE))
        _refuse_other(path, beginning)
    return StreamTable(source, InputOptions(input_format, field, source))


def _refuse_other(path: Path, beginning: bytes) -> None:
    """Raises InputError for a table in a format that is not read, and for a file that is not what its name says."""
    if beginning.startswith(_ENCRYPTED):
        raise InputError(f"`{path}` is encrypted", hint="decrypt it first")
    if beginning.startswith(_FEATHER_1):
        raise InputError(f"`{path}` is of version 1 of Feather", hint="write version 2, which is Arrow, or Parquet")
    named = _SUFFIXES.get(path.suffix.lower())
    if named is not None:
        raise InputError(f"`{path}` is not {named}: it is damaged, or another format", hint="copy or write it again")


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder, sorted by name, without those that engines hide: `_temporary`, `.part.crc`."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(("_", ".")) for part in parts) or path.suffix.lower() not in (".parquet", ".pq"):
            continue
        if any("=" in part for part in parts[:-1]):
            raise InputError(
                f"`{folder}` is partitioned by its folders, such as `{parts[0]}`, and their columns would be lost",
                hint="embed each folder, or use `ortkit.bulk.Embed` with an engine (docs/bulk.md)",
            )
        if path.is_file():
            found.append(path)
    if not found:
        raise InputError(f"the folder `{folder}` has no Parquet files", hint="give a folder of `.parquet` files")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise InputError for a file that cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{path}`") from error
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"`{path}` cannot be read: {reason}", hint="if it is damaged or cut off, copy or write it again"
        ) from error


class ParquetFiles:
    """Parquet files of one schema, one after another."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        self._files = files
        self._column = column
        self.rows: int | None = 0
        for file in files:
            with _reading(file), _parquet(file) as opened:
                found, rows = opened.schema_arrow, opened.metadata.num_rows
            self.rows += rows
            if file == files[0]:
                self.schema = found
                self._index = text_index(found, column, option=OPTION)
            elif not found.equals(self.schema):
                raise InputError(
                    f"`{file}` and `{files[0]}` have different columns, or types of columns",
                    hint="one run takes files of one schema",
                )

    def records(self) -> ResumableRecords:
        texts = (batch.column(batch.schema.get_field_index(self._column)) for batch in self._read([self._column]))
        return TableRecords(texts, input_size=_size_of(self._files), by_rows=True)

    def batches(self) -> HashedBatches:
        return TableBatches(self._read(None), self.schema, self._index)

    def close(self) -> None:
        """Nothing: files are open while they are read."""

    def _read(self, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        for path in self._files:
            with _reading(path), path.open("rb") as file, _parquet(path) as opened:
                rows = batch_rows(opened, file, columns, most=_BATCH_BYTES)
                batches = opened.iter_batches(min(rows, _BATCH_ROWS), columns=columns, use_threads=False)
                yield from _gathered(_passed_on(batches, path))


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # A Python file, since names may be any bytes.
    with path.open("rb") as file:
        yield pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True)


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches joined, which have few rows where a value may be long, and need not be.

    Dictionaries are not joined: together they may have more values than their type has numbers.
    """
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if _has_dictionary(batch.schema):
            yield batch
            continue
        if waiting and (rows + batch.num_rows > _BATCH_ROWS or size + batch.nbytes > _BATCH_BYTES):
            yield _joined(waiting)
            waiting, rows, size = [], 0, 0
        waiting.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
    if waiting:
        yield _joined(waiting)


def _has_dictionary(schema: pa.Schema) -> bool:
    return any(map(has_dictionary, schema.types))


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    [joined] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


def _passed_on(batches: Iterable[pa.RecordBatch], path: Path) -> Iterator[pa.RecordBatch]:
    """The batches; an error of whoever takes them is not one of reading."""
    pending = iter(batches)
    while True:
        with _reading(path):
            batch = next(pending, None)
        if batch is None:
            return
        yield batch


class ArrowFile:
    """An Arrow file (Feather 2), or a stream of Arrow in a file."""

    rows: int | None = None

    def __init__(self, path: Path, column: str, *, stream: bool) -> None:
        self.path = path
        self._open = pa.ipc.open_stream if stream else pa.ipc.open_file
        with _reading(path), path.open("rb") as file:
            self.schema = self._open(file).schema
        self._index = text_index(self.schema, column, option=OPTION)

    def records(self) -> ResumableRecords:
        texts = (batch.column(0) for batch in self._read([self._index]))
        return TableRecords(texts, input_size=_size_of([self.path]), by_rows=False)

    def batches(self) -> HashedBatches:
        return TableBatches(self._read(None), self.schema, self._index)

    def close(self) -> None:
        """Nothing: files are open while they are read."""

    def _read(self, fields: list[int] | None) -> Iterator[pa.RecordBatch]:
        with self.path.open("rb") as file:
            options = pa.ipc.IpcReadOptions(included_fields=fields or [])
            with _reading(self.path):
                opened = self._open(file, options=options)
            yield from _passed_on(map(_validated, _record_batches(opened)), self.path)


def _record_batches(opened: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(opened, pa.ipc.RecordBatchFileReader):
        return (opened.get_batch(number) for number in range(opened.num_record_batches))
    return iter(opened)


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch; raises ArrowInvalid for offsets beyond its data, which pyarrow follows otherwise."""
    for column in batch.columns:
        # As bytes, because a text that is not UTF-8 is an error of its row.
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            large = pa.types.is_large_string(column.type)
            column.view(pa.large_binary() if large else pa.binary()).validate(full=True)
        else:
            column.validate(full=True)
    return batch


class StreamTable:
    """The records of CSV, TSV and plain text as a table of strings."""

    rows: int | None = None

    def __init__(self, source: str, options: InputOptions) -> None:
        self.source = source
        self._options = options
        self._files = ExitStack()
        with open_input(source) as stream:
            text = Source(stream)
            position = options.begin(text)
            if position.format in (InputFormat.JSON, InputFormat.JSONL):
                raise InputError(
                    f"`{source}` is JSON, whose fields have no types for the columns of a table",
                    hint="write `--output FILE.jsonl`, or convert the input to Parquet first",
                )
            items = ItemReader(text, position)
            if position.format is InputFormat.TEXT:
                columns: tuple[str, ...] = (FIELD,)
            else:
                # The header is read with the first row.
                next(iter(items), None)
                columns = items.position.columns
        self.schema = pa.schema([pa.field(name, pa.string()) for name in columns])
        text_index(self.schema, options.field or FIELD, option=OPTION)

    def records(self) -> ResumableRecords:
        return StreamRecords(self._opened(), self._options)

    def batches(self) -> HashedBatches:
        return StreamBatches(self._opened(), self._options, self.schema)

    def close(self) -> None:
        self._files.close()

    def _opened(self) -> BinaryIO:
        """The file from its beginning."""
        return self._files.enter_context(open_input(self.source))


class TextHash:
    """The sha256 of texts and nulls, with their lengths."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def take(self, raw: bytes | None) -> None:
        self.hash.update(b"-" if raw is None else b"%d:" % len(raw))
        self.hash.update(raw or b"")


class TableRecords:
    """The texts of a column, and their hash; `size` counts rows, or bytes of texts where the rows are not known."""

    def __init__(self, columns: Iterable[pa.Array], *, input_size: int, by_rows: bool) -> None:
        self.input_size: int | None = input_size
        self.size = 0
        self._by_rows = by_rows
        self._texts = itertools.chain.from_iterable(map(bytes_of, columns))
        self._hash = TextHash()
        self._rows = 0

    @property
    def digest(self) -> str:
        return self._hash.hash.hexdigest()

    @property
    def position(self) -> Position:
        """The number of rows: a table has no other position."""
        return Position(InputFormat.TEXT, number=self._rows)

    def skip(self, size: int) -> None:
        while self.size < size and self._next() is not None:
            pass

    def records(self, _position: Position | None) -> Iterator[Record]:
        while (record := self._next()) is not None:
            yield record

    def _next(self) -> Record | None:
        try:
            raw = next(self._texts)
        except StopIteration:
            return None
        self._rows += 1
        self.size += 1 if self._by_rows else len(raw or b"") + 1
        self._hash.take(raw)
        return record_of(raw, self._rows)


class TableBatches:
    """Record batches with the hash of their texts."""

    def __init__(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, text: int) -> None:
        self._batches = batches
        self._schema = schema
        self._text = text
        self._hash = TextHash()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            for raw in bytes_of(batch.column(self._text)):
                self._hash.take(raw)
            # A file's own metadata can differ from that of the first.
            yield pa.RecordBatch.from_arrays(batch.columns, schema=self._schema)

    @property
    def digest(self) -> str:
        return self._hash.hash.hexdigest()


class StreamBatches:
    """Records of CSV or plain text as record batches of strings; nulls for a record that cannot be read."""

    def __init__(self, stream: BinaryIO, options: InputOptions, schema: pa.Schema) -> None:
        self._source = HashedSource(stream)
        self._options = options
        self._schema = schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        from ...runtime.encoder.batching import in_chunks

        records = RecordReader(self._source, self._options)
        for chunk in in_chunks(records, _BATCH_ROWS, size=lambda record: record.size, most=_BATCH_BYTES):
            rows = [record.fields if isinstance(record, TextRecord) else {} for record in chunk]
            columns = [pa.array([row.get(name) for row in rows], pa.string()) for name in self._schema.names]
            yield pa.RecordBatch.from_arrays(columns, schema=self._schema)

    @property
    def digest(self) -> str:
        return self._source.hash.hexdigest()


def _size_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def refuse_output(source: str, target: Path) -> None:
    """Raises InputError for an output that is the input, or lies in the folder that is read."""
    path, hint = Path(source), "choose another file with `--output`"
    if path.is_dir() and path.resolve() in target.resolve().parents:
        raise InputError(f"`{target}` is in the folder that is read, and would be read the next time", hint=hint)
    try:
        same = path.samefile(target)
    except OSError:
        return
    if same:
        raise InputError(f"`{target}` is also the input, and would be replaced", hint=hint)
