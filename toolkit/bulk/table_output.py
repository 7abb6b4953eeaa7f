"""Write a table with its vectors: Parquet, in row groups of bounded size, or an Arrow file."""

from __future__ import annotations

import contextlib
import io
from typing import Any, BinaryIO, Protocol

from ...runtime.errors import InputError
from ..io.writers import OutputFormat
from .arrow import has_dictionary, pa

_GROUP_BYTES = 1 << 26
_GROUP_ROWS = 1 << 17
"""Bytes and rows of a row group, whichever are fewer."""


class TableWriter(Protocol):
    """Writes record batches to a file, which the caller closes."""

    def write(self, batch: pa.RecordBatch) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """Release the file, which the caller closes, after an error."""


def check_types(output_format: OutputFormat, schema: pa.Schema) -> None:
    """Raises InputError for a column whose type the format does not have."""
    if output_format is OutputFormat.PARQUET:
        for field in schema:
            if _as_parquet(pa.schema([field])) is None:
                raise InputError(
                    f"Parquet has no type for the column `{field.name}`, {field.type}",
                    hint="write Arrow: `--output FILE.arrow`",
                )
        return
    for field in schema:
        if not pa.types.is_dictionary(field.type) and has_dictionary(field.type):
            raise InputError(
                f"the column `{field.name}` has dictionaries inside of {field.type}, which an Arrow file cannot grow",
                hint="write Parquet: `--output FILE.parquet`",
            )


def _as_parquet(schema: pa.Schema) -> Any:
    """An empty Parquet file of this schema; None where that is not possible, or is read with other types."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    try:
        pq.write_table(schema.empty_table(), buffer)
        found = pq.ParquetFile(pa.BufferReader(buffer.getvalue()))
    except pa.ArrowException:
        return None
    return found if found.schema_arrow.types == schema.types else None


def table_writer(output_format: OutputFormat, file: BinaryIO, schema: pa.Schema, *, vectors: int) -> TableWriter:
    """The writer for a table; `vectors` is the index of their column."""
    if output_format is OutputFormat.PARQUET:
        return ParquetTable(file, schema, vectors=vectors)
    return ArrowTable(file, schema)


class ParquetTable:
    """Parquet. Vectors of integers are dictionary-encoded: a byte each, and not the four of Parquet's INT32."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, *, vectors: int) -> None:
        import pyarrow.parquet as pq

        leaves = _as_parquet(schema).schema
        paths = [leaves.column(number).path for number in range(len(leaves))]
        of_vectors = _as_parquet(pa.schema([schema.field(vectors)])).schema.column(0).path
        is_integer = pa.types.is_integer(schema.field(vectors).type.value_type)
        self._writer = pq.ParquetWriter(
            file,
            schema,
            compression={path: "none" if path == of_vectors else "zstd" for path in paths},
            use_dictionary=[path for path in paths if path != of_vectors or is_integer],
            write_statistics=[path for path in paths if path != of_vectors],
            write_page_checksum=True,
        )
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._bytes = self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        columns = [_without_null_values(column) for column in batch.columns]
        if self._batches and any(map(_are_too_many, self._batches[-1].columns, columns)):
            self._flush()
        self._batches.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._bytes += batch.nbytes
        self._rows += batch.num_rows
        if self._bytes >= _GROUP_BYTES or self._rows >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._batches, self._schema), row_group_size=self._rows)
        self._batches, self._bytes, self._rows = [], 0, 0

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        # Otherwise it is closed when it is deleted, and writes to a closed file.
        with contextlib.suppress(Exception):
            self._writer.close()
        self._writer.is_open = False


def _are_too_many(before: pa.Array, column: pa.Array) -> bool:
    """Whether a row group with both would have a dictionary that may be too large for its type to be read."""
    kind = column.type
    if not pa.types.is_dictionary(kind) or kind.index_type.bit_width > 16:
        return False
    values = len(before.dictionary) + len(column.dictionary)
    return values > 1 << (kind.index_type.bit_width - 1) and not column.dictionary.equals(before.dictionary)


def _without_null_values(column: pa.Array) -> pa.Array:
    """The column; one whose dictionary has nulls, which Parquet has not, with nulls in place of them."""
    if not pa.types.is_dictionary(column.type) or not column.dictionary.null_count:
        return column
    import numpy as np

    valid = column.dictionary.is_valid().to_numpy(zero_copy_only=False)
    places = pa.array(np.cumsum(valid) - 1, column.type.index_type, mask=~valid)
    indices, values = places.take(column.indices), column.dictionary.drop_null()
    return pa.DictionaryArray.from_arrays(indices, values, ordered=column.type.ordered)


class ArrowTable:
    """An Arrow file. Its dictionaries only grow, since it cannot replace one."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._writer = pa.ipc.new_file(file, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True))
        self._schema = schema
        self._dictionaries: dict[int, pa.Array] = {}

    def write(self, batch: pa.RecordBatch) -> None:
        columns = [
            self._grown(number, column) if pa.types.is_dictionary(column.type) else column
            for number, column in enumerate(batch.columns)
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def _grown(self, number: int, column: pa.DictionaryArray) -> pa.DictionaryArray:
        """The column with the dictionary of the batches before, which new values are appended to."""
        import pyarrow.compute as pc

        kind = column.type
        known = self._dictionaries.get(number, pa.array([], kind.value_type))
        # Without decoding, which would repeat a long value for each of its rows.
        values = column.dictionary.take(pc.unique(column.indices).drop_null())
        new = pc.unique(values.filter(pc.invert(pc.is_in(values, value_set=known)))).drop_null()
        if len(new):
            known = pa.concat_arrays([known, new])
        self._dictionaries[number] = known
        indices = pc.index_in(column.dictionary, value_set=known, skip_nulls=True).take(column.indices)
        try:
            indices = indices.cast(kind.index_type)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"the column `{self._schema.field(number).name}` has {len(known)} values, too many for {kind}",
                hint="write Parquet: `--output FILE.parquet`",
            ) from error
        return pa.DictionaryArray.from_arrays(indices, known, ordered=kind.ordered)

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        with contextlib.suppress(Exception):
            self._writer.close()
