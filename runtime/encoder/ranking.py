"""Scores from logits, and rankings: the documents of a query sorted by score."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Scores

Document = TypeVar("Document")

AHEAD = 256
"""Documents to collect beyond `top_n` before the rest is dropped."""


@dataclass(frozen=True)
class Ranked(Generic[Document]):
    """A document in a ranking.

    >>> Ranked(index=2, score=0.5, text="a dog", document="a dog").score
    0.5
    """

    index: int
    """Position among the input documents, from 0."""
    score: float
    text: str
    """The text that was scored."""
    document: Document
    """The input: the text itself, or the record that contains it."""


@dataclass(frozen=True)
class Ranking(Generic[Document]):
    """The ranking of one query's documents, and what was truncated."""

    ranked: list[Ranked[Document]]
    """Best first; at most `top_n`."""
    documents: int
    """Number of input documents."""
    truncated: tuple[int, ...]
    """Indices of truncated documents."""
    empty: tuple[int, ...]
    """Indices of documents without text."""
    query_dropped: int
    """Largest number of tokens that were truncated from the query, over all documents."""


class OpenRanking(Generic[Document]):
    """A ranking in progress: documents wait for their logits, and the best are kept."""

    def __init__(self, top_n: int | None, *, label: int, scores: Scores) -> None:
        """Keep the best `top_n` documents, or all, by the logit in column `label`."""
        self.top_n = top_n
        self.label = label
        self.scores = scores
        self.pending: deque[tuple[str, Document]] = deque()
        self.all_read = False
        """Whether all documents of the query were read."""
        self.count = 0
        """Number of documents with logits."""
        self.kept: list[tuple[int, NDArray[np.float32], str, Document]] = []
        self.truncated: list[int] = []
        self.empty: list[int] = []
        self.query_dropped = 0

    @property
    def complete(self) -> bool:
        return self.all_read and not self.pending

    def take(self, logits: NDArray[np.float32], *, dropped: int, query_dropped: int) -> None:
        """Add the logits (labels,) of the first pending document, and the truncated tokens of its pair."""
        text, document = self.pending.popleft()
        if dropped:
            self.truncated.append(self.count)
        if not text.strip():
            self.empty.append(self.count)
        self.query_dropped = max(self.query_dropped, query_dropped)
        self.kept.append((self.count, logits, text, document))
        self.count += 1
        if self.top_n is not None and len(self.kept) >= self.top_n + AHEAD:
            self.sort()

    def sort(self) -> None:
        """Sort by logits, best first, ties in input order: an activation can saturate, logits do not."""
        self.kept.sort(key=lambda one: (-float(one[1][self.label]), one[0]))
        if self.top_n is not None:
            del self.kept[self.top_n :]

    def ranking(self) -> Ranking[Document]:
        """The ranking of the documents so far."""
        self.sort()
        ranked: list[Ranked[Document]] = []
        if self.kept:
            indices, logits, texts, documents = zip(*self.kept, strict=True)
            scores = score(np.stack(logits), self.scores)[:, self.label].tolist()
            ranked = [Ranked(*one) for one in zip(indices, scores, texts, documents, strict=True)]
        return Ranking(ranked, self.count, tuple(self.truncated), tuple(self.empty), self.query_dropped)


def score(logits: NDArray[np.float32], scores: Scores) -> NDArray[np.float64]:
    """Convert logits (pairs, labels) to scores of the same shape; in float64, where sigmoid saturates at 36, not 17."""
    exact = logits.astype(np.float64)
    if scores is Scores.SIGMOID:
        return _sigmoid(exact)
    if scores is Scores.SOFTMAX:
        powers = np.exp(exact - exact.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return exact


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow."""
    powers = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers)))
