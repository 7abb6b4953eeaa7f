"""Write embeddings while they are computed: jsonl, json and npy."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import click

from ...runtime.errors import OutputError
from ..console.progress import fresh_line
from ..console.terminal import escaped_json
from .inputs import FailedRecord
from .texts import TextRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Record = TextRecord | FailedRecord


class OutputFormat(StrEnum):
    """Output format of embeddings."""

    JSONL = "jsonl"
    JSON = "json"
    NPY = "npy"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def is_table(self) -> bool:
        """Whether the output is a table with the columns of the input, which `toolkit/bulk` writes."""
        return self in (OutputFormat.PARQUET, OutputFormat.ARROW)

    @classmethod
    def of_name(cls, name: str | None) -> OutputFormat:
        """The format for a file of this name; JSONL for any other name, and for stdout."""
        return _SUFFIXES.get(Path(name).suffix.lower(), cls.JSONL) if name is not None else cls.JSONL


_SUFFIXES = {
    ".npy": OutputFormat.NPY,
    ".parquet": OutputFormat.PARQUET,
    ".pq": OutputFormat.PARQUET,
    ".arrow": OutputFormat.ARROW,
    ".feather": OutputFormat.ARROW,
    ".ipc": OutputFormat.ARROW,
}


class Writer(Protocol):
    """Writes a row per record; `close` completes the output.

    `failed` are the indices of records without an embedding; their rows in `vectors` are undefined.
    """

    def write(self, records: Sequence[Record], vectors: NDArray[Any], /, *, failed: Container[int] = ()) -> None: ...

    def close(self) -> None: ...


class _JsonlWriter:
    """One object per line: the fields of the record, and `embedding`, null for a failed record."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, records: Sequence[Record], vectors: NDArray[Any], *, failed: Container[int] = ()) -> None:
        for index, record in enumerate(records):
            self.file.write(_to_json(record, None if index in failed else vectors[index]) + b"\n")
        self.file.flush()

    def close(self) -> None:
        pass


class _JsonWriter:
    """An array of the same objects; `rows` are in the file already."""

    def __init__(self, file: BinaryIO, *, rows: int = 0) -> None:
        self.file = file
        self.before = b"," if rows else b"["

    def write(self, records: Sequence[Record], vectors: NDArray[Any], *, failed: Container[int] = ()) -> None:
        for index, record in enumerate(records):
            self.file.write(self.before + b"\n  " + _to_json(record, None if index in failed else vectors[index]))
            self.before = b","

    def close(self) -> None:
        self.file.write(b"[]\n" if self.before == b"[" else b"\n]\n")


class NpyPipeWriter:
    """An npy file for an output that cannot seek: its header has the number of rows, so all are buffered."""

    def __init__(self, file: BinaryIO, empty: NDArray[Any]) -> None:
        self.file = file
        self.empty = empty
        self.vectors: list[NDArray[Any]] = []

    def write(self, _records: Sequence[Record], vectors: NDArray[Any], *, failed: Container[int] = ()) -> None:
        self.vectors.append(_with_blanks(vectors, failed))

    def close(self) -> None:
        _write_header(self.file, self.empty, rows=sum(map(len, self.vectors)))
        for vectors in self.vectors:
            self.file.write(vectors.tobytes())


class NpyWriter:
    """An npy file written row by row, with its header updated at the end; `rows` are in the file already.

    A failed record has a row of NaN, or of zeros for integer types.
    """

    def __init__(self, file: BinaryIO, empty: NDArray[Any], *, rows: int = 0) -> None:
        self.file = file
        self.empty = empty
        self.rows = rows
        if rows == 0:
            _write_header(file, empty, rows=0)

    def write(self, _records: Sequence[Record], vectors: NDArray[Any], *, failed: Container[int] = ()) -> None:
        self.file.write(_with_blanks(vectors, failed).tobytes())
        self.rows += len(vectors)

    def close(self) -> None:
        self.file.seek(0)
        # numpy pads the header for a growing number of rows, so its length stays the same.
        _write_header(self.file, self.empty, rows=self.rows)


def writer_for(output_format: OutputFormat, file: BinaryIO, *, empty: NDArray[Any], rows: int = 0) -> Writer:
    """The writer for a seekable file with `rows` already; `empty` (0, width) has the type of the embeddings.

    The vectors of a table are kept as npy until all are computed.
    """
    if output_format is OutputFormat.NPY or output_format.is_table:
        return NpyWriter(file, empty, rows=rows)
    return _JsonWriter(file, rows=rows) if output_format is OutputFormat.JSON else _JsonlWriter(file)


def _write_header(file: BinaryIO, empty: NDArray[Any], *, rows: int) -> None:
    """Write the header of an npy file; `empty` (0, width) has the type of its rows.

    np.save is not used, since its errors do not say why writing failed.
    """
    import numpy as np

    header = np.lib.format.header_data_from_array_1_0(empty) | {"shape": (rows, empty.shape[1])}
    np.lib.format.write_array_header_1_0(file, header)


def _with_blanks(vectors: NDArray[Any], failed: Container[int]) -> NDArray[Any]:
    import numpy as np

    blank = np.nan if np.issubdtype(vectors.dtype, np.floating) else 0
    rows = [index for index in range(len(vectors)) if index in failed]
    if rows:
        vectors[rows] = blank
    return vectors


def write_ranges(path: Path, ranges: NDArray[np.float32]) -> None:
    """Write the ranges of int8 embeddings, which queries must share."""
    with path.open("wb") as file:
        _write_header(file, ranges[:0], rows=len(ranges))
        file.write(ranges.tobytes())
    click.echo(
        f"{fresh_line()}note: the int8 ranges are in `{path}`; use them for queries too, with `--ranges`",
        err=True,
    )


def _to_json(record: Record, vector: NDArray[np.generic] | None) -> bytes:
    fields = {name: value for name, value in record.fields.items() if name != "embedding"}
    head = object_to_json(fields)[:-1]
    if vector is None:
        return head + b', "embedding": null}'
    # 9 significant digits round-trip float32, 5 float16.
    digits = {"float32": ".9g", "float16": ".5g"}.get(vector.dtype.name, "d")
    numbers = ", ".join(f"{number:{digits}}" for number in vector.tolist())
    return head + f', "embedding": [{numbers}]}}'.encode()


def object_to_json(fields: dict[str, Any]) -> bytes:
    """A JSON object in UTF-8, on one line; raises ValueError for NaN and infinity, which are not valid JSON."""
    # Lone surrogates, which UTF-8 cannot encode, are escaped.
    return escaped_json(json.dumps(fields, ensure_ascii=False, allow_nan=False)).encode()


@contextmanager
def output_errors(target: Path, *partial: Path) -> Iterator[None]:
    """Raise OutputError for an OSError of the target or a file beside it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError) or error.filename not in (None, *map(str, partial)):
            raise
        raise OutputError(f"`{target}` cannot be written: {error.strerror or error}") from error
