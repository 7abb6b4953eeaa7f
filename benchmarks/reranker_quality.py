"""How well the trained reranker of the benchmarks ranks what it has not learned from, beside simple baselines.

Two collections: the questions of `benchmarks.accuracy`, and docstrings of a package that was held out. The candidates
are the passages that all-MiniLM-L6-v2 finds nearest, so its own order is the first baseline. The others are the words
that a query and a passage share, weighted by how rare they are, and a reranker under a seeded head.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import Retrieval, question_set
from benchmarks.docstrings import HELD_OUT, known_items
from benchmarks.peers import BUNDLE
from benchmarks.ranking_metrics import Scores, answer_ranks, ndcg_of_answers, reciprocal_rank
from benchmarks.retrieval import first_questions, retrieve
from benchmarks.seeded import Shape, bundle_of, seeded_checkpoint
from benchmarks.table import print_table
from benchmarks.trained_reranker import trained_checkpoint
from ortkit import Embedder, Precision, Reranker

SEED = 5
WORD = re.compile(r"\w+")


def held_out_docstrings() -> Retrieval:
    """Known items of the package that the training has not seen."""
    items = known_items(HELD_OUT, seed=SEED)
    return Retrieval([item.query for item in items], [item.passage for item in items], np.arange(len(items)))


def overlap_scores(retrieval: Retrieval, candidates: NDArray[np.int64]) -> Scores:
    """The sum of the inverse document frequencies of the words that each question shares with its candidates."""
    words = [set(WORD.findall(passage.lower())) for passage in retrieval.passages]
    known = Counter(word for own in words for word in own)
    scores = np.zeros(candidates.shape, np.float32)
    for row, (question, own) in enumerate(zip(retrieval.questions, candidates, strict=True)):
        asked = set(WORD.findall(question.lower()))
        scores[row] = [sum(np.log(len(words) / known[word]) for word in asked & words[place]) for place in own]
    return scores


def reranker_scores(reranker: Reranker, retrieval: Retrieval, candidates: NDArray[np.int64]) -> Scores:
    """The logits of each question's candidates."""
    pairs = [
        (question, retrieval.passages[place])
        for question, own in zip(retrieval.questions, candidates, strict=True)
        for place in own
    ]
    logits: Scores = reranker.score_with_report(pairs).logits[:, 0]
    return logits.reshape(candidates.shape)


def rows_of(retrieval: Retrieval, candidates: NDArray[np.int64], rerankers: dict[str, Reranker]) -> list[list[str]]:
    """A row for each order of the candidates."""
    hits = candidates == retrieval.answers[:, np.newaxis]
    places = np.where(hits.any(axis=1), hits.argmax(axis=1), -1)
    nearest = np.broadcast_to(-np.arange(candidates.shape[1], dtype=np.float32), candidates.shape)
    orders = {"bi-encoder, all-MiniLM-L6-v2": nearest, "shared words, by rarity": overlap_scores(retrieval, candidates)}
    orders |= {name: reranker_scores(reranker, retrieval, candidates) for name, reranker in rerankers.items()}
    rows = []
    for name, scores in orders.items():
        ranks = answer_ranks(scores, places)
        rows.append(
            [name, f"{reciprocal_rank(ranks):.4f}", f"{ndcg_of_answers(ranks):.4f}", f"{(ranks == 1).mean():.4f}"]
        )
    return rows


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reranker_quality", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="of the embedder")
    parser.add_argument("--questions", type=int, default=240, help="of each collection")
    parser.add_argument("--candidates", type=int, default=20, help="passages of a question to rerank")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    rerankers = {
        "trained reranker, float32": Reranker(bundle_of(trained_checkpoint(), Precision.FP32)),
        "seeded head, float32": Reranker(bundle_of(seeded_checkpoint(Shape.HEAD), Precision.FP32)),
    }
    embedder = Embedder(options.bundle)
    for name, whole in (("questions", question_set()), ("held-out docstrings", held_out_docstrings())):
        retrieval = first_questions(whole, options.questions)
        candidates = retrieve(embedder, retrieval, options.candidates)
        held = (candidates == retrieval.answers[:, np.newaxis]).any(axis=1).mean()
        print_table(
            f"{name}: {len(retrieval.questions)} queries, {len(retrieval.passages)} passages, {options.candidates} "
            f"candidates, which hold the answer to {held:.4f}",
            ["order", "MRR@10", "nDCG@10", "answer first"],
            rows_of(retrieval, candidates, rerankers),
        )


if __name__ == "__main__":
    main()
