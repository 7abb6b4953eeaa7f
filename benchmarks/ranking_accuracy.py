"""Scores and rankings of ortkit's rerankers beside sentence-transformers' CrossEncoder in float32."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.processor import processor
from benchmarks.seeded import Shape, bundle_of, seeded_checkpoint
from benchmarks.table import print_table
from benchmarks.texts import pairs_of_any_length
from benchmarks.trained_reranker import trained_checkpoint
from ortkit import Precision, Reranker
from ortkit.exporters.certification.rank_correlation import kendall_tau

PAIRS = 1000
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ScoreAgreement:
    """A bundle's scores compared with PyTorch's."""

    precision: Precision
    difference: float
    """The largest."""
    tau: float
    """Kendall's, over all pairs."""
    tokens: tuple[int, int]
    """Of the shortest pair and of the longest."""
    cut: int
    """Truncated pairs."""


def scores_of_pytorch(checkpoint: Path, pairs: Pairs) -> NDArray[np.float32]:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(checkpoint), device="cpu", local_files_only=True)
    return np.asarray(model.predict(list(pairs), batch_size=8, show_progress_bar=False), np.float32)


def agreement_of(reranker: Reranker, pairs: Pairs, expected: NDArray[np.float32]) -> ScoreAgreement:
    found = reranker.score_with_report(pairs)
    scores = found.logits[:, 0]
    return ScoreAgreement(
        reranker.bundle.manifest.precision,
        float(np.abs(scores - expected).max()),
        kendall_tau(scores.tolist(), expected.tolist()),
        (int(found.tokens.min()), int(found.tokens.max())),
        len(found.truncated),
    )


def row_of(agreement: ScoreAgreement) -> list[str]:
    return [
        agreement.precision.value,
        f"{agreement.difference:.1e}",
        f"{agreement.tau:.4f}",
        "{} to {}".format(*agreement.tokens),
        str(agreement.cut),
    ]


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking_accuracy", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    print(processor())
    pairs = pairs_of_any_length(options.pairs)
    for checkpoint in (trained_checkpoint(), *map(seeded_checkpoint, Shape)):
        expected = scores_of_pytorch(checkpoint, pairs)
        rows = [
            row_of(agreement_of(Reranker(bundle_of(checkpoint, precision)), pairs, expected))
            for precision in (Precision.FP32, Precision.INT8)
        ]
        title = f"{checkpoint.name}, {len(pairs):,} pairs; PyTorch's scores spread by {expected.std():.3f}"
        print_table(title, ["precision", "largest difference", "tau", "tokens", "pairs cut"], rows)


if __name__ == "__main__":
    main()
