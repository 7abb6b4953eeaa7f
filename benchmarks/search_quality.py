"""Retrieval quality of an index on real text: BM25 alone, vectors alone, their fusion, and reranking."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_items import Collection, descriptions, docstrings, questions
from benchmarks.peers import BUNDLE, ortkit_name
from benchmarks.processor import processor
from benchmarks.table import print_table
from ortkit import Embedder, Index, Reranker, SearchMode

QUERIES = 1000
"""Of each collection of known items."""
CUTOFF, DEPTH = 10, 50
"""Of nDCG, and of recall."""
CANDIDATES = 100
"""Passages that a search returns; several may be of one file."""
RESAMPLES = 9999
LEVEL = 0.05
SEED = 23
COLLECTIONS = ("questions", "docstrings", "descriptions")
NAMES = {SearchMode.BM25: "BM25 alone", SearchMode.VECTOR: "vectors alone", SearchMode.HYBRID: "fusion"}
RERANKED = "fusion, reranked"
NOTE = (
    "not measured: fusion with reranking. No trained cross-encoder was found in the package registries, and one with "
    "seeded weights knows nothing of relevance; `--reranker BUNDLE` adds the row"
)

DIFFERENCES = (
    f"differences with 95% intervals; p of the paired randomization test, noise: not significant at {LEVEL:.0%} "
    "together (Holm)"
)
DIFFERENCE_HEADER = ("difference", f"nDCG@{CUTOFF}", "p", f"recall@{DEPTH}", "p")

Scores = NDArray[np.float64]
"""(queries,)"""


@dataclass(frozen=True)
class Quality:
    """A system's figures for each query of a collection."""

    name: str
    ndcg: Scores
    """nDCG@10, with one relevant file."""
    recall: Scores
    """1 where the answer is among the first 50 files."""


@dataclass(frozen=True)
class Difference:
    """How much better one system is than another, over the same queries."""

    mean: float
    low: float
    high: float
    """95% interval of the mean, by the percentile bootstrap over queries."""
    p: float
    """Of the paired randomization test, two-sided."""


def rank_of(answer: str, files: Sequence[str]) -> int | None:
    """The rank of a file, from 1, where each file counts at its best passage."""
    distinct = list(dict.fromkeys(files))
    return distinct.index(answer) + 1 if answer in distinct else None


def ndcg(rank: int | None) -> float:
    """nDCG@10 of a query with one relevant file (Järvelin and Kekäläinen 2002): the ideal gain is 1."""
    return float(1 / np.log2(1 + rank)) if rank is not None and rank <= CUTOFF else 0.0


def quality(name: str, ranks: Sequence[int | None]) -> Quality:
    found = [rank is not None and rank <= DEPTH for rank in ranks]
    return Quality(name, np.array([ndcg(rank) for rank in ranks]), np.array(found, np.float64))


def measure(index: Index, collection: Collection, reranker: Reranker | None) -> list[Quality]:
    """Search for all queries in each way."""

    def ranks(mode: SearchMode, own: Reranker | None = None) -> list[int | None]:
        searched = (
            index.search(query.text, mode=mode, top_n=CANDIDATES, candidates=CANDIDATES, reranker=own)
            for query in collection.queries
        )
        return [
            rank_of(query.answer, [hit.file for hit in hits])
            for query, hits in zip(collection.queries, searched, strict=True)
        ]

    measured = [quality(name, ranks(mode)) for mode, name in NAMES.items()]
    if reranker is not None:
        measured.append(quality(RERANKED, ranks(SearchMode.HYBRID, reranker)))
    return measured


def interval(values: Scores) -> tuple[float, float]:
    """95% interval of the mean, by the percentile bootstrap over queries."""
    from scipy.stats import bootstrap

    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found: Any = bootstrap((values,), np.mean, method="percentile", n_resamples=RESAMPLES, batch=500, rng=SEED)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def difference(these: Scores, those: Scores) -> Difference:
    """The mean difference, with the randomization test of Smucker, Allan and Carterette (CIKM 2007)."""
    from scipy.stats import permutation_test

    both: Any = permutation_test(
        (these, those),
        lambda first, second, axis: (first - second).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        rng=SEED,
    )
    low, high = interval(these - those)
    return Difference(float((these - those).mean()), low, high, float(both.pvalue))


def significant(chances: Sequence[float]) -> list[bool]:
    """Which of several tests reject at 5% together (Holm 1979)."""
    rejected = [False] * len(chances)
    for step, place in enumerate(np.argsort(chances, kind="stable")):
        if chances[place] > LEVEL / (len(chances) - step):
            break
        rejected[place] = True
    return rejected


def quality_rows(measured: Sequence[Quality]) -> list[list[str]]:
    return [[one.name, *(with_interval(values) for values in (one.ndcg, one.recall))] for one in measured]


def with_interval(values: Scores) -> str:
    low, high = interval(values)
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def difference_rows(measured: Sequence[Quality]) -> list[list[str]]:
    """Each pair of systems, the better named first by nDCG; what is not significant is called noise."""
    pairs = [sorted(pair, key=lambda one: one.ndcg.mean(), reverse=True) for pair in combinations(measured, 2)]
    columns: list[list[str]] = [[f"{better.name} - {worse.name}" for better, worse in pairs]]
    figures: tuple[Callable[[Quality], Scores], ...] = (lambda one: one.ndcg, lambda one: one.recall)
    for figure in figures:
        found = [difference(figure(better), figure(worse)) for better, worse in pairs]
        verdicts = significant([one.p for one in found])
        columns.append([f"{one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})" for one in found])
        columns.append([f"{one.p:.4f}{'' if sure else ', noise'}" for one, sure in zip(found, verdicts, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def collections_of(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[Collection, Path, Path]]:
    """The collections that the options name, each with the path of its index and the folder of its files, written."""
    work = options.work or scratch
    for name in options.collections:
        if name == "questions":
            collection = questions()
        elif name == "docstrings":
            collection = docstrings(options.queries, options.documents)
        else:
            collection = descriptions(options.queries, options.documents, options.apt_lists)
        folder = work / name
        if not folder.exists():
            collection.write(folder)
        yield collection, work / f"{name}.index", folder


def report(collection: Collection, name: str, index: Index, measured: Sequence[Quality]) -> None:
    facts = index.facts
    print_table(
        f"{collection.name}, {name}: {len(collection.queries)} queries, {facts.files} files, {facts.chunks} chunks\n"
        f"{collection.source}",
        ["search", f"nDCG@{CUTOFF}", f"recall@{DEPTH}"],
        quality_rows(measured),
    )
    print_table(
        DIFFERENCES,
        DIFFERENCE_HEADER,
        difference_rows(measured),
    )


def add_collection_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="of the embedder")
    parser.add_argument("--collections", nargs="+", choices=COLLECTIONS, default=COLLECTIONS)
    parser.add_argument("--queries", type=int, default=QUERIES, help="of each collection of known items")
    parser.add_argument("--documents", type=int, help="of each collection of known items; default: all")
    parser.add_argument("--apt-lists", type=Path, metavar="FOLDER", help="with the Translation files of APT")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep files and indexes here, for another run")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_quality", description=__doc__)
    add_collection_options(parser)
    parser.add_argument("--reranker", type=Path, metavar="BUNDLE", help="add fusion with reranking")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    print(processor())
    embedder = Embedder(options.bundle)
    reranker = None if options.reranker is None else Reranker(options.reranker)
    with tempfile.TemporaryDirectory() as scratch:
        for collection, path, folder in collections_of(options, Path(scratch)):
            with Index.build(path, folder, embedder) as index:
                report(collection, ortkit_name(options.bundle), index, measure(index, collection, reranker))
    if reranker is None:
        print(f"\n{NOTE}")


if __name__ == "__main__":
    main()
