"""What `Embed` and `Rerank` share: a bundle by its path, two new columns, and batches one after another."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from ...runtime.arguments import checked_path
from .arrow import check_names, check_new, pa


class TableFunction(ABC):
    """Adds the columns `into` and `errors` to a pyarrow Table or RecordBatch; pickled by reference."""

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        into: str,
        errors: str,
        workers: int | None,
        max_memory: int | None,
    ) -> None:
        # The processes of an engine have another working folder.
        self.bundle = os.path.abspath(checked_path(bundle, "bundle"))  # noqa: PTH100 - an absolute path, links as they are
        self.into = into
        self.errors = errors
        self.workers = workers
        self.max_memory = max_memory
        self._new = check_names((into, "into"), (errors, "errors"))

    @abstractmethod
    def __call__(self, batch: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
        """The table or record batch with the columns `into` and `errors`."""

    @abstractmethod
    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the result, for a table of this schema."""

    def batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Add the columns to record batches one after another, as Spark's `mapInArrow` hands them over."""
        return map(self, batches)

    def _with_new(self, schema: pa.Schema, kind: pa.DataType) -> pa.Schema:
        """A schema with both columns, `into` of this type; raises InputError for one that it has already."""
        check_new(schema, self._new)
        return schema.append(pa.field(self.into, kind)).append(pa.field(self.errors, pa.string()))
