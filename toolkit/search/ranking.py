"""The stages of a search: embeddings and BM25, their fusion, and a reranker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...runtime.encoder.reranker import Reranker
from .fusion import fuse
from .hits import Hit, HitScores, SearchMode
from .storage.index_file import path_of
from .storage.snapshot import Filter, Located, Snapshot

Found = list[tuple[int, float]]
"""Chunks and their scores, best first."""


@dataclass(frozen=True)
class Request:
    """A checked search."""

    query: str
    top_n: int
    mode: SearchMode
    candidates: int
    """Passages that each ranking gives, and that a reranker scores."""
    paths: tuple[str, ...] = ()
    reranker: Reranker | None = None


@dataclass(frozen=True)
class _Ranking:
    """The chunks of one stage, best first, and their scores."""

    scores: dict[int, float]

    @classmethod
    def of(cls, found: Found, located: dict[int, Located], count: int) -> _Ranking:
        """The best `count`; ties in order of files and of chunks in them, however the index came about."""
        ordered = sorted(found, key=lambda one: (-one[1], located[one[0]].order))
        return cls(dict(ordered[:count]))

    @property
    def ranks(self) -> dict[int, int]:
        return {chunk: rank for rank, chunk in enumerate(self.scores, 1)}


def search(snapshot: Snapshot, request: Request, embed: Callable[[str], NDArray[np.float32]]) -> list[Hit]:
    """The best passages; `embed` gives the query's embedding, of length 1."""
    limit = snapshot.filter(request.paths) if request.paths else None
    if limit is not None and not limit:
        return []
    query, by_vector, by_words = _candidates(snapshot, request, limit, embed)
    chunks = list(dict.fromkeys(chunk for chunk, _ in (*by_vector, *by_words)))
    located = snapshot.locate(chunks)
    vectors = _Ranking.of(by_vector, located, request.candidates)
    words = _Ranking.of(by_words, located, request.candidates)
    similarities = _similarities(snapshot, query, vectors, words, located)
    fused = _fused(request.mode, similarities, vectors, words)
    best = sorted(fused, key=lambda chunk: (-fused[chunk], located[chunk].order))
    best = best[: request.top_n if request.reranker is None else request.candidates]
    texts = snapshot.texts(best)
    folder = path_of(snapshot.index.origin.folder)
    hits = []
    for rank, chunk in enumerate(best, 1):
        text, file = texts[chunk], located[chunk].file
        scores = HitScores(
            similarity=similarities.get(chunk),
            similarity_rank=vectors.ranks.get(chunk),
            bm25=words.scores.get(chunk),
            bm25_rank=words.ranks.get(chunk),
            fused=fused[chunk] if request.mode is SearchMode.HYBRID else None,
            reranked=None,
        )
        score = fused[chunk]
        path, read = folder / file, text.embedded_text
        hits.append(Hit(rank, text.text, text.title, file, path, text.place, score, scores, read))
    if request.reranker is None:
        return hits
    return _reranked(request.reranker, request.query, hits, request.top_n)


def _candidates(
    snapshot: Snapshot, request: Request, limit: Filter | None, embed: Callable[[str], NDArray[np.float32]]
) -> tuple[NDArray[np.float32] | None, Found, Found]:
    """The query's embedding, and the best chunks by it and by BM25, which is computed beside."""
    if request.mode is SearchMode.BM25:
        return None, [], snapshot.full_text(request.query, request.candidates, limit, alone=True)
    words = None
    if request.mode is SearchMode.HYBRID:
        words = snapshot.beside.submit(snapshot.full_text, request.query, request.candidates, limit, alone=False)
    try:
        query = embed(request.query)
        by_vector = snapshot.vectors.nearest(query, request.candidates, allowed=_allowed(limit))
    finally:
        # It uses the snapshot, which may be closed after this.
        wait([] if words is None else [words])
    return query, by_vector, [] if words is None else words.result()


def _allowed(limit: Filter | None) -> NDArray[np.bool_] | None:
    return None if limit is None else limit.allowed


def _similarities(
    snapshot: Snapshot,
    query: NDArray[np.float32] | None,
    vectors: _Ranking,
    words: _Ranking,
    located: dict[int, Located],
) -> dict[int, float]:
    """The similarities of all candidates, also of those that BM25 alone found; none without an embedding."""
    if query is None:
        return {}
    others = [chunk for chunk in words.scores if chunk not in vectors.scores]
    rows = np.array([located[chunk].row for chunk in others], np.int64)
    found = snapshot.vectors.similarities(query, rows)
    return vectors.scores | dict(zip(others, found.tolist(), strict=True))


def _fused(mode: SearchMode, similarities: dict[int, float], vectors: _Ranking, words: _Ranking) -> dict[int, float]:
    """The score by which candidates are ranked: that of the only ranking, or of both."""
    if mode is SearchMode.BM25:
        return words.scores
    if mode is SearchMode.VECTOR:
        return vectors.scores
    return fuse(similarities, words.scores, lowest=min(vectors.scores.values(), default=0.0))


def _reranked(reranker: Reranker, query: str, hits: list[Hit], count: int) -> list[Hit]:
    """The hits in the reranker's order, ties in the order of before."""
    ranked = reranker.rank(query, [hit.embedded_text for hit in hits], top_n=count)
    found = []
    for rank, one in enumerate(ranked, 1):
        hit = hits[one.index]
        score = float(one.score)
        found.append(replace(hit, rank=rank, score=score, scores=replace(hit.scores, reranked=score)))
    return found
