"""`ortkit.bulk.Embed`: the same vectors as `Embedder.embed`, whatever the batches, and errors in a column."""

from __future__ import annotations

import doctest
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ortkit import Bundle, BundleError, Embedder, InputError, NotFoundError, TruncationWarning
from ortkit.bulk import Embed, Rerank
from ortkit.toolkit.bulk import opened as opened_module
from tests import tiny_bundles

TEXTS = ["the quick brown fox", "", "a lazy dog", None, "knots " * 40, "sleeps"]


def vectors_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The vectors of the rows that have one."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = values.drop_null()
    return np.asarray(values.flatten()).reshape(len(values), -1)


def table(column: pa.Array) -> pa.Table:
    schema = pa.schema(
        [
            pa.field("id", pa.int16(), metadata={"unit": "n"}),
            pa.field("text", column.type),
            pa.field("tags", pa.list_(pa.string())),
        ],
        metadata={"made": "by hand"},
    )
    ids, tags = pa.array(range(len(column)), pa.int16()), pa.array([["a"]] * len(column), pa.list_(pa.string()))
    return pa.Table.from_arrays([ids, column, tags], schema=schema)


KINDS: dict[str, Callable[[], pa.Array]] = {
    "string": lambda: pa.array(TEXTS, pa.string()),
    "large_string": lambda: pa.array(TEXTS, pa.large_string()),
    "string_view": lambda: pa.array(TEXTS, pa.string_view()),
    "dictionary": lambda: pa.array(TEXTS).dictionary_encode(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_their_columns_and_get_the_vectors_of_embed(small_embedder: Bundle, kind: str) -> None:
    given = table(KINDS[kind]())

    found = Embed(small_embedder.path, long="error")(given)

    assert found.drop_columns(["embedding", "error"]).equals(given, check_metadata=True)
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert found["error"].to_pylist() == [
        None,
        "the text has no tokens",
        None,
        "the text is null",
        "the text is longer than the model's limit of 64 tokens",
        None,
    ]
    assert [row is None for row in found["embedding"].to_pylist()] == [False, True, False, True, True, False]
    expected = Embedder(small_embedder).embed([TEXTS[0], TEXTS[2], TEXTS[5]])
    assert vectors_of(found["embedding"]).tobytes() == expected.tobytes()


def test_a_text_that_is_not_utf8_is_an_error_of_its_row(small_embedder: Bundle) -> None:
    raw = pa.array([b"fox", b"\xff\xfe", b"dog"]).view(pa.string())

    found = Embed(small_embedder.path)(pa.table({"text": raw}))

    assert found["error"].to_pylist() == [None, "the text is not valid UTF-8 at byte 1", None]
    assert vectors_of(found["embedding"]).tobytes() == Embedder(small_embedder).embed(["fox", "dog"]).tobytes()


def test_a_dictionary_may_have_nulls_and_texts_that_no_row_has(small_embedder: Bundle) -> None:
    texts = pa.array([b"dog", None, b"\xff", b"fox"], pa.binary()).view(pa.string())
    given = pa.DictionaryArray.from_arrays(pa.array([3, 1, None, 3, 2], pa.int8()), texts)

    found = Embed(small_embedder.path)(pa.table({"text": given}).slice(1))

    invalid = "the text is not valid UTF-8 at byte 1"
    assert found["error"].to_pylist() == ["the text is null", "the text is null", None, invalid]
    assert vectors_of(found["embedding"]).tobytes() == Embedder(small_embedder).embed(["fox"]).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary", "ubinary"])
def test_types_are_those_of_embed(small_embedder: Bundle, dtype: str) -> None:
    texts = ["the fox", "a dog", "knots"]
    expected = Embedder(small_embedder).embed(texts, dtype=dtype, dim=None, prompt="query")

    found = Embed(small_embedder.path, dtype=dtype, prompt="query")(pa.table({"text": texts}))

    assert found["embedding"].type == pa.list_(pa.from_numpy_dtype(expected.dtype), expected.shape[1])
    assert vectors_of(found["embedding"]).tobytes() == expected.tobytes()


def test_batches_of_any_size_give_the_same_bytes(small_embedder: Bundle) -> None:
    given = pa.table({"text": [f"the {word} fox {n}" for n in range(50) for word in ("quick", "lazy dog and")]})
    embed = Embed(small_embedder.path, workers=2)
    whole = embed(given)

    for rows in (1, 7, 100):
        parts = list(embed.batches(given.to_batches(max_chunksize=rows)))
        assert {type(part) for part in parts} == {pa.RecordBatch}
        assert pa.Table.from_batches(parts).combine_chunks().equals(whole.combine_chunks())
    empty = embed(given.slice(0, 0))
    assert empty.num_rows == 0
    assert empty.schema.equals(whole.schema)
    assert embed.schema(given.schema).equals(whole.schema)


def test_spark_gets_lists_of_variable_size(small_embedder: Bundle) -> None:
    """Its `mapInArrow` calls a function with an iterator of record batches."""
    batches = iter(pa.table({"text": ["fox", None, "dog"]}).to_batches(max_chunksize=2))
    embed = pickle.loads(pickle.dumps(Embed(small_embedder.path, fixed_size=False)))

    first, second = embed.batches(batches)

    assert first.schema.field("embedding").type == pa.list_(pa.float32())
    assert first["embedding"][1].as_py() is None
    rows = np.array([first["embedding"][0].as_py(), second["embedding"][0].as_py()], np.float32)
    assert np.array_equal(rows, Embedder(small_embedder).embed(["fox", "dog"]))


def test_truncated_texts_are_counted(small_embedder: Bundle) -> None:
    with pytest.warns(TruncationWarning, match="1 of 2 texts was longer than 64 tokens and cut there") as caught:
        Embed(small_embedder.path)(pa.table({"text": ["knots " * 40, "fox"]}))

    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("given", "options", "message", "hint"),
    [
        (
            {"body": ["a"], "id": [1]},
            {},
            "the table has no column `text`; its columns are `body`, `id`",
            "columns of texts: `body`; name one with `column`",
        ),
        ({}, {}, "the table has no column `text`; it has no columns", None),
        (
            {"text": [1]},
            {},
            "the column `text` has the type int64 and not texts",
            "make a column of strings of it",
        ),
        (
            {"text": [["a"]], "body": ["a"]},
            {},
            "the column `text` has the type list<item: string> and not texts",
            "columns of texts: `body`; name one with `column`",
        ),
        (
            {"text": ["a"], "embedding": [1]},
            {},
            "the table has a column `embedding` already",
            "choose another name for the new one with `into`",
        ),
        (
            {"text": ["a"], "error": [1]},
            {"into": "vector"},
            "the table has a column `error` already",
            "choose another name for the new one with `errors`",
        ),
        ({"text": ["a"]}, {"dim": 9}, "`dim` must be from 1 to 8, the model's dimension, not 9", None),
        ({"text": []}, {"prompt": "poem"}, "", None),
    ],
)
def test_tables_that_cannot_be_embedded_are_refused(
    small_embedder: Bundle, given: dict, options: dict, message: str, hint: str | None
) -> None:
    columns = {name: pa.array(values, pa.string() if not values else None) for name, values in given.items()}
    with pytest.raises(InputError) as refused:
        Embed(small_embedder.path, **options)(pa.table(columns))

    if message:
        assert refused.value.message == message
        assert refused.value.hint == hint
    else:
        assert refused.value.message == "the model has no prompt `poem`"


@pytest.mark.parametrize("name", ["Embed", "Rerank"])
def test_the_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As wide as all-MiniLM-L6-v2.
    monkeypatch.setattr(tiny_bundles, "WIDTH", 384)
    names = {
        "Embed": Embed,
        "Rerank": Rerank,
        "embedder_bundle": tiny_bundles.write_embedder(tmp_path / "embedder"),
        "reranker_bundle": tiny_bundles.write_reranker(tmp_path / "reranker"),
    }
    [test] = doctest.DocTestFinder(recurse=False).find(names[name], name, globs=names)
    shown: list[str] = []

    failed, tried = doctest.DocTestRunner().run(test, out=shown.append)

    assert (failed, tried) == (0, len(test.examples)), "".join(shown)
    assert tried > 2


def test_two_columns_of_one_name_are_refused(small_embedder: Bundle) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(InputError, match="the table has 2 columns `text`"):
        Embed(small_embedder.path)(twice)
    with pytest.raises(InputError, match="`into` and `errors` both name the column `x`"):
        Embed(small_embedder.path, into="x", errors="x")


def test_a_bundle_is_opened_at_the_first_batch(tmp_path: Path) -> None:
    embed = Embed(tmp_path / "none")

    with pytest.raises(NotFoundError, match=f"there is no bundle at `{tmp_path}/none`"):
        embed(pa.table({"text": ["a"]}))


def test_it_is_pickled_by_reference(small_embedder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_embedder.path.parent)
    embed = Embed(small_embedder.path.name)
    embed(pa.table({"text": ["fox"]}))

    pickled = pickle.dumps(embed)

    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    assert pickle.loads(pickled)(pa.table({"text": ["fox"]})).num_rows == 1
    assert repr(embed) == f"<Embed '{small_embedder.path}': `text` into `embedding`>"


def test_a_process_opens_a_bundle_once(small_embedder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_module, "_models", {})
    made: list[object] = []
    real = Embedder.__init__

    def counted(self: Embedder, *arguments: object, **options: object) -> None:
        made.append(options["workers"])
        real(self, *arguments, **options)

    monkeypatch.setattr(Embedder, "__init__", counted)
    for workers in (1, 1, 2, 1):
        Embed(small_embedder.path, workers=workers)(pa.table({"text": ["fox"]}))
    assert made == [1, 2]

    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    Embed(small_embedder.path, workers=1)(pa.table({"text": ["fox"]}))
    assert made == [1, 2, 1], "a child of a fork has none of the threads"


ONCE = """
import sys
from ortkit.runtime.bundle import verified_files
real, count = verified_files.hash_of, 0
def counted(file):
    global count
    count += 1
    return real(file)
verified_files.hash_of = counted
import pyarrow as pa
from ortkit.bulk import Embed, Rerank
Embed(sys.argv[1], workers=1)(pa.table({"text": ["fox"]}))
print(count)
"""


def test_processes_of_a_machine_verify_large_files_once(
    small_embedder: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three start at once; without the lock, all three would hash the graph, as they do without a cache."""
    code = ONCE.replace("real, count", "verified_files._SMALLEST = verified_files._SETTLED = 1\nreal, count", 1)

    def hashed() -> list[int]:
        command = [sys.executable, "-c", code, str(small_embedder.path)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        return sorted(int(process.communicate()[0]) for process in started)

    assert hashed() == [0, 0, 2]
    assert sorted(path.name for path in cache.iterdir()) == ["verified-files.json", "verified-files.json.lock"]
    monkeypatch.setenv("ORTKIT_CACHE", "")
    assert hashed() == [2, 2, 2]


def test_a_damaged_bundle_is_refused(small_embedder: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in small_embedder.path.iterdir():
        content = file.read_bytes()
        (copy / file.name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if file.suffix == ".onnx" else content)

    with pytest.raises(BundleError, match="was changed"):
        Embed(copy)(pa.table({"text": ["fox"]}))


def test_no_engine_is_imported() -> None:
    code = "import sys, ortkit.bulk; print(sorted({'ray', 'pyspark', 'pandas', 'dask'} & sys.modules.keys()))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


@pytest.mark.parametrize("call", [Embed, Rerank])
@pytest.mark.parametrize("batch", [{"text": np.array(["fox"])}, None, [pa.table({"text": ["fox"]})]])
def test_a_batch_of_another_format_says_what_to_ask_the_engine_for(call: type[Embed | Rerank], batch: object) -> None:
    with pytest.raises(InputError, match="a batch must be a pyarrow Table or RecordBatch, not") as caught:
        call("bundle")(batch)  # type: ignore[arg-type]

    assert 'batch_format="pyarrow"' in str(caught.value)


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (Embed, {"column": 5}, "`column` must be the name of a column, not int"),
        (Embed, {"into": None}, "`into` must be the name of a column, not NoneType"),
        (Embed, {"errors": ""}, "`errors` must not be empty"),
        (Embed, {"into": "\udcff"}, "`into` is not valid UTF-8 or Unicode, which names of columns are"),
        (Rerank, {"query": b"q"}, "`query` must be the name of a column, not bytes"),
        (Rerank, {"document": "\udcff"}, "`document` is not valid UTF-8 or Unicode"),
        (Rerank, {"into": ""}, "`into` must not be empty"),
    ],
)
def test_names_of_columns_are_checked_at_once(
    call: type[Embed | Rerank], options: dict[str, object], message: str
) -> None:
    """And not by each process of an engine."""
    with pytest.raises(InputError, match=re.escape(message)):
        call("bundle", **options)  # type: ignore[arg-type]


def test_without_a_lock_each_process_verifies_for_itself(small_embedder: Bundle, cache: Path) -> None:
    """A link in the place of the lock is not followed."""
    (cache / "verified-files.json.lock").symlink_to(cache / "other")

    found = Embed(small_embedder.path, workers=1, max_memory=1 << 33)(pa.table({"text": ["the fox"]}))

    assert found["error"].to_pylist() == [None]
    assert not (cache / "other").exists()
