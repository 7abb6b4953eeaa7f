"""Searching an index: rankings, fusion, filters, ties, and queries of any text."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ortkit import Embedder, Hit, Index, InputError, Reranker, SearchMode, TruncationWarning
from ortkit.toolkit.search.fusion import fuse
from tests.tiny_bundles import write_reranker
from tests.toolkit.search.conftest import write_files

ANIMALS = ("fox", "dog", "cat", "hen", "owl", "bee", "ant", "elk")


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory, tiny_embedder: Embedder) -> Index:
    """64 passages: animal n in n + 1 files of a folder of its own, with a number."""
    tmp = tmp_path_factory.mktemp("animals")
    files = {
        f"{animal}/{number}.txt": f"The {animal} number {number} of the farm."
        for place, animal in enumerate(ANIMALS)
        for number in range(place + 1)
    }
    with Index.build(tmp / "x.index", write_files(tmp / "folder", files), tiny_embedder) as made:
        yield made


def order(hits: list[Hit]) -> list[str]:
    return [hit.file for hit in hits]


def test_similarities_are_those_of_the_embedder(animals: Index) -> None:
    hits = animals.search("the fox", mode="vector", top_n=50)
    assert len(hits) == animals.facts.chunks == 36
    assert [hit.rank for hit in hits] == [hit.scores.similarity_rank for hit in hits] == list(range(1, 37))
    [query] = [animals.embedder.embed_query("the fox")]
    passages = animals.embedder.embed_passages([f"{Path(hit.file).name}\n{hit.text}" for hit in hits])
    np.testing.assert_allclose([hit.score for hit in hits], passages @ query, atol=1e-6)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {(hit.scores.bm25, hit.scores.bm25_rank, hit.scores.reranked) for hit in hits} == {(None, None, None)}


def test_bm25_finds_words_alone(animals: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Embedder, "embed_query", None)
    hits = animals.search("cat", mode=SearchMode.BM25, top_n=50)
    assert order(hits) == ["cat/0.txt", "cat/1.txt", "cat/2.txt"]
    assert all(hit.score == hit.scores.bm25 > 0 for hit in hits)
    assert {(hit.scores.similarity, hit.scores.similarity_rank) for hit in hits} == {(None, None)}
    # A rarer word weighs more.
    assert animals.search("elk fox", mode="bm25", top_n=1)[0].file == "fox/0.txt"
    # Stems, case and diacritics.
    assert order(animals.search("CÁTS", mode="bm25")) == order(hits)


def test_hybrid_is_the_fusion_of_both(animals: Index) -> None:
    vector = {hit.file: hit.score for hit in animals.search("the cat", mode="vector", top_n=100)}
    words = {hit.file: hit.score for hit in animals.search("the cat", mode="bm25", top_n=100)}
    expected = fuse(vector, words, lowest=min(vector.values()))
    hits = animals.search("the cat", top_n=100)
    assert order(hits) == sorted(expected, key=lambda file: (-expected[file], file))
    assert [hit.score for hit in hits] == [hit.scores.fused for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], [expected[file] for file in order(hits)])
    assert {hit.file for hit in hits if hit.scores.bm25_rank} == set(words)


def test_the_similarity_of_what_bm25_alone_found(animals: Index) -> None:
    all_of_them = {hit.file: hit.score for hit in animals.search("hen", mode="vector", top_n=100)}
    hits = animals.search("hen", candidates=4, top_n=4)
    alone = [hit for hit in hits if hit.scores.similarity_rank is None]
    assert alone
    for hit in hits:
        assert hit.scores.similarity == all_of_them[hit.file]


def test_ties_are_in_order_of_files(tmp_path: Path, tiny_embedder: Embedder) -> None:
    """However the index came about: here the files are added in reverse order."""
    folder = tmp_path / "folder"
    path = tmp_path / "x.index"
    for name in "edcba":
        write_files(folder, {f"{name}/same.txt": "The same text."})
        Index.build(path, folder, tiny_embedder).close()
    with Index.open(path, embedder=tiny_embedder) as opened:
        for mode in SearchMode:
            hits = opened.search("some text", mode=mode, top_n=3)
            assert order(hits) == ["a/same.txt", "b/same.txt", "c/same.txt"], mode


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["cat"], {"cat/0.txt", "cat/1.txt", "cat/2.txt"}),
        (["cat/"], {"cat/0.txt", "cat/1.txt", "cat/2.txt"}),
        (["dog/*", "fox"], {"dog/0.txt", "dog/1.txt", "fox/0.txt"}),
        (["7.txt"], {"elk/7.txt"}),
        (["?at/[0-1].*"], {"cat/0.txt", "cat/1.txt"}),
        (["**/6.txt"], {"ant/6.txt", "elk/6.txt"}),
        (["nothing/*.md"], set()),
    ],
)
def test_paths(paths: list[str], expected: set[str], animals: Index) -> None:
    """The filter applies before ranking: all chunks of the files are found, however far down they would be."""
    for mode in SearchMode:
        hits = animals.search("the number of owl fox cat dog elk ant 6", paths=paths, mode=mode, top_n=9, candidates=9)
        assert set(order(hits)) == expected, mode
    everything = animals.search("fox", mode="vector", top_n=100)
    filtered = animals.search("fox", mode="vector", top_n=100, paths=paths)
    assert [(one.file, one.score) for one in filtered] == [
        (one.file, one.score) for one in everything if one.file in expected
    ]


QUERIES = (
    '"', '""', '"unbalanced', "NEAR(", "NEAR/2", "fox NEAR dog", "*", "fo*", "^fox", "text: fox", "{title text}: fox",
    "fox AND", "OR", "NOT fox", "-fox", "+fox", "(fox", "fox)", "'; DROP TABLE chunks; --", "fox\0dog", "\0", "%", "_",
    "the of", "🙂", "🙂🙂 fox", "水", "水泵", "ไม่ทำงาน", "e\u0301", "\u200b", "\ufeff", "½ ² Ⅷ", "ﬁ",
    "\\", "`", "\n\tfox\r\n",
    "a_b_c", "F-17", "C++", "fox" * 5000, "fox " * 5000, " ".join(map(str, range(20_000))), "\U0010ffff", "\ue000x",
)  # fmt: skip


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_any_text_is_a_query(query: str, animals: Index) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        hits = animals.search(query, top_n=3)
    assert len(hits) == 3
    found = animals.search(query, top_n=3, mode="bm25")
    if "fox" in query.split():
        assert found[0].file == "fox/0.txt"


def test_a_query_that_full_text_cannot_use(animals: Index) -> None:
    """Words that are nowhere, or in most chunks, leave the embeddings' order."""
    for query in ("🙂", "the of number", "zyzzyva"):
        assert order(animals.search(query, top_n=36)) == order(animals.search(query, top_n=36, mode="vector"))
    # Without embeddings, the rarest of them counts.
    assert len(animals.search("the number", mode="bm25", top_n=100)) == 36


def test_cjk(tmp_path: Path, tiny_embedder: Embedder) -> None:
    files = {
        "a.txt": "今天水泵坏了。请检查。",
        "b.txt": "阀门关闭后再开。",
        "c.txt": "ポンプが動かない",
        "d.txt": "펌프가 작동하지 않습니다",
        "e.txt": "a text about valves",
        "f.txt": "泵",
    }
    with Index.build(tmp_path / "x", write_files(tmp_path / "folder", files), tiny_embedder) as made:
        for query, file in (
            ("水泵", "a"),
            ("阀门", "b"),
            ("ポンプ", "c"),
            ("펌프", "d"),
            ("泵", "f"),
            ("检查valve", "e"),
        ):
            assert f"{file}.txt" in order(made.search(query, mode="bm25")), query
        assert order(made.search("水泵", mode="bm25")) == ["a.txt"]


class Reversed:
    """A stand-in for a reranker, that ranks by the length of the text."""

    def __init__(self) -> None:
        self.documents: list[str] = []

    def rank(self, _query: str, documents: list[str], *, top_n: int) -> list[Any]:
        self.documents = documents
        ranked = sorted(range(len(documents)), key=lambda place: -place)
        return [SimpleNamespace(index=place, score=np.float64(place)) for place in ranked[:top_n]]


def test_a_reranker_gets_the_candidates(animals: Index) -> None:
    reranker: Any = Reversed()
    before = animals.search("the cat", candidates=10, top_n=10)
    hits = animals.search("the cat", candidates=10, top_n=4, reranker=reranker)
    assert len(reranker.documents) == 10
    assert reranker.documents[0] == f"{Path(before[0].file).name}\n{before[0].text}"
    assert order(hits) == order(before)[::-1][:4]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert [hit.score for hit in hits] == [hit.scores.reranked for hit in hits] == [9.0, 8.0, 7.0, 6.0]
    assert [hit.scores.fused for hit in hits] == [hit.scores.fused for hit in before[::-1][:4]]


def test_a_real_reranker(animals: Index, tmp_path: Path) -> None:
    with Reranker(write_reranker(tmp_path / "reranker")) as reranker:
        hits = animals.search("the cat", candidates=10, top_n=10, reranker=reranker)
        texts = [f"{Path(hit.file).name}\n{hit.text}" for hit in hits]
        np.testing.assert_allclose([hit.score for hit in hits], reranker.score([("the cat", text) for text in texts]))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_long_query_warns(animals: Index) -> None:
    with pytest.warns(TruncationWarning, match="longer than 64 tokens"):
        animals.search("fox " * 1000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": ""}, "the query is empty"),
        ({"query": " \n"}, "the query is empty"),
        ({"query": 3}, "`query` must be a string, not int"),
        ({"query": "\ud800"}, "Unicode"),
        ({"top_n": 0}, "`top_n` must be at least 1, not 0"),
        ({"candidates": 0}, "`candidates` must be at least 1, not 0"),
        ({"mode": "fuzzy"}, "`mode` must be one of hybrid, vector, bm25, not `fuzzy`"),
        ({"paths": "*.md"}, "`paths` must be several patterns, not one string"),
        ({"paths": [""]}, "the path `` matches no file"),
        ({"paths": ["/"]}, "the path `/` matches no file"),
        ({"paths": [3]}, "a pattern of `paths` must be a string, not int"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str, animals: Index) -> None:
    with pytest.raises(InputError) as caught:
        animals.search(**{"query": "fox"} | arguments)
    assert message in caught.value.message
    assert caught.value.exit_code == 2


def test_more_candidates_than_chunks(animals: Index) -> None:
    assert len(animals.search("fox", top_n=1000)) == 36
    assert len(animals.search("fox", top_n=7, candidates=2)) == 7


def test_fusion_is_a_sum_of_scaled_scores() -> None:
    # TM2C2 of the paper, with alpha = 0.7, from the lowest similarity of the embeddings' ranking.
    fused = fuse({"a": 0.6, "b": 0.4, "c": 0.2, "d": 0.1}, {"b": 4.0, "d": 8.0}, lowest=0.2)
    assert fused == {"a": 0.7, "b": 0.5, "c": 0.0, "d": 0.3}


def test_fusion_of_few_or_equal_scores() -> None:
    assert fuse({}, {}, lowest=0.0) == {}
    assert fuse({"a": -0.2}, {}, lowest=-0.2) == {"a": 0.7}
    assert fuse({"a": 0.5, "b": 0.5, "c": 0.4}, {"c": 1.0}, lowest=0.5) == {"a": 0.7, "b": 0.7, "c": 0.3}
