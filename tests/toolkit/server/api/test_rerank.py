from __future__ import annotations

import cohere
import pytest

from ortkit import Reranker
from tests.toolkit.server.conftest import LONG, LocalServer

QUERY = "fox"
DOCUMENTS = ["The quick brown fox", "jumps over", "the lazy dog", "and the dog sleeps"]


@pytest.fixture(scope="session")
def reranker(server: LocalServer) -> Reranker:
    return server.models.find("tiny-reranker").reranker


def test_cohere_ranks_as_the_library(cohere_client: cohere.ClientV2, reranker: Reranker) -> None:
    answer = cohere_client.rerank(model="tiny-reranker", query=QUERY, documents=DOCUMENTS)
    expected = [(ranked.index, ranked.score) for ranked in reranker.rank(QUERY, DOCUMENTS, scores="sigmoid")]
    assert [(one.index, one.relevance_score) for one in answer.results] == expected
    assert answer.id
    assert answer.meta is not None
    tokens = reranker.score_with_report([(QUERY, document) for document in DOCUMENTS]).tokens.sum()
    assert answer.meta.tokens.input_tokens == tokens
    assert answer.meta.warnings is None
    best = cohere_client.rerank(
        model="tiny-reranker", query=QUERY, documents=DOCUMENTS, top_n=2, max_tokens_per_doc=4096
    )
    assert [(one.index, one.relevance_score) for one in best.results] == expected[:2]


def test_truncated_documents_are_reported(cohere_client: cohere.ClientV2) -> None:
    answer = cohere_client.rerank(model="tiny-reranker", query=QUERY, documents=[LONG, "a"])
    assert answer.meta.warnings == ["1 of 2 documents were truncated to the model's limit"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_jina_gets_documents(server: LocalServer, reranker: Reranker, path: str) -> None:
    documents = [{"text": DOCUMENTS[0]}, DOCUMENTS[1]]
    body = {"model": "tiny-reranker", "query": QUERY, "documents": documents, "return_documents": True, "top_n": 1}
    answer = server.post(path, body).json()
    [expected] = reranker.rank(QUERY, DOCUMENTS[:2], top_n=1)
    assert answer["results"] == [
        {"index": expected.index, "relevance_score": expected.score, "document": {"text": expected.text}}
    ]
    assert answer["usage"]["total_tokens"] > 0


def test_tei_ranks_texts(server: LocalServer, reranker: Reranker) -> None:
    answer = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "return_text": True})
    expected = reranker.rank(QUERY, DOCUMENTS, scores="raw")
    assert answer.json() == [{"index": one.index, "score": one.score, "text": one.text} for one in expected]
    long = server.post("/rerank", {"query": QUERY, "texts": ["a", LONG]})
    assert (long.status_code, long.json()["error_type"]) == (413, "Validation")
    assert long.json()["error"].endswith("(split the document, or pass `truncate`: true)")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"documents": []}, "documents", "`documents` must not be empty"),
        ({"documents": ["a", 1]}, "documents[1]", "`documents[1]` must be a string, not an integer"),
        ({"documents": [{"title": "a"}]}, "documents[0].text", "the field `documents[0].text` is missing"),
        ({"documents": [{"image": "a", "text": "b"}]}, "documents[0].image", "unknown field `image`"),
        ({"query": "  "}, "query", "`query` must not be empty"),
        ({"top_n": 0}, "top_n", "`top_n` must be from 1 to"),
        ({"max_tokens_per_doc": 8}, "max_tokens_per_doc", "`max_tokens_per_doc` below 4096 is not supported"),
        ({"model": "tiny-embedder"}, "model", "`tiny-embedder` is an embedder, not a reranker"),
        ({"relevant_spans": {}}, "relevant_spans", "`relevant_spans` is not supported"),
    ],
)
def test_invalid_fields_are_named(server: LocalServer, fields: dict[str, object], param: str, message: str) -> None:
    answer = server.post("/v2/rerank", {"model": "tiny-reranker", "query": QUERY, "documents": DOCUMENTS} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)


def test_cohere_raises_its_error(cohere_client: cohere.ClientV2) -> None:
    with pytest.raises(cohere.NotFoundError) as caught:
        cohere_client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)
    assert caught.value.body["error"]["code"] == "model_not_found"
