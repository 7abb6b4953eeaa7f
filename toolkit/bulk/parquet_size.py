"""How much memory rows of a Parquet file may take: values that repeat are stored once, and each row has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from .arrow import pa

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
"""Least bytes of a value in memory by its type in Parquet; strings and bytes have an index or offset."""
_FEW_ROWS = 16
_HEADER = 16
"""Bytes of a page's header that are looked at."""


def batch_rows(parquet: Any, file: BinaryIO, columns: Sequence[str] | None, *, most: int) -> int:
    """Rows that take at most about `most` bytes, at least 1, by the sizes of all row groups; `file` is the same file.

    `columns` are those that are read, which are not nested; None for all. Numbers count by their width, strings as the
    average of their column, or as all of its dictionary where they have one: each row may have the longest value of it.
    """
    schema, metadata = parquet.schema, parquet.metadata
    # What the table itself has as dictionaries is not decoded.
    dictionaries = {field.name for field in parquet.schema_arrow if pa.types.is_dictionary(field.type)}
    rows = most
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        average = longest = values = 0.0
        for number, chunk in enumerate(map(group.column, range(group.num_columns))):
            path = chunk.path_in_schema
            if columns is not None and path not in columns:
                continue
            of_row = chunk.num_values / max(group.num_rows, 1)
            width = _WIDTHS.get(chunk.physical_type) or schema.column(number).length
            average += max(chunk.total_uncompressed_size / max(group.num_rows, 1), of_row * width)
            if chunk.physical_type == "BYTE_ARRAY" and path not in dictionaries:
                value = of_row * _dictionary_size(file, chunk)
                longest = max(longest, value)
                values += value
        # That all columns have their longest values in the same rows is unlikely.
        unlikely = min(_FEW_ROWS, most / max(longest, 1))
        rows = min(rows, int(min(most / max(average, 1), max(most / max(values, 1), unlikely))))
    return max(rows, 1)


def _dictionary_size(file: BinaryIO, chunk: Any) -> int:
    """Bytes of the dictionary of a column in a row group, uncompressed; 0 without one.

    From the header of its first page, PageHeader of parquet.thrift in the compact protocol: field 1 is the type of the
    page, field 2 its size.
    """
    file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
    header = file.read(_HEADER)
    if len(header) < _HEADER or header[0] != _NEXT_I32 or header[2] != _NEXT_I32:
        # Another writer of Thrift: no value is longer than all of them.
        return int(chunk.total_uncompressed_size)
    return _varint(header[3:]) >> 1 if header[1] == _DICTIONARY_PAGE else 0


_NEXT_I32 = 0x15
"""A field of the type i32, the next one by its number."""
_DICTIONARY_PAGE = 2 << 1
"""The type of the page, as a zigzag varint."""


def _varint(encoded: bytes) -> int:
    value = 0
    for place, byte in enumerate(encoded):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return value
