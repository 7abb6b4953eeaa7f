"""Long values that repeat are stored once in Parquet: reading and writing them takes bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ortkit import Bundle
from ortkit.toolkit.bulk.parquet_size import batch_rows
from ortkit.toolkit.bulk.table_input import ParquetFiles
from tests.commands import Finished
from tests.marks import slow_but

Ortkit = Callable[..., Finished]
ROWS = 2000
LONG = 1 << 17
"""Bytes of the value that all rows have: 250 MiB of it."""


@contextmanager
def counted_memory() -> Iterator[Callable[[], int]]:
    """Count what pyarrow allocates in the block; the function gives the most at any moment."""
    before = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counting)
    try:
        yield counting.max_memory
    finally:
        pa.set_memory_pool(before)


def shared(value: object, kind: pa.DataType) -> pa.DictionaryArray:
    indices = pa.array([None if row % 100 == 3 else 0 for row in range(ROWS)], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array([value], kind))


def column_of(name: str) -> pa.Array:
    """A column of which each row has LONG bytes, and the file a few."""
    strings = shared("é" * (LONG // 2), pa.string())
    offsets = pa.array(range(ROWS + 1), pa.int32())
    keys = pa.array(["key"] * ROWS).dictionary_encode()
    make: dict[str, Callable[[], pa.Array]] = {
        "string": lambda: strings,
        "large_string": lambda: shared("x" * LONG, pa.large_string()),
        "binary": lambda: shared(b"\xff" * LONG, pa.binary()),
        "list": lambda: pa.ListArray.from_arrays(offsets, strings),
        "struct": lambda: pa.StructArray.from_arrays([pa.array(range(ROWS)), strings], ["page", "note"]),
        "map": lambda: pa.MapArray.from_arrays(offsets, keys, strings),
        "fixed_size_binary": lambda: pa.array([b"z" * LONG] * ROWS, pa.binary(LONG)),
        "numbers": lambda: pa.FixedSizeListArray.from_arrays(np.full(ROWS * (LONG // 8), 7), LONG // 8),
    }
    return make[name]()


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries, which the file's readers see."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    return pa.list_(plain_type(kind.value_type)) if pa.types.is_list(kind) else kind


KINDS = ["string", "large_string", "binary", "list", "struct", "map", "fixed_size_binary", "numbers"]


@pytest.mark.parametrize("name", slow_but(["list", "string"], KINDS))
def test_values_that_repeat_take_bounded_memory(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, name: str
) -> None:
    path, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    given = pa.table({"text": [f"fox {row}" for row in range(ROWS)], "page": column_of(name)})
    small = given.slice(0, 5)
    with pq.ParquetWriter(path, given.schema, store_schema=False) as writer:
        writer.write_table(given)
    expected = small.cast(pa.schema([("text", pa.string()), ("page", plain_type(given.schema.field("page").type))]))
    del given

    with counted_memory() as most:
        finished = ortkit("embed", small_embedder.path, "--input", path, "--output", target)
        assert finished.code == 0, finished.err
        assert most() < 200 << 20

    found = pq.ParquetFile(target)
    assert found.metadata.num_rows == ROWS
    assert found.schema_arrow.field("page").type.equals(ParquetFiles([path], "text").schema.field("page").type)
    [first, *_] = found.iter_batches(5)
    assert first.column("page").to_pylist() == expected["page"].to_pylist()
    assert target.stat().st_size < 20 << 20


def test_a_text_that_repeats_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    texts = column_of("string")
    with pq.ParquetWriter(path, pa.schema([("text", texts.type)]), store_schema=False) as writer:
        writer.write_table(pa.table({"text": texts}))
    table = ParquetFiles([path], "text")
    records, batches = table.records(), table.batches()

    with counted_memory() as most:
        sizes = [record.size for record in records.records(None)]
        assert sum(batch.num_rows for batch in batches) == ROWS
        assert most() < 200 << 20

    assert sizes == [0 if row % 100 == 3 else LONG for row in range(ROWS)]
    assert records.digest == batches.digest


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        # Bytes of a batch / bytes of the dictionary, of which each value has 4 more.
        (pa.array(["a" * 996, "b" * 996] * 500), 1_000_000 // 2000),
        # Twice a row.
        (pa.array([["a" * 996, "b" * 996]] * 500), 1_000_000 // 4000),
        # The table itself has it as a dictionary: four bytes a row.
        (pa.array(["a" * 100] * 500).dictionary_encode(), 1_000_000 // 4),
        (pa.array([7] * 500, pa.int64()), 1_000_000 // 8),
        (pa.array([[7] * 10] * 500, pa.list_(pa.int32())), 1_000_000 // 40),
        (pa.array([b"a" * 1000] * 500, pa.binary(1000)), 1_000_000 // 1000),
        # Longer than a sixteenth of a batch: as many as fit.
        (pa.array(["a" * 300_000] * 500), 3),
        (pa.array(["a" * 2_000_000] * 500), 1),
        (pa.array([None] * 500, pa.string()), 1_000_000 // 4),
    ],
)
def test_rows_of_a_batch(tmp_path: Path, column: pa.Array, expected: int) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"column": column}), path)

    with path.open("rb") as file:
        assert batch_rows(pq.ParquetFile(path), file, None, most=1_000_000) == expected


def test_the_rows_of_plain_values_are_by_their_average(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"column": ["a" * 996] * 500}), path, use_dictionary=False)

    with path.open("rb") as file:
        assert 980 <= batch_rows(pq.ParquetFile(path), file, None, most=1_000_000) <= 1000


def test_many_columns_with_dictionaries_are_read_some_rows_at_once(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({f"column {n}": ["a" * 10_000] * 500 for n in range(50)}), path)

    with path.open("rb") as file:
        assert batch_rows(pq.ParquetFile(path), file, None, most=1_000_000) == 16
        assert batch_rows(pq.ParquetFile(path), file, ["column 3"], most=1_000_000) == 99


def test_dictionaries_of_row_groups_are_not_joined(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    """Each of three row groups has 100 values of its own, and int8 has room for 128."""
    path, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    schema = pa.schema([("text", pa.string()), ("kind", pa.dictionary(pa.int8(), pa.string()))])
    kinds = [[f"{group} {row}" for row in range(100)] for group in range(3)]
    with pq.ParquetWriter(path, schema) as writer:
        for values in kinds:
            texts = pa.array([f"fox {value}" for value in values])
            writer.write_table(pa.table([texts, pa.array(values, schema.field(1).type)], schema=schema))

    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", target)

    assert finished.code == 0, finished.err
    written = pq.ParquetFile(target)
    assert [written.read_row_group(group)["kind"].to_pylist() for group in range(3)] == kinds
