"""What a search finds: passages with their place in a file, and the scores of each stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from .documents.document import Place


class SearchMode(StrEnum):
    """Which rankings a search fuses."""

    HYBRID = "hybrid"
    """Embeddings and BM25, by a sum of their scores."""
    VECTOR = "vector"
    """Embeddings alone."""
    BM25 = "bm25"
    """BM25 alone; the embedder is not used."""


@dataclass(frozen=True)
class HitScores:
    """The scores of each stage, and the ranks (from 1) in it; None where the stage did not rank the passage."""

    similarity: float | None
    """Cosine similarity of the embeddings of query and passage; also for hits that only BM25 ranked in hybrid mode."""
    similarity_rank: int | None
    bm25: float | None
    """Okapi BM25 by SQLite's FTS5, as a positive number: higher is better."""
    bm25_rank: int | None
    fused: float | None
    """In hybrid mode, from 0 to 1: 70% by the similarity and 30% by BM25, relative to the query's best passages."""
    reranked: float | None
    """The reranker's score, with its publisher's activation."""


@dataclass(frozen=True)
class Hit:
    """A passage that a search found."""

    rank: int
    """From 1."""
    text: str
    title: str
    """The title of its document."""
    file: str
    """The file's name, relative to the indexed folder, with `/`; bytes that are not UTF-8 as in PEP 383."""
    path: Path
    """Its absolute path when the index was built."""
    place: Place
    """Lines, page and headings."""
    score: float
    """The score of the last stage: reranked, else fused, else the only ranking's."""
    scores: HitScores
    embedded_text: str = field(default="", repr=False, compare=False)
    """What the embedder and a reranker read: title and headings above the text."""
