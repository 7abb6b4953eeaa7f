"""Vectors written as they come: jsonl, json and npy."""

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
    """How vectors are written."""

    JSONL = "jsonl"
    JSON = "json"
    NPY = "npy"


class Writer(Protocol):
    """Writes a row for each record as they come, and at the end what must come then.

    `failed` are the places in `records` of those that have no vector, whose rows in `vectors` mean nothing.
    """

    def write(self, records: Sequence[Record], vectors: NDArray[Any], /, *, failed: Container[int] = ()) -> None: ...

    def close(self) -> None: ...


class _JsonlWriter:
    """An object a line: the fields that came in, and `embedding`, which is null for a record that failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, records: Sequence[Record], vectors: NDArray[Any], *, failed: Container[int] = ()) -> None:
        for index, record in enumerate(records):
            self.file.write(_to_json(record, None if index in failed else vectors[index]) + b"\n")
        self.file.flush()

    def close(self) -> None:
        pass


class _JsonWriter:
    """One array of the objects that _JsonlWriter writes a line each; `rows` are in the file already."""

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
    """A numpy file for a reader that cannot seek: its header says how many rows follow, so all are kept until then."""

    def __init__(self, file: BinaryIO, empty: NDArray[Any]) -> None:
        self.file = file
        self.empty = empty
        self.vectors: list[NDArray[Any]] = []

    def write(self, _records: Sequence[Record], vectors: NDArray[Any], *, failed: Container[int] = ()) -> None:
        self.vectors.append(_blanked(vectors, failed))

    def close(self) -> None:
        _write_header(self.file, self.empty, rows=sum(map(len, self.vectors)))
        for vectors in self.vectors:
            self.file.write(vectors.tobytes())


class NpyWriter:
    """A numpy file written row by row, with the header put right at the end; `rows` are in the file already.

    A record that failed has a row of NaN, or of zeros where the type has none.
    """

    def __init__(self, file: BinaryIO, empty: NDArray[Any], *, rows: int = 0) -> None:
        self.file = file
        self.empty = empty
        self.rows = rows
        if rows == 0:
            _write_header(file, empty, rows=0)

    def write(self, _records: Sequence[Record], vectors: NDArray[Any], *, failed: Container[int] = ()) -> None:
        self.file.write(_blanked(vectors, failed).tobytes())
        self.rows += len(vectors)

    def close(self) -> None:
        self.file.seek(0)
        # numpy leaves room for the number of rows to grow, so the header has the same length at any time.
        _write_header(self.file, self.empty, rows=self.rows)


def writer_for(output_format: OutputFormat, file: BinaryIO, *, empty: NDArray[Any], rows: int = 0) -> Writer:
    """The writer to a file that can seek and holds `rows` already; `empty` (0, numbers) is of the vectors' type."""
    if output_format is OutputFormat.NPY:
        return NpyWriter(file, empty, rows=rows)
    return _JsonWriter(file, rows=rows) if output_format is OutputFormat.JSON else _JsonlWriter(file)


def _write_header(file: BinaryIO, empty: NDArray[Any], *, rows: int) -> None:
    """The header of a numpy file for so many rows, whose bytes follow; `empty` (0, numbers) is of their type.

    np.save is not for what may fail: its errors say nothing of why the system refused.
    """
    import numpy as np

    header = np.lib.format.header_data_from_array_1_0(empty) | {"shape": (rows, empty.shape[1])}
    np.lib.format.write_array_header_1_0(file, header)


def _blanked(vectors: NDArray[Any], failed: Container[int]) -> NDArray[Any]:
    import numpy as np

    blank = np.nan if np.issubdtype(vectors.dtype, np.floating) else 0
    rows = [index for index in range(len(vectors)) if index in failed]
    if rows:
        vectors[rows] = blank
    return vectors


def write_ranges(path: Path, ranges: NDArray[np.float32]) -> None:
    """Keep the ranges by which int8 vectors are stored, since what is compared with them needs the same."""
    with path.open("wb") as file:
        _write_header(file, ranges[:0], rows=len(ranges))
        file.write(ranges.tobytes())
    click.echo(
        f"{fresh_line()}note: the ranges that int8 covers are in `{path}`; give queries the same with `--ranges`",
        err=True,
    )


def _to_json(record: Record, vector: NDArray[np.generic] | None) -> bytes:
    fields = {name: value for name, value in record.fields.items() if name != "embedding"}
    head = object_to_json(fields)[:-1]
    if vector is None:
        return head + b', "embedding": null}'
    # Nine significant digits give every float32 back exactly, and five every float16.
    digits = {"float32": ".9g", "float16": ".5g"}.get(vector.dtype.name, "d")
    numbers = ", ".join(f"{number:{digits}}" for number in vector.tolist())
    return head + f', "embedding": [{numbers}]}}'.encode()


def object_to_json(fields: dict[str, Any]) -> bytes:
    """A JSON object in UTF-8, on one line; raises ValueError for NaN and infinity, which are not valid JSON."""
    # Half a character, which JSON can hold and UTF-8 cannot, goes out escaped as it came in.
    return escaped_json(json.dumps(fields, ensure_ascii=False, allow_nan=False)).encode()


@contextmanager
def output_errors(target: Path, *partial: Path) -> Iterator[None]:
    """Say in ortkit's words that the target, or a file written beside it, cannot be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError) or error.filename not in (None, *map(str, partial)):
            raise
        raise OutputError(f"`{target}` cannot be written: {error.strerror or error}") from error
