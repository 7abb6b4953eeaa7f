"""`/v1/search` and `/v1/vector_stores`: the results are those of the library, whichever path and client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from ortkit import Reranker
from ortkit.toolkit.search.hits import Hit, SearchMode
from ortkit.toolkit.search.index import Index
from tests.toolkit.server.conftest import LONG, MANUALS, LocalServer

QUERY = "the pump does not start"


@pytest.fixture(scope="module")
def index(manuals: Path) -> Iterator[Index]:
    with Index.open(manuals) as found:
        yield found


def shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def seen(answer: Any) -> list[tuple[str, str, float]]:
    return [(one["filename"], one["content"][0]["text"], one["score"]) for one in answer.json()["data"]]


def expected(hits: list[Hit]) -> list[tuple[str, str, float]]:
    return [(shown(hit.file), hit.text, pytest.approx(max(0, hit.scores.similarity), abs=1e-6)) for hit in hits]


@pytest.mark.parametrize("mode", [None, *SearchMode])
def test_results_are_those_of_the_library(server: LocalServer, index: Index, mode: SearchMode | None) -> None:
    answer = server.post("/v1/search", {"query": QUERY, "mode": mode and mode.value})
    hits = index.search(QUERY, top_n=10, mode=mode or SearchMode.HYBRID)
    body = answer.json()
    assert (answer.status_code, body["object"]) == (200, "vector_store.search_results.page")
    assert (body["search_query"], body["has_more"], body["next_page"]) == ([QUERY], False, None)
    assert [one["content"] for one in body["data"]] == [[{"type": "text", "text": hit.text}] for hit in hits]
    assert [one["file_id"] for one in body["data"]] == [f"manuals/{shown(hit.file)}" for hit in hits]
    for one, hit in zip(body["data"], hits, strict=True):
        attributes, lines = one["attributes"], hit.place.lines or (None, None)
        assert (attributes.get("first_line"), attributes.get("last_line")) == lines
        assert attributes.get("bm25") == hit.scores.bm25
        assert attributes.get("similarity") == pytest.approx(hit.scores.similarity, abs=1e-6)
        assert one["score"] == pytest.approx(hit.score if mode is SearchMode.BM25 else attributes["similarity"])
    assert hits[0].file == "pumps.md"


def test_the_client_of_openai_searches(client: openai.OpenAI, index: Index) -> None:
    """Its strict validation knows every field."""
    found = client.vector_stores.search("manuals", query=QUERY, max_num_results=2)
    hits = index.search(QUERY, top_n=2)
    assert [(one.filename, one.content[0].text) for one in found] == [(hit.file, hit.text) for hit in hits]
    assert found.data[0].attributes["title"] == hits[0].title
    [store] = client.vector_stores.list()
    assert (store.id, store.name, store.status) == ("manuals", "manuals", "completed")
    assert store.file_counts.completed == store.file_counts.total == len(MANUALS)
    assert store.model_extra == {"chunks": index.facts.chunks, "model": "tiny-embedder"}
    assert client.vector_stores.retrieve("manuals") == store
    with pytest.raises(openai.NotFoundError) as caught:
        client.vector_stores.search("x", query=QUERY)
    assert (caught.value.code, caught.value.param) == ("vector_store_not_found", "index")
    assert "there is no index `x` (served: `manuals`)" in caught.value.message


def test_files_are_filtered(client: openai.OpenAI, server: LocalServer, index: Index) -> None:
    odd = "dogs/[odd] * name?.txt"
    equal: Any = {"type": "eq", "key": "filename", "value": odd}
    by_name = client.vector_stores.search("manuals", query="fox", filters=equal)
    assert [one.filename for one in by_name] == [odd]
    filters = {"type": "or", "filters": [{"type": "in", "key": "filename", "value": ["pumps.md", "lazy.txt", "../x"]}]}
    assert {one[0] for one in seen(server.post("/v1/search", {"query": "fox", "filters": filters}))} == {"pumps.md"}
    by_path = seen(server.post("/v1/search", {"query": "fox", "paths": ["dogs/**", "*.pdf"]}))
    assert by_path == expected(index.search("fox", top_n=10, paths=["dogs/**", "*.pdf"]))
    assert {name for name, _, _ in by_path} == {"dogs/lazy.txt", odd}


def test_the_reranker_is_the_served_one(server: LocalServer, bundles: dict[str, Path], index: Index) -> None:
    """By its name, or as the only one; the order and the scores are those of the library, as probabilities."""
    plain = index.search(QUERY, top_n=50)
    with Reranker(bundles["tiny-reranker"]) as reranker:
        ranked = reranker.rank(QUERY, [hit.embedded_text for hit in plain], top_n=3, scores="sigmoid")
        order = [hit.text for hit in index.search(QUERY, top_n=3, reranker=reranker)]
    texts = [(plain[one.index].text, one.score) for one in ranked]
    assert [text for text, _ in texts] == order
    for fields in (
        {"reranker": "tiny-reranker"},
        {"ranking_options": {"ranker": "tiny-reranker"}},
        {"ranking_options": {"ranker": "auto"}},
        {"ranking_options": {"ranker": "default-2024-11-15", "score_threshold": 0}},
    ):
        answer = server.post("/v1/search", {"query": QUERY, "max_num_results": 3, **fields})
        assert [(text, score) for _, text, score in seen(answer)] == texts
        assert answer.json()["data"][0]["attributes"]["reranked"] == texts[0][1]
    unranked = server.post("/v1/search", {"query": QUERY, "ranking_options": {"ranker": "none"}})
    assert seen(unranked) == expected(plain[:10])


def test_a_threshold_leaves_out_the_others(server: LocalServer) -> None:
    scores = [score for _, _, score in seen(server.post("/v1/search", {"query": QUERY}))]
    threshold = sorted(scores)[len(scores) // 2]
    answer = server.post("/v1/search", {"query": QUERY, "ranking_options": {"score_threshold": threshold}})
    assert [score for _, _, score in seen(answer)] == [score for score in scores if score >= threshold]


def test_a_query_without_words_finds_nothing_by_bm25(server: LocalServer) -> None:
    for query in ('"', "NEAR(", "*", "???", 'a" OR "b'):
        answer = server.post("/v1/search", {"query": query, "mode": "bm25"})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"query": None}, "query", "`query` must not be null"),
        ({"query": " \n"}, "query", "`query` must not be empty"),
        ({"query": ["a", "b"]}, "query", "`query` must be one text: several are not supported"),
        ({"query": [1]}, "query[0]", "`query[0]` must be a string, not an integer"),
        ({"query": LONG}, "query", "`query` has more tokens than the 4096 that the embedder of the index reads"),
        ({"query": "a" * 40_000}, "query", "`query` has 40000 characters, and the limit is 32768"),
        ({"max_num_results": 51}, "max_num_results", "`max_num_results` must be from 1 to 50, not 51"),
        ({"mode": "x"}, "mode", "`mode` must be `hybrid` or `vector` or `bm25`, not `x`"),
        ({"paths": ["a", "../x"]}, "paths[1]", "`paths[1]` is not a pattern of files (such as `*.md`, "),
        ({"paths": ["a*b*c*d"]}, "paths[0]", "`paths[0]` is not a pattern of files"),
        ({"paths": ["a" * 1025]}, "paths[0]", "`paths[0]` has 1025 characters, and the limit is 1024"),
        ({"paths": [], "filters": {}}, "filters", "`filters` and `paths` contradict each other"),
        ({"filters": {"type": "gt"}}, "filters.type", "`filters.type` must be `eq` or `in`, or `or` over these, not"),
        (
            {"filters": {"type": "eq", "key": "page", "value": "1"}},
            "filters.key",
            "`filters.key` must be `filename`: other attributes cannot be filtered",
        ),
        (
            {"filters": {"type": "or", "filters": [{"type": "or", "filters": []}]}},
            "filters.filters[0].type",
            "`filters.filters[0].type` must be `eq` or `in`",
        ),
        ({"rewrite_query": True}, "rewrite_query", "`rewrite_query` is not supported: the query is used as it is"),
        (
            {"ranking_options": {"hybrid_search": {}}},
            "ranking_options.hybrid_search",
            "`ranking_options.hybrid_search` is not supported: the two rankings have fixed weights",
        ),
        (
            {"mode": "bm25", "ranking_options": {"score_threshold": 0.5}},
            "ranking_options.score_threshold",
            "`score_threshold` is a similarity, and `mode` `bm25` computes none",
        ),
        (
            {"reranker": "tiny-reranker", "ranking_options": {"ranker": "none"}},
            "reranker",
            "`reranker` and `ranking_options.ranker` contradict each other",
        ),
        ({"reranker": "tiny-embedder"}, "reranker", "`tiny-embedder` is an embedder, not a reranker"),
        ({"top_n": 3}, "top_n", "unknown field `top_n` (supported: "),
    ],
)  # fmt: skip
def test_invalid_fields_are_named(server: LocalServer, fields: dict[str, object], param: str, message: str) -> None:
    answer = server.post("/v1/search", {"query": QUERY} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["message"].startswith(message), error


def test_what_is_not_there(server: LocalServer) -> None:
    for fields, param, message in (
        ({"index": "x"}, "index", "there is no index `x` (served: `manuals`)"),
        ({"ranking_options": {"ranker": "x"}}, "ranking_options.ranker", "there is no model `x` (served: "),
    ):
        answer = server.post("/v1/search", {"query": QUERY, **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, param)
        assert answer.json()["error"]["message"].startswith(message)
    assert server.get("/v1/vector_stores/x").status_code == 404
    assert server.post("/v1/vector_stores/manuals/search", {"query": QUERY, "index": "manuals"}).status_code == 400


def test_searches_are_counted(server: LocalServer) -> None:
    server.post("/v1/search", {"query": QUERY})
    text = server.get("/metrics").text
    assert 'ortkit_search_latency_seconds_count{index_name="manuals"}' in text
    [chunks] = [line for line in text.splitlines() if line.startswith("ortkit_index_chunks{")]
    assert float(chunks.split()[1]) == json.loads(server.get("/v1/vector_stores").text)["data"][0]["chunks"]
    assert "ortkit_num_searches_waiting 0.0" in text
