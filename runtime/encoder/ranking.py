"""Logits to scores, and the documents of a search in the order of their scores."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Scores

Document = TypeVar("Document")

AHEAD = 256
"""Documents taken before those that are not among the best are let go."""


@dataclass(frozen=True)
class Ranked(Generic[Document]):
    """A document at its place in a ranking."""

    index: int
    """Its place among the documents as they came, from 0."""
    score: float
    text: str
    document: Document
    """What came in: the text itself, or the record that holds it."""


@dataclass(frozen=True)
class Ranking(Generic[Document]):
    """The documents of one search, best first, and what happened on the way."""

    ranked: list[Ranked[Document]]
    documents: int
    """How many there were."""
    truncated: tuple[int, ...]
    """The indices of the documents that were cut."""
    empty: tuple[int, ...]
    """The indices of the documents that hold no text."""
    query_dropped: int
    """The most tokens that were cut off the query beside one of the documents."""


class OpenRanking(Generic[Document]):
    """A search under way: its documents are awaited, then taken as their logits come, and the best are kept."""

    def __init__(self, top_n: int | None, *, label: int, scores: Scores) -> None:
        """Keep the best `top_n`, or all, by the logit in column `label`."""
        self.top_n = top_n
        self.label = label
        self.scores = scores
        self.awaited: deque[tuple[str, Document]] = deque()
        self.all_read = False
        """Whether no more documents will be awaited."""
        self.taken = 0
        self.kept: list[tuple[int, NDArray[np.float32], str, Document]] = []
        self.truncated: list[int] = []
        self.empty: list[int] = []
        self.query_dropped = 0

    @property
    def complete(self) -> bool:
        return self.all_read and not self.awaited

    def take(self, logits: NDArray[np.float32], *, dropped: int, query_dropped: int) -> None:
        """The logits (labels,) of the document that has been awaited longest, and the tokens cut from its pair."""
        text, document = self.awaited.popleft()
        if dropped:
            self.truncated.append(self.taken)
        if not text.strip():
            self.empty.append(self.taken)
        self.query_dropped = max(self.query_dropped, query_dropped)
        self.kept.append((self.taken, logits, text, document))
        self.taken += 1
        if self.top_n is not None and len(self.kept) >= self.top_n + AHEAD:
            self.sort()

    def sort(self) -> None:
        """Put the best first, by their logits: an activation may make equal what is not. Ties stay as they came."""
        self.kept.sort(key=lambda one: (-float(one[1][self.label]), one[0]))
        if self.top_n is not None:
            del self.kept[self.top_n :]

    def ranking(self) -> Ranking[Document]:
        """What became of the documents that were taken."""
        self.sort()
        ranked: list[Ranked[Document]] = []
        if self.kept:
            indices, logits, texts, documents = zip(*self.kept, strict=True)
            scores = score(np.stack(logits), self.scores)[:, self.label].tolist()
            ranked = [Ranked(*one) for one in zip(indices, scores, texts, documents, strict=True)]
        return Ranking(ranked, self.taken, tuple(self.truncated), tuple(self.empty), self.query_dropped)


def score(logits: NDArray[np.float32], scores: Scores) -> NDArray[np.float64]:
    """Logits (pairs, labels) to scores of the same shape, in float64, in which a sigmoid tells apart up to 36."""
    exact = logits.astype(np.float64)
    if scores is Scores.SIGMOID:
        return sigmoid(exact)
    if scores is Scores.SOFTMAX:
        powers = np.exp(exact - exact.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return exact


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), written so that no exp of a large number is taken."""
    powers = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers)))
