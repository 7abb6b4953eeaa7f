"""How good an order of documents is: MRR and nDCG, beside known answers or beside another order."""

from __future__ import annotations

from statistics import mean

import numpy as np
from numpy.typing import NDArray

from ortkit.exporters.certification.rank_correlation import kendall_tau

CUTOFF = 10
Scores = NDArray[np.float32]
"""(searches, documents)"""


def mean_tau(found: Scores, exact: Scores) -> float:
    """Kendall's tau to the order of other scores, the mean over searches."""
    return mean(kendall_tau(*both) for both in zip(found.tolist(), exact.tolist(), strict=True))


def ndcg_to(found: Scores, exact: Scores) -> float:
    """nDCG@10 with linear gains by the rank in the order of other scores: its first document has 1, its last 0."""
    count = exact.shape[1]
    gains = np.empty(exact.shape)
    places = np.argsort(-exact, axis=1, kind="stable")
    np.put_along_axis(gains, places, np.broadcast_to(np.linspace(1, 0, count), exact.shape), axis=1)
    discounts = 1 / np.log2(np.arange(2, 2 + min(CUTOFF, count)))
    best = np.linspace(1, 0, count)[: len(discounts)] @ discounts
    order = np.argsort(-found, axis=1, kind="stable")[:, : len(discounts)]
    return float((np.take_along_axis(gains, order, axis=1) @ discounts / best).mean())


def answer_ranks(found: Scores, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """The rank of each search's one answer from 1, infinite where its place is -1: it is not among the documents."""
    order = np.argsort(-found, axis=1, kind="stable")
    hits = order == places[:, np.newaxis]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)


def reciprocal_rank(ranks: NDArray[np.float64]) -> float:
    """MRR@10."""
    return float(np.where(ranks <= CUTOFF, 1 / ranks, 0).mean())


def ndcg_of_answers(ranks: NDArray[np.float64]) -> float:
    """nDCG@10 with one relevant document a search: the ideal gain is 1."""
    return float(np.where(ranks <= CUTOFF, 1 / np.log2(1 + ranks), 0).mean())
