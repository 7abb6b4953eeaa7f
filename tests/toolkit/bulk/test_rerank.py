"""`ortkit.bulk.Rerank`: the scores of `Reranker.score`, and errors in a column."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from ortkit import Bundle, InputError, Reranker, TruncationWarning
from ortkit.bulk import Rerank

QUERIES = ["a fox", " ", "a fox", None, "dog", "knots", "a dog"]
DOCUMENTS = ["The quick brown fox", "dog", "knots " * 60, "fox", None, "a lazy dog", "sleeps"]


def test_rows_get_the_scores_of_score(small_reranker: Bundle) -> None:
    given = pa.table({"q": QUERIES, "d": pa.array(DOCUMENTS).dictionary_encode(), "n": range(7)}, metadata={"a": "b"})

    rerank = pickle.loads(pickle.dumps(Rerank(small_reranker.path, query="q", document="d", long="error")))
    found = rerank(given)

    assert found.drop_columns(["score", "error"]).equals(given, check_metadata=True)
    assert found["error"].to_pylist() == [
        None,
        "the query is empty",
        "the query and the document are longer than the model's limit of 64 tokens",
        "the query is null",
        "the document is null",
        None,
        None,
    ]
    fine = [0, 5, 6]
    expected = Reranker(small_reranker).score([(QUERIES[row], DOCUMENTS[row]) for row in fine])
    assert np.array_equal(found["score"].combine_chunks().drop_null().to_numpy(), expected)
    assert [row for row in range(7) if found["score"][row].is_valid] == fine
    assert rerank.schema(given.schema).equals(found.schema)


def test_batches_of_any_size_give_the_same_bytes(reranker_bundle: Bundle) -> None:
    given = pa.table({"query": ["a fox", "a dog"] * 20, "text": [f"the lazy {n} dog" for n in range(40)]})
    rerank = Rerank(reranker_bundle.path, scores="raw", into="relevance")

    whole = rerank(given)

    parts = list(rerank.batches(given.to_batches(max_chunksize=3)))
    assert pa.Table.from_batches(parts).combine_chunks().equals(whole.combine_chunks())
    pairs = list(zip(given["query"].to_pylist(), given["text"].to_pylist(), strict=True))
    expected = Reranker(reranker_bundle).score(pairs, scores="raw")
    assert whole["relevance"].to_numpy().tobytes() == expected.tobytes()
    assert rerank(given.slice(0, 0)).num_rows == 0


def test_truncated_documents_are_counted(small_reranker: Bundle) -> None:
    with pytest.warns(TruncationWarning, match="1 of 1 documents was longer than 64 tokens with the query"):
        Rerank(small_reranker.path)(pa.table({"query": ["fox"], "text": ["knots " * 60]}))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"text": ["a"]}, {}, "the table has no column `query`; its columns are `text`"),
        ({"query": ["a"], "text": [1]}, {}, "the column `text` has the type int64 and not texts"),
        ({"query": ["a"], "text": ["a"], "score": [1]}, {}, "the table has a column `score` already"),
        ({"query": ["a"], "text": ["a"]}, {"label": "none"}, "the model has no label `none`"),
        ({"query": ["a"], "text": ["a"]}, {"scores": "softmax"}, "`softmax` needs several labels, and the model"),
        ({"query": ["a"], "text": ["a"]}, {"long": "mean"}, "`mean` is not supported for rerankers"),
    ],
)
def test_tables_that_cannot_be_scored_are_refused(
    small_reranker: Bundle, columns: dict, options: dict, message: str
) -> None:
    with pytest.raises(InputError) as refused:
        Rerank(small_reranker.path, **options)(pa.table(columns))

    assert refused.value.message.startswith(message)
