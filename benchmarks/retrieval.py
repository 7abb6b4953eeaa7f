"""End-to-end search on real text: embed, retrieve 50, rerank; ortkit's int8 beside its fp32."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import Retrieval, most_similar, question_set
from benchmarks.peers import BUNDLE, MODEL, ortkit_name
from benchmarks.processor import processor
from benchmarks.seeded import Shape, bundle_of, seeded_checkpoint
from benchmarks.table import print_table
from benchmarks.trained_reranker import trained_checkpoint
from ortkit import Embedder, Precision, Reranker
from ortkit.exporters.certification.rank_correlation import kendall_tau

CANDIDATES = 50
"""Passages to rerank."""
FIRST = 10
RERANKERS: dict[str, Callable[[], Path]] = {
    "trained MiniLM": trained_checkpoint,
    "MiniLM under a seeded head": lambda: seeded_checkpoint(Shape.HEAD),
    "12 seeded layers": lambda: seeded_checkpoint(Shape.TWELVE_LAYERS),
}
"""Name -> the folder of the checkpoint."""
NOTE = (
    "published cross-encoders cannot be downloaded without the Hub: the trained one learned from docstrings for some "
    "minutes, and seeded heads know nothing of relevance; Kendall's tau shows whether int8 ranks as fp32 does"
)


@dataclass(frozen=True)
class Reranked:
    """The reranked candidates of each question."""

    scores: NDArray[np.float64]
    """(questions, candidates), in retrieval order."""
    order: NDArray[np.int64]
    """(questions, candidates): the passages, best first."""


def retrieve(embedder: Embedder, retrieval: Retrieval, count: int) -> NDArray[np.int64]:
    """The passages nearest to each question, best first: (questions, count)."""
    questions = embedder.embed_with_report(retrieval.questions).vectors
    passages = embedder.embed_with_report(retrieval.passages).vectors
    return most_similar(questions, passages, count)


def rerank(reranker: Reranker, retrieval: Retrieval, candidates: NDArray[np.int64]) -> Reranked:
    """Rank the candidates (questions, count) of each question."""
    searches = [
        (question, [retrieval.passages[place] for place in own])
        for question, own in zip(retrieval.questions, candidates, strict=True)
    ]
    scores = np.empty(candidates.shape, np.float64)
    order = np.empty_like(candidates)
    for question, ranking in enumerate(reranker.rank_many_with_report(searches, scores="raw")):
        places = [one.index for one in ranking.ranked]
        scores[question, places] = [one.score for one in ranking.ranked]
        order[question] = candidates[question, places]
    return Reranked(scores, order)


def row_of(name: str, order: NDArray[np.int64], answers: NDArray[np.int64], taus: Sequence[float] = ()) -> list[str]:
    """How often the answer comes first and in the top ten, and Kendall's tau of int8 to fp32."""
    hits = order == answers[:, np.newaxis]
    agreement = [f"{np.mean(taus):.4f}", f"{min(taus):.4f}"] if len(taus) else ["", ""]
    return [name, f"{hits[:, 0].mean():.5f}", f"{hits[:, :FIRST].any(axis=1).mean():.5f}", *agreement]


def rows_of(name: str, checkpoint: Path, retrieval: Retrieval, candidates: NDArray[np.int64]) -> list[list[str]]:
    """The rows of the two bundles of a reranker."""
    exact, int8 = (
        rerank(Reranker(bundle_of(checkpoint, precision)), retrieval, candidates)
        for precision in (Precision.FP32, Precision.INT8)
    )
    taus = [kendall_tau(*both) for both in zip(int8.scores.tolist(), exact.scores.tolist(), strict=True)]
    return [
        row_of(f"reranked, {name}, fp32", exact.order, retrieval.answers),
        row_of(f"reranked, {name}, int8", int8.order, retrieval.answers, taus),
    ]


def first_questions(retrieval: Retrieval, count: int) -> Retrieval:
    """The first questions, still searched among all passages."""
    return Retrieval(retrieval.questions[:count], retrieval.passages, retrieval.answers[:count])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="of the embedder")
    parser.add_argument("--questions", type=int, help="take the first so many of them alone")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    print(processor())
    name = ortkit_name(options.bundle)
    retrieval = question_set()
    if options.questions is not None:
        retrieval = first_questions(retrieval, options.questions)
    candidates = retrieve(Embedder(options.bundle), retrieval, CANDIDATES)
    rows = [row_of(f"as retrieved, {MODEL}, {name}", candidates, retrieval.answers)]
    for reranker, checkpoint in RERANKERS.items():
        rows += rows_of(reranker, checkpoint(), retrieval, candidates)
    held = (candidates == retrieval.answers[:, np.newaxis]).any(axis=1).mean()
    print_table(
        f"{len(retrieval.questions)} questions to {len(retrieval.passages)} passages, the nearest {CANDIDATES} of "
        f"which are reranked; they hold the answer to {held:.5f} of the questions",
        ["order", "answer first", f"answer in {FIRST}", "tau to fp32, mean", "min"],
        rows,
    )
    print(f"\n{NOTE}")


if __name__ == "__main__":
    main()
