"""The similarity below which `ortkit ask` says that nothing was found, for an embedder: measured, not guessed.

240 questions that a passage answers, among 584; the same questions without the passage that answers them, where
others on the subject are left; and the same among passages of other subjects alone. A threshold refuses questions whose
most similar passage is below it. The questions are paraphrases that share few words with their passages, so they are
harder than most that people ask.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import PASSAGES, Retrieval, question_set
from benchmarks.peers import BUNDLE
from benchmarks.table import print_table
from ortkit import Embedder

REFUSED = 0.02
"""Largest share of answerable questions that the threshold may refuse."""


@dataclass(frozen=True)
class Nearest:
    """The similarity of the nearest passage to each question: float32 (questions,)."""

    answerable: NDArray[np.float32]
    taken_out: NDArray[np.float32]
    """Without the passage that answers the question."""
    foreign: NDArray[np.float32]
    """Among passages of other subjects."""

    @classmethod
    def of(cls, similarities: NDArray[np.float32], retrieval: Retrieval, own: int) -> Nearest:
        """From all similarities (questions, passages); the first `own` passages are those that questions are about."""
        without = similarities.copy()
        without[np.arange(len(without)), retrieval.answers] = -1
        return cls(similarities.max(axis=1), without.max(axis=1), similarities[:, own:].max(axis=1))

    @property
    def threshold(self) -> float:
        """The highest two-digit value that refuses at most REFUSED of the answerable questions."""
        values = np.arange(-100, 101) / 100
        return float(max(value for value in values if (self.answerable < value).mean() <= REFUSED))

    def row(self, threshold: float) -> list[str]:
        shares = [(one < threshold).mean() for one in (self.answerable, self.taken_out, self.foreign)]
        return [f"{threshold:.2f}", *(f"{share:.1%}" for share in shares)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", default=BUNDLE, help="an embedder")
    embedder = Embedder(parser.parse_args().bundle)
    retrieval = question_set()
    own = len(PASSAGES.read_text(encoding="utf-8").splitlines())
    queries = np.stack([embedder.embed_query(question) for question in retrieval.questions])
    passages = embedder.embed_with_report(retrieval.passages).vectors
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(passages, axis=1)
    nearest = Nearest.of((queries @ passages.T) / norms, retrieval, own)
    found = nearest.threshold
    print_table(
        f"{embedder.bundle.path}, {len(retrieval.questions)} questions",
        ["threshold", "refused: answerable", "refused: passage taken out", "refused: other subjects alone"],
        [nearest.row(found + step / 100) for step in (-10, -5, 0, 5, 10, 15)],
    )
    print(f"\nthreshold: {found:.2f}")


if __name__ == "__main__":
    main()
