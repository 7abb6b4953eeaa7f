"""pyarrow, an optional dependency, and the columns of texts, vectors and errors of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...runtime.errors import InputError, MissingPartError
from ..io.inputs import FailedRecord
from ..io.json_values import quoted
from ..io.texts import TextRecord
from ..io.writers import Record

try:
    import pyarrow as pa
except ImportError as error:
    raise MissingPartError(
        "Parquet and Arrow tables need the Python package `pyarrow`, which is not installed",
        hint="install it: `pip install 'ortkit[arrow]'`",
    ) from error

__all__ = [
    "SUBJECT",
    "bytes_of",
    "check_batch",
    "check_name",
    "check_names",
    "check_new",
    "error_column",
    "has_dictionary",
    "is_text",
    "pa",
    "record_of",
    "text_index",
    "texts_of",
    "vector_column",
    "vector_type",
    "with_columns",
]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUBJECT = "the text"
"""The subject of messages in the column of errors."""


def check_batch(batch: object) -> None:
    """Raises InputError for what an engine hands over in another format."""
    if not isinstance(batch, (pa.Table, pa.RecordBatch)):
        raise InputError(
            f"a batch must be a pyarrow Table or RecordBatch, not {type(batch).__name__}",
            hint='Ray Data hands over tables with `batch_format="pyarrow"`, and Spark with `mapInArrow`',
        )


def check_name(name: object, option: str) -> None:
    """Raises InputError for what cannot be the name of a column."""
    if not isinstance(name, str):
        raise InputError(f"`{option}` must be the name of a column, not {type(name).__name__}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"`{option}` is not valid UTF-8 or Unicode, which names of columns are") from error


def text_index(schema: pa.Schema, name: str, *, option: str) -> int:
    """The index of a column of texts; raises InputError where there is none of this name, or it has another type."""
    check_name(name, option)
    found = schema.get_all_field_indices(name)
    if len(found) > 1:
        raise InputError(f"the table has {len(found)} columns `{name}`", hint="rename one of them")
    texts = [field.name for field in schema if is_text(field.type) and field.name != name]
    hint = f"columns of texts: {quoted(texts)}; name one with `{option}`" if texts else None
    if not found:
        columns = f"its columns are {quoted(schema.names)}" if schema.names else "it has no columns"
        raise InputError(f"the table has no column `{name}`; {columns}", hint=hint)
    if not is_text(schema.field(found[0]).type):
        raise InputError(
            f"the column `{name}` has the type {schema.field(found[0]).type} and not texts",
            hint=hint or "make a column of strings of it",
        )
    return int(found[0])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column has strings, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def has_dictionary(kind: pa.DataType) -> bool:
    """Whether a type is that of dictionaries, or has them inside."""
    if pa.types.is_dictionary(kind):
        return True
    return any(has_dictionary(kind.field(number).type) for number in range(kind.num_fields))


def check_new(schema: pa.Schema, names: Mapping[str, str]) -> None:
    """Raises InputError for new columns, by the option that names each, that the table has already or that are one."""
    for name, option in names.items():
        if name in schema.names:
            raise InputError(
                f"the table has a column `{name}` already", hint=f"choose another name for the new one with `{option}`"
            )


def check_names(first: tuple[str, str], second: tuple[str, str]) -> dict[str, str]:
    """Two new columns and their options; raises InputError for what is not a name, and if both have the same."""
    for name, option in (first, second):
        check_name(name, option)
        if not name:
            raise InputError(f"`{option}` must not be empty", hint="name a column")
    if first[0] == second[0]:
        raise InputError(f"`{first[1]}` and `{second[1]}` both name the column `{first[0]}`", hint="name two columns")
    return dict((first, second))


def bytes_of(column: pa.Array) -> list[bytes | None]:
    """The texts of a column in UTF-8, which pyarrow does not check; None for null."""
    if pa.types.is_dictionary(column.type):
        # Without decoding, which would repeat a long text for each of its rows.
        values = bytes_of(column.dictionary)
        return [None if place is None else values[place] for place in column.indices.to_pylist()]
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    large = pa.types.is_large_string(column.type)
    found: list[bytes | None] = column.cast(pa.large_binary() if large else pa.binary()).to_pylist()
    return found


def record_of(raw: bytes | None, row: int, subject: str = SUBJECT) -> Record:
    """The text of a row, counted from 1; FailedRecord for null and for bytes that are not UTF-8."""
    where = f"row {row}"
    if raw is None:
        return FailedRecord(InputError(f"{subject} is null"), {}, where, 0)
    try:
        return TextRecord(raw.decode("utf-8"), {}, where, len(raw), subject)
    except UnicodeDecodeError as error:
        fault = InputError(f"{subject} is not valid UTF-8 at byte {error.start + 1}")
        return FailedRecord(fault, {}, where, len(raw))


def texts_of(column: pa.ChunkedArray | pa.Array) -> Iterator[bytes | None]:
    """The texts of a column of a table or a record batch."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return (raw for chunk in chunks for raw in bytes_of(chunk))


def vector_type(empty: NDArray[Any]) -> pa.DataType:
    """The type of a column of vectors, from an array (0, width)."""
    return pa.list_(pa.from_numpy_dtype(empty.dtype), empty.shape[1])


def vector_column(vectors: NDArray[Any], failed: Iterable[int]) -> pa.Array:
    """A column of the vectors (rows, width), null where `failed`; the bytes of the others are those of `vectors`."""
    return pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), type=vector_type(vectors), mask=_mask(len(vectors), failed)
    )


def _mask(rows: int, failed: Iterable[int]) -> pa.Array | None:
    import numpy as np

    places = list(failed)
    if not places:
        return None
    mask: NDArray[np.bool_] = np.zeros(rows, bool)
    mask[places] = True
    return pa.array(mask)


def error_column(rows: int, errors: Mapping[int, str]) -> pa.Array:
    """A column of error messages, null where there is none."""
    return pa.array((errors.get(row) for row in range(rows)), pa.string(), size=rows)


def with_columns(table: pa.Table | pa.RecordBatch, schema: pa.Schema, columns: Sequence[pa.Array]) -> Any:
    """A table or a record batch with more columns; `schema` has them too."""
    kind = type(table)
    return kind.from_arrays([*table.columns, *columns], schema=schema)
