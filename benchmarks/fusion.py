"""Ways to fuse BM25 with vectors, compared on the same hits: reciprocal ranks with weights, and sums of scores."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_items import Collection
from benchmarks.processor import processor
from benchmarks.search_quality import (
    CANDIDATES,
    CUTOFF,
    DEPTH,
    DIFFERENCE_HEADER,
    DIFFERENCES,
    Quality,
    add_collection_options,
    collections_of,
    difference_rows,
    quality,
    rank_of,
)
from benchmarks.table import print_table
from ortkit import Embedder, Hit, Index

VECTOR_WEIGHTS = (1, 2, 3, 4)
RRF_CONSTANTS = (60, 10)
"""60 is that of the paper."""
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the similarity in a sum of scores."""

COMPARED = (
    "vectors alone",
    "reciprocal ranks, k = 60, vectors x 1",
    "scores from their lowest observed, 70% vectors",
)
"""Fusions whose differences are tested."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The passages that a hybrid search found for a query, and what the two rankings say of each."""

    files: list[str]
    similarity: Floats
    similarity_rank: Floats
    """From 1; infinite where the stage did not rank the passage."""
    bm25: Floats
    """0 where the stage did not rank the passage."""
    bm25_rank: Floats

    @classmethod
    def of(cls, hits: Sequence[Hit]) -> Candidates:
        def figures(read: Callable[[Hit], float | None], missing: float) -> Floats:
            found = (read(hit) for hit in hits)
            return np.array([missing if one is None else one for one in found], np.float64)

        return cls(
            [hit.file for hit in hits],
            figures(lambda hit: hit.scores.similarity, -1),
            figures(lambda hit: hit.scores.similarity_rank, np.inf),
            figures(lambda hit: hit.scores.bm25, 0),
            figures(lambda hit: hit.scores.bm25_rank, np.inf),
        )


Fusion = Callable[[Candidates], Floats]
"""A score for each passage."""


def reciprocal_ranks(found: Candidates, *, weight: float, constant: float) -> Floats:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009), with a weight for vectors; that of BM25 is 1."""
    return weight / (constant + found.similarity_rank) + 1 / (constant + found.bm25_rank)


def theoretical(found: Candidates, *, share: float) -> Floats:
    """TM2C2 of Bruch, Gai and Ingber (2023): scores from their lowest possible value, -1 and 0, to the query's best."""
    return share * scaled(found.similarity, -1.0) + (1 - share) * scaled(found.bm25, 0.0)


def observed(found: Candidates, *, share: float) -> Floats:
    """The same from the lowest similarity that vectors found, as the range of cosines depends on the model."""
    ranked = found.similarity[np.isfinite(found.similarity_rank)]
    lowest = ranked.min() if len(ranked) else 0.0
    return share * scaled(found.similarity, lowest) + (1 - share) * scaled(found.bm25, 0.0)


def scaled(values: Floats, lowest: float) -> Floats:
    """From 0 at `lowest` or below to 1 at the highest."""
    span = values.max() - lowest if len(values) else 0.0
    return np.clip((values - lowest) / span, 0, 1) if span > 0 else np.zeros(len(values))


def fusions() -> dict[str, Fusion]:
    found: dict[str, Fusion] = {"vectors alone": lambda one: -one.similarity_rank}
    for constant in RRF_CONSTANTS:
        for weight in VECTOR_WEIGHTS:
            name = f"reciprocal ranks, k = {constant}, vectors x {weight}"
            found[name] = partial(reciprocal_ranks, weight=weight, constant=constant)
    for share in SHARES:
        found[f"scores from their lowest possible, {share:.0%} vectors"] = partial(theoretical, share=share)
    for share in SHARES:
        found[f"scores from their lowest observed, {share:.0%} vectors"] = partial(observed, share=share)
    return found


def candidates_of(index: Index, collection: Collection) -> list[Candidates]:
    """All that the two rankings of a search find, for each query."""
    return [
        Candidates.of(index.search(query.text, top_n=2 * CANDIDATES, candidates=CANDIDATES))
        for query in collection.queries
    ]


def qualities(collection: Collection, found: Sequence[Candidates]) -> list[Quality]:
    """The quality of each fusion on these candidates."""
    measured = []
    for name, fusion in fusions().items():
        ranks = []
        for query, candidates in zip(collection.queries, found, strict=True):
            order = np.argsort(-fusion(candidates), kind="stable")
            ranks.append(rank_of(query.answer, [candidates.files[place] for place in order]))
        measured.append(quality(name, ranks))
    return measured


def rows_of(measured: Sequence[Sequence[Quality]]) -> list[list[str]]:
    """A row for each fusion, with the figures of each collection."""
    return [
        [own[0].name, *(figure for one in own for figure in (f"{one.ndcg.mean():.3f}", f"{one.recall.mean():.3f}"))]
        for own in zip(*measured, strict=True)
    ]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fusion", description=__doc__)
    add_collection_options(parser)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    print(processor())
    embedder = Embedder(options.bundle)
    names, measured = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for collection, path, folder in collections_of(options, Path(scratch)):
            with Index.build(path, folder, embedder) as index:
                names.append(f"{collection.name}, {len(collection.queries)} queries, {index.facts.files} files")
                measured.append(qualities(collection, candidates_of(index, collection)))
    header = ["fusion", *(figure for _ in measured for figure in (f"nDCG@{CUTOFF}", f"recall@{DEPTH}"))]
    print_table("; ".join(names), header, rows_of(measured))
    for name, own in zip(names, measured, strict=True):
        compared = [one for one in own if one.name in COMPARED]
        print_table(f"{name}: {DIFFERENCES}", DIFFERENCE_HEADER, difference_rows(compared))


if __name__ == "__main__":
    main()
