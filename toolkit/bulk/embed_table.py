"""`ortkit embed --output FILE.parquet`: a table with a column of vectors, resumable and written at once.

The vectors are kept as npy beside the output until all are computed, and a killed run resumes after them. Then the
table is read again and written with them; a run that is killed there writes it from the beginning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ...runtime.errors import InputError
from ...runtime.output_path import flush_folder
from ..console.progress import Progress, byte_progress
from ..io.embed_file import embed_to_file
from ..io.embed_run import EmbedRun
from ..io.resumable import OutputFiles, ResumeState, open_regular
from .arrow import check_names, check_new, error_column, pa, vector_column, vector_type, with_columns
from .table_input import TableInput
from .table_output import TableWriter, check_types, table_writer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class NewColumns:
    """Names of the columns that a table gets."""

    embedding: str = "embedding"
    error: str = "error"

    def check(self, schema: pa.Schema) -> None:
        """Raises InputError for a name that the table has already."""
        first, second = (self.embedding, "--embedding-column"), (self.error, "--error-column")
        check_new(schema, check_names(first, second))


def embed_table(
    run: EmbedRun, table: TableInput, *, columns: NewColumns, target: Path, restart: bool, progress: Progress
) -> ResumeState:
    """Embed the texts of a table and write it with them; raises as `embed_to_file` does.

    InputError, before anything is embedded, for columns that cannot be added or written.
    """
    columns.check(table.schema)
    schema = table.schema.append(pa.field(columns.embedding, vector_type(run.empty.vectors)))
    schema = schema.append(pa.field(columns.error, pa.string()))
    check_types(run.options.output_format, schema)

    records = table.records()

    def finish(files: OutputFiles, done: ResumeState, file: BinaryIO) -> None:
        with os.fdopen(open_regular(files.table, os.O_RDWR | os.O_CREAT | os.O_TRUNC), "r+b") as written:
            writer = table_writer(run.options.output_format, written, schema, vectors=len(table.schema))
            try:
                with files.failed_partial.open("rb") as failures:
                    digest = _write(table, writer, schema, vectors=file, failures=failures, rows=done.rows)
                _check_unchanged(digest == records.digest)
                writer.close()
            except BaseException:
                writer.abandon()
                raise
            written.flush()
            os.fsync(written.fileno())
        files.table.replace(files.target)
        flush_folder(files.target.parent)

    return embed_to_file(run, records, target=target, restart=restart, progress=progress, finish=finish)


def _write(
    table: TableInput, writer: TableWriter, schema: pa.Schema, *, vectors: BinaryIO, failures: BinaryIO, rows: int
) -> str:
    """Write a table with its `rows` vectors and its errors; returns the digest of its texts."""
    computed, errors = _Vectors(vectors), _Errors(failures)
    batches = table.batches()
    left = rows
    with byte_progress("writing", rows * computed.row_bytes) as shown:
        for batch in batches:
            left -= batch.num_rows
            _check_unchanged(left >= 0)
            found, failed = computed.next(batch.num_rows), errors.next(batch.num_rows)
            added = [vector_column(found, failed), error_column(batch.num_rows, failed)]
            writer.write(with_columns(batch, schema, added))
            shown(found.nbytes)
    return batches.digest


def _check_unchanged(unchanged: bool) -> None:  # noqa: FBT001 - what it checks
    if not unchanged:
        raise InputError(
            "the input was changed while it was embedded",
            hint="repeat the command with `--restart` when it is complete",
        )


class _Vectors:
    """The rows of an npy file, read one after another."""

    def __init__(self, file: BinaryIO) -> None:
        from numpy.lib import format as npy

        self._file = file
        file.seek(0)
        npy.read_magic(file)
        (_, self._width), _, self._dtype = npy.read_array_header_1_0(file)
        self.row_bytes = self._width * self._dtype.itemsize

    def next(self, rows: int) -> NDArray[np.generic]:
        import numpy as np

        read = self._file.read(rows * self.row_bytes)
        return np.frombuffer(read, self._dtype).reshape(rows, self._width)


class _Errors:
    """Lines of failures, `[row, message]`, by ascending rows."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines: Iterator[tuple[int, str]] = (tuple(json.loads(line)) for line in file)
        self._ahead = next(self._lines, None)
        self._row = 0

    def next(self, rows: int) -> dict[int, str]:
        """The errors of the next rows, by their index in these."""
        found = {}
        while self._ahead is not None and self._ahead[0] < self._row + rows:
            found[self._ahead[0] - self._row] = self._ahead[1]
            self._ahead = next(self._lines, None)
        self._row += rows
        return found
