"""`ortkit.bulk.Rerank`: columns of queries and documents to a column of scores, for engines that work on pyarrow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ...runtime.encoder.base import TruncationWarning
from ...runtime.encoder.batching import in_chunks
from ...runtime.encoder.reranker import Reranker, truncation_message
from ...runtime.errors import TextError, TextTooLongError
from ..io.texts import TextRecord
from .arrow import (
    check_batch,
    check_name,
    error_column,
    pa,
    record_of,
    text_index,
    texts_of,
    with_columns,
)
from .opened import opened
from .table_function import TableFunction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 512
"""Pairs that are scored together."""


class Rerank(TableFunction):
    """Score each row of a pyarrow Table or RecordBatch: how relevant its document is to its query.

    The other columns and the rows' order stay. A row that fails has a null score, and the column `errors` says why; it
    is null for all others. The scores are those of `Reranker.score`, bit for bit, whatever the batches and the process.

        >>> import pyarrow as pa
        >>> rerank = Rerank(reranker_bundle.path, query="q", document="d", workers=1)
        >>> found = rerank(pa.table({"q": ["a fox", " "], "d": ["The quick brown fox", "a dog"]}))
        >>> found["score"].type, found["error"].to_pylist()
        (DataType(double), [None, 'the query is empty'])

    `query` and `document` are columns of strings. An instance is pickled by reference, and `workers` is how many CPU
    cores the engine gives to a process, as with `Embed`. `scores`, `label`, `long` and `max_memory` are those of
    `Reranker`. Raises InputError for a column that is missing, is not of strings, or is there already, and what
    `Reranker` raises.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        query: str = "query",
        document: str = "text",
        into: str = "score",
        errors: str = "error",
        workers: int | None = None,
        scores: str | None = None,
        label: str | None = None,
        long: str = "truncate",
        max_memory: int | None = None,
    ) -> None:
        super().__init__(bundle, into=into, errors=errors, workers=workers, max_memory=max_memory)
        self.query = query
        self.document = document
        self.scores = scores
        self.label = label
        self.long = long
        check_name(query, "query")
        check_name(document, "document")

    def __call__(self, batch: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
        """The table or record batch with the columns `into` and `errors`."""
        check_batch(batch)
        schema = self.schema(batch.schema)
        queries = texts_of(batch.column(text_index(batch.schema, self.query, option="query")))
        documents = texts_of(batch.column(text_index(batch.schema, self.document, option="document")))
        reranker = opened(Reranker, self.bundle, workers=self.workers, max_memory=self.max_memory)
        scores, errors = self._scored(reranker, zip(queries, documents, strict=True), rows=batch.num_rows)
        column = pa.array((None if row in errors else float(score) for row, score in enumerate(scores)), pa.float64())
        return with_columns(batch, schema, [column, error_column(batch.num_rows, errors)])

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the result, for a table of this schema."""
        text_index(schema, self.query, option="query")
        text_index(schema, self.document, option="document")
        return self._with_new(schema, pa.float64())

    def _scored(
        self, reranker: Reranker, texts: Iterable[tuple[bytes | None, bytes | None]], *, rows: int
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """The score of each row, 0 for those that failed, and the errors of these."""
        import numpy as np

        scores = np.zeros(rows)
        errors: dict[int, str] = {}
        cut = 0
        # Also without rows, options that are not valid are errors.
        reranker.scores_of(reranker.score_with_report([], long=self.long), scores=self.scores, label=self.label)
        pairs = (_pair_of(row, query, document) for row, (query, document) in enumerate(texts))
        for chunk in in_chunks(pairs, _CHUNK, size=_size_of, most=reranker.chunk_characters):
            errors |= {pair.row: pair.error for pair in chunk if pair.error is not None}
            fine = [pair for pair in chunk if pair.error is None]
            while True:
                try:
                    found = reranker.score_with_report([(pair.query, pair.document) for pair in fine], long=self.long)
                    break
                except TextError as error:
                    if not error.texts:
                        raise
                    errors |= {fine[place].row: _message(error, reranker.max_length) for place in error.texts}
                    fine = [pair for pair in fine if pair.row not in errors]
            scores[[pair.row for pair in fine]] = reranker.scores_of(found, scores=self.scores, label=self.label)
            cut += len(found.truncated)
        if cut:
            # Points to the caller of the instance.
            warnings.warn(truncation_message(cut, rows, reranker.max_length), TruncationWarning, stacklevel=3)
        return scores, errors

    def __repr__(self) -> str:
        return f"<Rerank {self.bundle!r}: `{self.query}` and `{self.document}` into `{self.into}`>"


class _Pair(NamedTuple):
    """The query and the document of a row, or why there are none."""

    row: int
    query: str = ""
    document: str = ""
    error: str | None = None


def _pair_of(row: int, query: bytes | None, document: bytes | None) -> _Pair:
    texts = []
    for subject, raw in (("the query", query), ("the document", document)):
        found = record_of(raw, row, subject)
        if not isinstance(found, TextRecord):
            return _Pair(row, error=found.error.message)
        texts.append(found.text)
    if not texts[0].strip():
        return _Pair(row, error="the query is empty")
    return _Pair(row, *texts)


def _size_of(pair: _Pair) -> int:
    return len(pair.query) + len(pair.document)


def _message(error: TextError, max_length: int) -> str:
    if isinstance(error, TextTooLongError):
        return f"the query and the document are longer than the model's limit of {max_length} tokens"
    return f"the document with its query {error.fault}"
