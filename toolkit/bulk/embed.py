"""`ortkit.bulk.Embed`: a column of texts to a column of embeddings, for engines that work on tables of pyarrow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from ...runtime.arguments import checked_flag
from ...runtime.encoder.base import CHUNK, TruncationWarning
from ...runtime.encoder.batching import in_chunks
from ...runtime.encoder.embedder import Embedder, truncation_message
from ..io.embed_run import EmbedRun, RunOptions, embed_chunk
from ..io.input_format import InputFormat
from ..io.writers import OutputFormat, Record
from .arrow import (
    check_batch,
    check_name,
    error_column,
    pa,
    record_of,
    text_index,
    texts_of,
    vector_column,
    with_columns,
)
from .opened import opened
from .table_function import TableFunction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Batch = TypeVar("Batch")


class Embed(TableFunction):
    """Embed a column of a pyarrow Table or RecordBatch; the other columns and the rows' order stay.

    A row that fails has a null embedding, and the column `errors` says why; it is null for all others. The embeddings
    are those of `Embedder.embed`, bit for bit, whatever the batches and the process.

    An instance is pickled by reference: each process opens the bundle at this path once, at the first batch, and each
    machine verifies its large files once. `workers` is how many CPU cores the engine gives to a process; by default
    all that it may use.

        >>> import pyarrow as pa
        >>> embed = Embed(embedder_bundle.path, workers=1)
        >>> found = embed(pa.table({"id": [7, 8], "text": ["hello", None]}))
        >>> found.column_names, found["error"].to_pylist()
        (['id', 'text', 'embedding', 'error'], [None, 'the text is null'])
        >>> found["embedding"].type
        FixedSizeListType(fixed_size_list<item: float>[384])

    `fixed_size=False` gives lists of variable size, which Spark needs. `prompt`, `dim`, `dtype`, `ranges`, `long` and
    `max_memory` are those of `Embedder`. Raises InputError for a column that is missing, is not of strings, or is there
    already, and what `Embedder` raises.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        column: str = "text",
        into: str = "embedding",
        errors: str = "error",
        fixed_size: bool = True,
        workers: int | None = None,
        prompt: str | None = None,
        dim: int | None = None,
        dtype: str = "float32",
        ranges: NDArray[np.float32] | None = None,
        long: str = "truncate",
        max_memory: int | None = None,
    ) -> None:
        super().__init__(bundle, into=into, errors=errors, workers=workers, max_memory=max_memory)
        self.column = column
        self.fixed_size = checked_flag(fixed_size, "fixed_size")
        self.ranges = ranges
        self.options = RunOptions(
            OutputFormat.ARROW, InputFormat.AUTO, column, prompt, dim, dtype, ranges_sha256=None, long=long
        )
        check_name(column, "column")

    def __call__(self, batch: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
        """The table or record batch with the columns `into` and `errors`."""
        check_batch(batch)
        schema, index = self._schemas(batch.schema)
        run = self._run()
        records = (record_of(raw, row) for row, raw in enumerate(texts_of(batch.column(index)), 1))
        vectors, errors = _embed(run, records, rows=batch.num_rows)
        return with_columns(batch, schema, [self._column(vectors, errors), error_column(batch.num_rows, errors)])

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the result, for a table of this schema."""
        return self._schemas(schema)[0]

    def _schemas(self, schema: pa.Schema) -> tuple[pa.Schema, int]:
        """The schema of the result, and the index of the texts."""
        index = text_index(schema, self.column, option="column")
        return self._with_new(schema, self._column(self._run().empty.vectors, ()).type), index

    def _column(self, vectors: NDArray[np.generic], failed: Iterable[int]) -> pa.Array:
        column = vector_column(vectors, failed)
        return column if self.fixed_size else column.cast(pa.list_(column.type.value_type))

    def _run(self) -> EmbedRun:
        embedder = opened(Embedder, self.bundle, workers=self.workers, max_memory=self.max_memory)
        return EmbedRun(embedder, self.options, self.ranges)

    def __repr__(self) -> str:
        return f"<Embed {self.bundle!r}: `{self.column}` into `{self.into}`>"


def _embed(run: EmbedRun, records: Iterable[Record], *, rows: int) -> tuple[NDArray[np.generic], dict[int, str]]:
    """The vectors (rows, width), zeros for rows that failed, and the errors of these."""
    import numpy as np

    empty = run.empty.vectors
    vectors = np.zeros((rows, empty.shape[1]), empty.dtype)
    errors: dict[int, str] = {}
    done = cut = 0
    for chunk in in_chunks(records, CHUNK, size=_size_of, most=run.embedder.chunk_characters):
        found, failed, warned = embed_chunk(run, chunk)
        fine = [place for place in range(len(chunk)) if place not in failed]
        vectors[[done + place for place in fine]] = found[fine]
        errors |= {done + place: error.message for place, error in failed.items()}
        cut += warned.cut.count
        done += len(chunk)
    if cut:
        message = truncation_message(cut, rows, run.embedder.max_length)
        # Points to the caller of the instance.
        warnings.warn(message, TruncationWarning, stacklevel=3)
    return vectors, errors


def _size_of(record: Record) -> int:
    return record.size
