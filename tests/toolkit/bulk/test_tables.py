"""`ortkit embed --output FILE.parquet`: columns pass through, failures stand in a column, killed runs resume."""

from __future__ import annotations

import builtins
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from ortkit import Bundle, Embedder, Embeddings
from ortkit.bulk import Embed
from ortkit.toolkit.bulk import table_output
from tests.commands import Finished
from tests.toolkit.embed_runs import Killed, break_after, names

Ortkit = Callable[..., Finished]


def corpus(rows: int) -> pa.Table:
    """A table with columns of many types; every 50th text is null."""
    texts = [None if row % 50 == 7 else f"the fox {'lazy ' * (row % 9)}{row}" for row in range(rows)]
    schema = pa.schema(
        [
            pa.field("id", pa.int16(), metadata={"unit": "n"}),
            pa.field("text", pa.string()),
            pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
            pa.field("when", pa.timestamp("us", "UTC")),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("place", pa.struct([("page", pa.int64()), ("note", pa.large_string())])),
            pa.field("price", pa.decimal128(9, 2)),
        ],
        metadata={"made": "by hand"},
    )
    columns = [
        pa.array(range(rows), pa.int16()),
        pa.array(texts),
        pa.array([f"kind {row % 5}" for row in range(rows)]).dictionary_encode().cast(schema.field("kind").type),
        pa.array(range(rows), pa.int64()).cast(pa.timestamp("us", "UTC")),
        pa.array([["a"] * (row % 3) for row in range(rows)], pa.list_(pa.string())),
        pa.array([{"page": row, "note": None} for row in range(rows)], schema.field("place").type),
        pa.array(range(rows), pa.int32()).cast(pa.decimal128(12, 2)).cast(pa.decimal128(9, 2)),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def written(path: Path, table: pa.Table, *, rows: int = 30) -> Path:
    """A table as a file of the format of its name, in small row groups or record batches."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    else:
        make = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
        with make(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


def read(path: Path) -> pa.Table:
    return pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()


def vectors_of(table: pa.Table, name: str = "embedding") -> bytes:
    return np.asarray(table[name].combine_chunks().drop_null().flatten()).tobytes()


@pytest.mark.parametrize("output", ["out.parquet", "out.arrow", "out.feather"])
@pytest.mark.parametrize("source", ["in.parquet", "in.arrow", "in.arrows"])
def test_columns_pass_through_and_failures_stand_in_a_column(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, source: str, output: str
) -> None:
    given = corpus(110)
    path, target = written(tmp_path / source, given), tmp_path / output

    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", target)

    assert finished.code == 1
    assert finished.err == (
        "error: 3 of 110 records failed and have no embedding\n\nhint: the column `error` has the reason for each\n"
    )
    found = read(target)
    passed = found.drop_columns(["embedding", "error"])
    assert passed.schema.equals(given.schema)
    assert passed.schema.metadata == given.schema.metadata
    assert passed.schema.field("id").metadata[b"unit"] == b"n"
    assert passed.to_pylist() == given.to_pylist()
    expected = Embed(small_embedder.path)(given)
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert vectors_of(found) == vectors_of(expected)
    assert found["error"].to_pylist() == expected["error"].to_pylist()
    assert [row for row in range(110) if found["embedding"][row].as_py() is None] == [7, 57, 107]
    texts = [text for text in given["text"].to_pylist() if text is not None]
    assert vectors_of(found) == Embedder(small_embedder).embed(texts).tobytes()
    assert names(tmp_path) == sorted([source, output])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_dictionary_may_have_nulls_and_long_values(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, suffix: str
) -> None:
    """4,200 rows share a value of 512 KiB: more than the 2 GiB that an array of strings has room for."""
    values = pa.array(["fox", None, "a" * (1 << 19)])
    shared = pa.DictionaryArray.from_arrays(pa.array([0, 1, None] + [2] * 4200, pa.int32()), values)
    texts = pa.array(["fox"] * len(shared)).dictionary_encode()
    given = pa.table({"text": texts, "page": shared})
    path, target = written(tmp_path / "in.arrow", given, rows=len(shared)), tmp_path / f"out.{suffix}"

    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", target)

    assert finished.code == 0, finished.err
    found = pq.read_table(target) if suffix == "parquet" else read(target)
    page = found["page"].combine_chunks()
    assert page.type == shared.type
    assert page.slice(0, 3).to_pylist() == ["fox", None, None]
    assert [page.dictionary[place].as_py() for place in set(page.indices.slice(3).to_pylist())] == ["a" * (1 << 19)]


@pytest.mark.parametrize("option", ["--column", "--embedding-column", "--error-column"])
def test_names_of_columns_are_utf8(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, option: str) -> None:
    path = written(tmp_path / "in.parquet", corpus(3))

    finished = ortkit(
        "embed", small_embedder.path, "--input", path, "--output", tmp_path / "out.parquet", option, "\udcff"
    )

    assert finished.code == 2
    assert finished.err == f"error: `{option}` is not valid UTF-8 or Unicode, which names of columns are\n"


def test_a_new_column_needs_a_name(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", corpus(3))

    finished = ortkit(
        "embed", small_embedder.path, "--input", path, "--output", tmp_path / "out.parquet", "--error-column", ""
    )

    assert finished.code == 2
    assert finished.err == "error: `--error-column` must not be empty\n\nhint: name a column\n"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary", "ubinary"])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_types_are_those_of_embed(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, dtype: str, suffix: str
) -> None:
    path, target = written(tmp_path / "in.parquet", corpus(7)), tmp_path / f"out.{suffix}"

    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", target, "--dtype", dtype)

    assert finished.code == 0, finished.err
    expected = Embedder(small_embedder).embed(corpus(7)["text"].to_pylist(), dtype=dtype)
    found = read(target)
    assert found.schema.field("embedding").type == pa.list_(pa.from_numpy_dtype(expected.dtype), expected.shape[1])
    assert vectors_of(found) == expected.tobytes()
    assert (tmp_path / f"out.{suffix}.ranges.npy").exists() == (dtype == "int8")


def test_vectors_take_the_bytes_of_their_type(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    """Parquet stores int8 as 32-bit integers unless they are dictionary-encoded."""
    path = written(tmp_path / "in.parquet", corpus(7).slice(0, 6))
    sizes = {}
    for dtype in ("float32", "float16", "int8"):
        target = tmp_path / f"{dtype}.parquet"
        ortkit("embed", small_embedder.path, "--input", path, "--output", target, "--dtype", dtype)
        group = pq.ParquetFile(target).metadata.row_group(0)
        [column] = [
            group.column(number)
            for number in range(group.num_columns)
            if group.column(number).path_in_schema == "embedding.list.element"
        ]
        assert ("PLAIN_DICTIONARY" in column.encodings or "RLE_DICTIONARY" in column.encodings) == (dtype == "int8")
        sizes[dtype] = column.total_uncompressed_size
    assert sizes["float32"] - sizes["float16"] == 6 * 8 * 2


def test_csv_and_text_become_columns_of_strings(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'id,body\n01,the fox\n2\n3,"a dog,\nlazy"\n4,\xff\n\n')
    (tmp_path / "in.txt").write_bytes(b"the fox\r\n\na dog\n")

    table = ortkit(
        *("embed", small_embedder.path, "--input", tmp_path / "in.csv", "--column", "body"),
        *("--output", tmp_path / "out.parquet", "--embedding-column", "vector", "--error-column", "why"),
    )
    text = ortkit(
        *("embed", small_embedder.path, "--input", tmp_path / "in.txt"), *("--output", tmp_path / "text.arrow")
    )

    assert (table.code, text.code) == (1, 1)
    found = read(tmp_path / "out.parquet")
    assert found.schema.names == ["id", "body", "vector", "why"]
    assert found["id"].to_pylist() == ["01", None, "3", None]
    assert found["body"].to_pylist() == ["the fox", None, "a dog,\nlazy", None]
    assert found["why"].to_pylist() == [
        *(None, "line 3 has 1 column, and the header 2", None),
        "line 6 is not valid UTF-8 at byte 3",
    ]
    assert vectors_of(found, "vector") == Embedder(small_embedder).embed(["the fox", "a dog,\nlazy"]).tobytes()
    found = read(tmp_path / "text.arrow")
    assert found["text"].to_pylist() == ["the fox", "", "a dog"]
    assert found["error"].to_pylist() == [None, "line 2 has no tokens", None]


def test_a_folder_of_parquet_files_is_one_table(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    (folder / "b").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    given = corpus(60)
    written(folder / "b" / "2.parquet", given.slice(40))
    written(folder / "a.parquet", given.slice(0, 40))
    written(folder / "_temporary" / "1.parquet", given)
    (folder / "_SUCCESS").touch()
    arguments = ["embed", small_embedder.path, "--input", folder, "--output"]

    assert ortkit(*arguments, tmp_path / "out.parquet").code == 1

    assert read(tmp_path / "out.parquet")["id"].to_pylist() == list(range(60))
    inside = ortkit(*arguments, folder / "out.parquet")
    assert inside.code == 2
    assert inside.err.startswith(f"error: `{folder}/out.parquet` is in the folder that is read")
    written(folder / "z.parquet", given.drop_columns(["id"]))
    other = ortkit(*arguments, tmp_path / "out.parquet")
    assert other.code == 2
    assert "`parts/z.parquet`" in other.err.replace(f"{tmp_path}/", "")
    assert "have different columns, or types of columns\n\nhint: one run takes files of one schema\n" in other.err
    (folder / "z.parquet").unlink()
    (folder / "year=2026").mkdir()
    written(folder / "year=2026" / "a.parquet", given)
    assert "is partitioned by its folders, such as `year=2026`" in ortkit(*arguments, tmp_path / "out.parquet").err
    (tmp_path / "none").mkdir()
    none = ortkit("embed", small_embedder.path, "--input", tmp_path / "none", "--output", tmp_path / "out.parquet")
    assert none == Finished(
        2, b"", f"error: the folder `{tmp_path}/none` has no Parquet files\n\nhint: give a folder of `.parquet` files\n"
    )


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_tables_without_rows_keep_their_schema(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, suffix: str
) -> None:
    path, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    written(path, corpus(0))

    assert ortkit("embed", small_embedder.path, "--input", path, "--output", target) == Finished(0, b"", "")

    assert read(target).num_rows == 0
    assert read(target).schema.names == [*corpus(0).schema.names, "embedding", "error"]


def test_parquet_without_row_groups_is_empty(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.ParquetWriter(path, corpus(0).schema).close()
    assert pq.ParquetFile(path).metadata.num_row_groups == 0

    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", tmp_path / "out.parquet")

    assert finished == Finished(0, b"", "")
    assert read(tmp_path / "out.parquet").num_rows == 0


def test_dictionaries_of_an_arrow_file_only_grow(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    """Each row group of Parquet has its own dictionary, and an Arrow file cannot replace one."""
    kind = pa.dictionary(pa.int8(), pa.string())
    parts = [pa.array(values).dictionary_encode().cast(kind) for values in (["b", None], ["a", "b"], ["c", "a"])]
    given = pa.table({"text": pa.chunked_array(parts), "more": pa.chunked_array(parts)})
    path = written(tmp_path / "in.parquet", given, rows=2)

    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", tmp_path / "out.arrow")

    assert finished.code == 1
    found = read(tmp_path / "out.arrow")
    assert found.schema.field("more").type == kind
    assert found["more"].to_pylist() == found["text"].to_pylist() == ["b", None, "a", "b", "c", "a"]


REFUSED = {
    "column": (
        {"body": pa.array(["a"]), "n": pa.array([1])},
        (
            "the table has no column `text`; its columns are `body`, `n`\n\n"
            "hint: columns of texts: `body`; name one with `--column`"
        ),
    ),
    "type": (
        {"text": pa.array([1])},
        "the column `text` has the type int64 and not texts\n\nhint: make a column of strings of it",
    ),
    "binary": (
        {"text": pa.array([b"a"])},
        "the column `text` has the type binary and not texts\n\nhint: make a column of strings of it",
    ),
    "nested": (
        {"text": pa.array([{"a": "b"}]), "body": pa.array(["a"])},
        (
            "the column `text` has the type struct<a: string> and not texts\n\n"
            "hint: columns of texts: `body`; name one with `--column`"
        ),
    ),
    "embedding": (
        {"text": pa.array(["a"]), "embedding": pa.array([1])},
        (
            "the table has a column `embedding` already\n\n"
            "hint: choose another name for the new one with `--embedding-column`"
        ),
    ),
    "error": (
        {"text": pa.array(["a"]), "error": pa.array([1])},
        "the table has a column `error` already\n\nhint: choose another name for the new one with `--error-column`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_tables_that_cannot_be_embedded_are_refused(ortkit: Ortkit, tmp_path: Path, case: str, suffix: str) -> None:
    """Before the bundle is opened: there is none."""
    columns, message = REFUSED[case]
    path = written(tmp_path / f"in.{suffix}", pa.table(columns))

    finished = ortkit("embed", tmp_path / "no-bundle", "--input", path, "--output", tmp_path / "out.parquet")

    assert finished == Finished(2, b"", f"error: {message}\n")
    assert names(tmp_path) == [path.name]


def test_a_table_without_columns_is_refused(ortkit: Ortkit, tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", pa.table({}))

    finished = ortkit("embed", tmp_path / "none", "--input", path, "--output", tmp_path / "out.parquet")

    assert finished == Finished(2, b"", "error: the table has no column `text`; it has no columns\n")


def test_two_columns_of_one_name_are_refused(ortkit: Ortkit, tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    path = written(tmp_path / "in.arrow", twice)
    arguments = ["embed", tmp_path / "none", "--input", path, "--output", tmp_path / "out.arrow"]

    assert ortkit(*arguments) == Finished(2, b"", "error: the table has 2 columns `text`\n\nhint: rename one of them\n")
    (tmp_path / "in.txt").write_text("fox\n")
    same = ortkit(*arguments[:3], tmp_path / "in.txt", *arguments[4:], "--error-column", "embedding")
    assert same == Finished(
        2,
        b"",
        "error: `--embedding-column` and `--error-column` both name the column `embedding`\n\nhint: name two columns\n",
    )


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"PAR1 and then nothing of it", "in.parquet", "cannot be read: Parquet magic bytes not found in footer"),
        (b"ARROW1\0\0 and then nothing of it", "in.arrow", "cannot be read: "),
        (b"\xff\xff\xff\xff\x10", "in.arrows", "cannot be read: "),
        (b"id,text\n", "in.parquet", "is not Parquet: it is damaged, or another format"),
        (b"", "in.feather", "is not Arrow: it is damaged, or another format"),
        (b"FEA1", "in.feather", "is of version 1 of Feather"),
        (b"PARE1234", "in.parquet", "is encrypted"),
        (b'{"text": "a"}\n', "in.jsonl", "is JSON, whose fields have no types for the columns of a table"),
        (b"\x1f\x8b\x08", "in.csv", "the input is compressed with gzip"),
    ],
)
def test_other_files_are_refused(ortkit: Ortkit, tmp_path: Path, content: bytes, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    finished = ortkit("embed", tmp_path / "none", "--input", tmp_path / name, "--output", tmp_path / "out.parquet")

    assert finished.code == 2
    assert finished.err.replace(f"`{tmp_path}/{name}` ", "").startswith(f"error: {message}")
    assert "hint: " in finished.err
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damage_in_the_middle_ends_the_run_after_the_rows_before(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, suffix: str
) -> None:
    path, target = tmp_path / f"in.{suffix}", tmp_path / "out.parquet"
    table = pa.table({"text": [f"fox {number}" for number in range(6000)]})
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=2000, write_page_checksum=True, compression="none")
    else:
        written(path, table, rows=2000)
    content = bytearray(path.read_bytes())
    # The texts of the last group; in Arrow, the offsets before them.
    place = content.rindex(b"fox 5000") if suffix == "parquet" else content.rindex(b"fox 4000") - 4000
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)

    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", target)

    assert finished.code == 2
    assert f"error: `{path}` cannot be read: " in finished.err
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "parquet"], "a table is written to a file"),
        (["text", "--output", "out.parquet"], "a table is made of a file"),
        (["--output", "out.arrow"], "a table is made of a file"),
        (["--input", "-", "--output", "out.arrow"], "a table is made of a file"),
        (["--input", "in", "--output", "out.jsonl", "--error-column", "x"], "`--embedding-column` and"),
        (["--input", "none.parquet", "--output", "out.parquet"], "there is no file `none.parquet`"),
        (["--input", "/dev/null", "--output", "out.parquet"], "`/dev/null` is not a regular file"),
    ],
)
def test_what_is_not_a_table_is_refused(
    ortkit: Ortkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)

    finished = ortkit("embed", "no-bundle", *arguments)

    assert finished.code == (5 if "no file" in message else 2)
    assert finished.err.startswith(f"error: {message}")
    assert names(tmp_path) == []


def test_parquet_to_another_format_says_what_to_do(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", corpus(2))

    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", tmp_path / "out.npy")

    assert finished.code == 2
    assert finished.err.startswith(
        "error: the input is Parquet, not text\n\n"
        "hint: `ortkit embed` reads it where it writes a table, `--output FILE.parquet`"
    )


def test_types_that_parquet_does_not_have_are_refused(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    kind = pa.month_day_nano_interval()
    path = written(tmp_path / "in.arrow", pa.table({"text": ["fox"], "x": pa.array([(1, 2, 3)], kind)}))
    arguments = ["embed", small_embedder.path, "--input", path, "--output"]

    assert ortkit(*arguments, tmp_path / "out.parquet") == Finished(
        2,
        b"",
        "error: Parquet has no type for the column `x`, month_day_nano_interval\n\n"
        "hint: write Arrow: `--output FILE.arrow`\n",
    )
    assert ortkit(*arguments, tmp_path / "out.arrow").code == 0
    assert read(tmp_path / "out.arrow").schema.field("x").type == kind


def test_the_input_is_not_replaced(ortkit: Ortkit, tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", corpus(2))

    finished = ortkit("embed", tmp_path / "none", "--input", path, "--output", path)

    assert finished == Finished(
        2,
        b"",
        f"error: `{path}` is also the input, and would be replaced\n\nhint: choose another file with `--output`\n",
    )


def test_without_pyarrow_the_extra_is_named(ortkit: Ortkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("ortkit.toolkit.bulk", "ortkit.bulk"))]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "in.csv").write_text("text\nfox\n")

    finished = ortkit("embed", "none", "--input", tmp_path / "in.csv", "--output", tmp_path / "out.parquet")

    assert finished == Finished(
        1,
        b"",
        "error: Parquet and Arrow tables need the Python package `pyarrow`, which is not installed\n\n"
        "hint: install it: `pip install 'ortkit[arrow]'`\n",
    )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("source", ["in.parquet", "in.arrow", "in.csv"])
def test_completed_rows_are_not_computed_again(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, source: str
) -> None:
    path = tmp_path / source
    if path.suffix == ".csv":
        path.write_text("id,text\n" + "".join(f"{row},fox {row}\n" for row in range(60)))
    else:
        written(path, corpus(60), rows=16)
    arguments = ["embed", small_embedder.path, "--input", path, "--output"]
    ortkit(*arguments, tmp_path / "whole.parquet")

    with pytest.MonkeyPatch.context() as patch:
        first = break_after(patch, 3)
        with pytest.raises(Killed):
            ortkit(*arguments, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    other = ortkit(*arguments, tmp_path / "out.parquet", "--dim", 4)
    with pytest.MonkeyPatch.context() as patch:
        second = break_after(patch, 100)
        finished = ortkit(*arguments, tmp_path / "out.parquet")

    assert f"`{tmp_path}/out.parquet` was started with other options, and 24 records are complete" in other.err
    assert sum(first) + sum(second) == (60 if path.suffix == ".csv" else 58), "every text but the nulls, once"
    assert finished.err.startswith("note: resuming after 24 completed records\n")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.usefixtures("small_chunks")
def test_another_input_is_not_resumed(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    path, target = written(tmp_path / "in.parquet", corpus(60)), tmp_path / "out.parquet"
    arguments = ["embed", small_embedder.path, "--input", path, "--output", target]
    with pytest.MonkeyPatch.context() as patch:
        break_after(patch, 3)
        with pytest.raises(Killed):
            ortkit(*arguments)
    texts = corpus(60)["text"].to_pylist()
    texts[3] = texts[3].replace("fox", "dog")
    written(path, corpus(60).set_column(1, corpus(60).schema.field(1), pa.array(texts)))

    finished = ortkit(*arguments)

    assert finished.code == 2
    assert f"`{target}` was started with another input, and 24 records are complete" in finished.err
    assert ortkit(*arguments, "--restart").code == 1
    assert read(target)["text"].to_pylist() == texts


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_an_input_that_changes_meanwhile_gets_no_vectors_of_other_texts(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path, target = tmp_path / f"in.{suffix}", tmp_path / "out.arrow"

    def write(text: str) -> None:
        if suffix == "csv":
            path.write_text(f"text\nfox\n{text}\n")
        else:
            written(path, pa.table({"text": ["fox", text]}))

    write("dog")
    real = Embedder.embed_with_report

    def changing(self: Embedder, texts: Sequence[str], **options: object) -> Embeddings:
        found = real(self, texts, **options)
        if texts:
            path.unlink()
            write("cat")
        return found

    monkeypatch.setattr(Embedder, "embed_with_report", changing)
    finished = ortkit("embed", small_embedder.path, "--input", path, "--output", target)

    assert finished.code == 2
    assert "error: the input was changed while it was embedded\n\nhint: repeat the command with `--restart`" in (
        finished.err
    )
    assert not target.exists()


def test_a_full_disk_is_an_error_of_the_output(
    ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, target = written(tmp_path / "in.parquet", corpus(60)), tmp_path / "out.parquet"

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(table_output.ParquetTable, "write", full)
        finished = ortkit("embed", small_embedder.path, "--input", path, "--output", target)

    assert finished == Finished(
        1,
        b"",
        "note: 60 records are complete; the same command resumes after them\n"
        f"error: `{target}` cannot be written: No space left on device\n",
    )
    assert ortkit("embed", small_embedder.path, "--input", path, "--output", target).code == 1
    assert read(target).num_rows == 60


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_kills_at_random_moments_lose_nothing(small_embedder: Bundle, tmp_path: Path, suffix: str) -> None:
    """kill -9 at random moments, also while the table is written; then it has the bytes of a run without kills."""
    count = 30_000
    texts = [None if row % 97 == 5 else f"the fox {'lazy ' * (row % 40)}{row}" for row in range(count)]
    path = written(tmp_path / "in.parquet", pa.table({"id": range(count), "text": texts}), rows=5000)
    command = [sys.executable, "-m", "ortkit", "embed", small_embedder.path, "--input", path, "--output"]
    target, whole = tmp_path / f"out.{suffix}", tmp_path / f"whole.{suffix}"
    began = time.monotonic()
    assert subprocess.run([*command, whole], capture_output=True, check=False).returncode == 1
    seconds = time.monotonic() - began
    moments = random.Random(7)
    resumed = 0

    for _ in range(8):
        process = subprocess.Popen([*command, target], stderr=subprocess.PIPE, text=True)
        time.sleep(moments.uniform(0.3, 0.9) * seconds)
        process.send_signal(signal.SIGKILL)
        resumed += "resuming after" in process.communicate()[1]
        if target.exists():
            assert target.read_bytes() == whole.read_bytes()
            target.unlink()
    finished = subprocess.run([*command, target], capture_output=True, check=False)

    assert finished.returncode == 1, finished.stderr
    assert resumed > 0
    assert target.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == sorted(["in.parquet", target.name, whole.name])


def test_the_state_counts_rows(ortkit: Ortkit, small_embedder: Bundle, tmp_path: Path) -> None:
    path, target = written(tmp_path / "in.parquet", corpus(60)), tmp_path / "out.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ortkit.runtime.encoder.base.CHUNK", 8)
        break_after(patch, 2)
        with pytest.raises(Killed):
            ortkit("embed", small_embedder.path, "--input", path, "--output", target)

    state = json.loads((tmp_path / ".out.parquet.state").read_text())
    assert state["rows"] == state["read"] == state["position"]["number"] == 16
    assert (tmp_path / ".out.parquet.partial").stat().st_size >= state["output_size"]
